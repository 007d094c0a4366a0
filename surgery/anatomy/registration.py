"""Register the operated type of every family with transformers' auto classes."""

from surgery.anatomy.families import FAMILIES
from surgery.runtime.registration import register_when_imported


def register() -> None:
    """Make the auto classes know converted checkpoints, now or when transformers is imported.

    ``import surgery`` does it by itself; with it ``AutoModelForCausalLM.from_pretrained(OUT)`` needs no
    ``trust_remote_code``.
    """
    register_when_imported(family.config_class for family in FAMILIES.values())
