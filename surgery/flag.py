"""How a field of an options model is spelled at the command line, declared beside the field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """Metadata of a field, for ``Annotated``. A field without it is the flag ``--its-name``.

    Attributes:
        names: spellings in place of ``--its-name``.
        absent: shown as the default where the field's own default (None) does not say what happens without the flag.
        second: another field, which takes the second of two numbers with a comma between.
        hidden: the field is no flag.
    """

    names: tuple[str, ...] = ()
    absent: str | None = None
    second: str | None = None
    hidden: bool = False


NO_FLAG = Flag(hidden=True)
