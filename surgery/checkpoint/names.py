"""File names from untrusted files: checked before they are joined to a folder, and quoted in messages."""

import re
from collections.abc import Iterable

from surgery.errors import CheckpointError

# Windows opens a device for these names, in any folder and with any extension.
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE)
_LONGEST_PART = 255
_LONGEST_NAME = 4096


def quote(name: object, longest: int = 120) -> str:
    """An untrusted value for a message: escaped, so that it cannot control a terminal, and shortened."""
    # Cut before escaping, so that a name of 100 MB takes no time.
    text = ascii(name[:longest] if isinstance(name, str) else name)
    cut = isinstance(name, str) and len(name) > longest
    return f"{text[: longest + 40]}..." if cut or len(text) > longest + 40 else text


def quoted_list(names: Iterable[str], most: int = 3) -> str:
    """The first names in alphabetical order, quoted, and the number of further names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(map(quote, ordered[:most])) + more


def safe_relative(name: object) -> str:
    """Return `name` if it is a relative POSIX path that stays in its folder on every platform.

    Raises:
        CheckpointError: it is not text, empty, absolute or too long; it contains ``..``, a backslash, a colon (drive
            letters, NTFS streams), a control character or half a surrogate pair; or it names a Windows device.
    """
    if not isinstance(name, str):
        raise CheckpointError(f"a file name must be text, not {quote(name)}")
    reason = _whole_name_fault(name) or next((fault for part in name.split("/") if (fault := _part_fault(part))), None)
    if reason is not None:
        raise CheckpointError(
            f"the file name {quote(name)} {reason}",
            hint="File names in a model folder must be relative, use forward slashes, and stay in the folder.",
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
        return "leaves its folder with '..'"
    if part in ("", "."):
        return "has an empty part or a '.'"
    if len(part.encode("utf-8", "surrogatepass")) > _LONGEST_PART:
        return f"has a part longer than {_LONGEST_PART} bytes"
    if part[-1] in ". ":
        return "has a part that ends in a dot or a space, which Windows drops"
    if _DEVICES.fullmatch(part.split(".", 1)[0].rstrip()):
        return "is a device name on Windows"
    return None
