"""Names that come out of a file somebody else wrote, checked before they are joined to a folder."""

import re
from collections.abc import Iterable

from surgery.errors import CheckpointError

# Windows opens a device for these whatever the extension is, in any folder.
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE)
_LONGEST_PART = 255
_LONGEST_NAME = 4096


def quote(name: object, longest: int = 120) -> str:
    """A hostile value as it may stand in a message: escaped, so that it cannot drive a terminal, and short."""
    # Cut before escaping: a name of 100 MB is not worth 100 MB of work.
    text = ascii(name[:longest] if isinstance(name, str) else name)
    cut = isinstance(name, str) and len(name) > longest
    return f"{text[: longest + 40]}..." if cut or len(text) > longest + 40 else text


def quoted_list(names: Iterable[str], most: int = 3) -> str:
    """The first names in order, quoted, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(map(quote, ordered[:most])) + more


def safe_relative(name: object) -> str:
    """Return `name` if it is a plain relative POSIX path that stays in its folder on every platform.

    Raises:
        CheckpointError: it is not text, is empty, absolute or too long, climbs (``..``), has a backslash, a colon
            (drive letters, NTFS streams), a control character or half a surrogate pair, or names a Windows device.
    """
    if not isinstance(name, str):
        raise CheckpointError(f"A file name must be text, this is {quote(name)}.")
    reason = _whole_name_fault(name) or next((fault for part in name.split("/") if (fault := _part_fault(part))), None)
    if reason is not None:
        raise CheckpointError(
            f"The file name {quote(name)} {reason}.",
            hint="Names inside a model folder are relative, with forward slashes, and stay in the folder.",
        )
    return name


def _whole_name_fault(name: str) -> str | None:
    if not name:
        return "is empty"
    if len(name) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} characters"
    if name.startswith("/"):
        return "is absolute"
    if "\\" in name:
        return "contains a backslash"
    if ":" in name:
        return "contains a colon (a drive letter or a stream)"
    if not name.isprintable():
        return "contains a character that cannot be printed"
    return None


def _part_fault(part: str) -> str | None:
    if part == "..":
        return "climbs out with '..'"
    if part in ("", "."):
        return "has an empty part or a '.'"
    if len(part.encode("utf-8", "surrogatepass")) > _LONGEST_PART:
        return f"has a part longer than {_LONGEST_PART} bytes"
    if part[-1] in ". ":
        return "has a part that ends in a dot or a space, which Windows drops"
    if _DEVICES.fullmatch(part.split(".", 1)[0].rstrip()):
        return "is a device name on Windows"
    return None
