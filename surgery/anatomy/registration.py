"""Register the operated type of every family with transformers' auto classes."""

from surgery.runtime.registration import register_when_imported


def register() -> None:
    """Make the auto classes load converted checkpoints, now or when transformers is imported.

    ``import surgery`` calls it. After it ``AutoModelForCausalLM.from_pretrained(OUT)`` needs no
    ``trust_remote_code``.
    """
    register_when_imported(_config_classes)


def _config_classes() -> dict[str, str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from surgery.anatomy.families import FAMILIES

    # Families that are not in the table can have been converted with --allow-unverified.
    others = {
        name: CONFIG_MAPPING_NAMES[name] for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES
    }
    return {**others, **{model_type: family.config_class for model_type, family in FAMILIES.items()}}
