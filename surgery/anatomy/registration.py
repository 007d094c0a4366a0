"""Register the operated type of every family with transformers' auto classes."""

from surgery.runtime.registration import register_when_imported


def register() -> None:
    """Make the auto classes know converted checkpoints, now or when transformers is imported.

    ``import surgery`` does it by itself; with it ``AutoModelForCausalLM.from_pretrained(OUT)`` needs no
    ``trust_remote_code``.
    """
    register_when_imported(_config_classes)


def _config_classes() -> dict[str, str]:
    from surgery.anatomy.families import FAMILIES

    return {model_type: family.config_class for model_type, family in FAMILIES.items()}
