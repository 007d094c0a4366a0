"""Links and anchors of Markdown, found offline."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$", re.MULTILINE)
_HTML_ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


def module_file(module: str) -> Path:
    """The file that `python -m` runs for a module or a package of this repository."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    return file if file.is_file() else file.with_suffix("") / "__main__.py"


def pages() -> list[Path]:
    """Every Markdown file of the project that people read."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def links(text: str) -> list[str]:
    """Targets of links and pictures, without those in code."""
    text = _without_indented_code(_FENCED.sub("", text))
    # A code span in the words of a link stays a link: only spans with brackets of their own could hide one.
    text = _INLINE.sub(lambda span: re.sub(r"[\[\]()]", "", span[0]), text)
    return [*_LINK.findall(text), *_REFERENCE.findall(text)]


def anchors(text: str) -> set[str]:
    """Names that ``#name`` can lead to, as GitHub makes them from headings."""
    text = _FENCED.sub("", text)
    found: set[str] = set(_HTML_ANCHOR.findall(text))
    for _, title in _HEADING.findall(text):
        name = slug(title)
        number = 0
        while (candidate := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(candidate)
    return found


def slug(title: str) -> str:
    """The anchor of a heading: lower case, punctuation left out, blanks as hyphens."""
    title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere, each with the reason; links out of the project are not followed."""
    faults = []
    for target in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            faults.append(f"{target}: no such file")
        elif ROOT not in file.parents:
            faults.append(f"{target}: leads out of the project")
        elif anchor and anchor not in anchors(text if file == page else file.read_text(encoding="utf-8")):
            faults.append(f"{target}: no such heading")
    return faults


def _without_indented_code(text: str) -> str:
    """Blocks of four blanks after an empty line, outside lists."""
    lines, code, before_empty, in_list = [], False, True, False
    for line in text.split("\n"):
        empty = not line.strip()
        if re.match(r"\s{0,3}([-*+]|\d+\.)\s", line):
            in_list = True
        elif not empty and not line.startswith(" "):
            in_list = False
        code = (line.startswith("    ") and (code or before_empty) and not in_list) or (code and empty)
        if not code:
            lines.append(line)
        before_empty = empty
    return "\n".join(lines)
