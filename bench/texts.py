"""Texts for the other benchmarks, from Debian's packages ``python3-doc`` and ``linux-doc``; always the same ones.

    apt-get install python3-doc linux-doc
    python -m bench.texts TEXTS

What is in TEXTS then:

    long/train, long/measure     pages of Python's documentation, of 80 KB or more each
    short                        pages of both, of 7 to 9 KB each: about 2,000 tokens
    kinds/observe                of both a page, and Python source, and a licence: to calibrate on
    kinds/measure                texts of other kinds: an article, a change log, HTML

Which pages they are hangs on a hash of their names and on the packages' version. What is neither package's comes with
every Debian: Python, Perl and the licences.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

PYTHON = "/usr/share/doc/python3*-doc/html/_sources"
KERNEL = "/usr/share/doc/linux-doc-*/Documentation"
LONG = 80_000
SHORT = range(7_000, 9_000)
# Kinds of text, each by one file, of which the first part is taken.
KINDS = {
    "observe": {"source": "/usr/lib/python3*/tarfile.py", "licence": "/usr/share/common-licenses/GPL-3"},
    "measure": {
        "article": "/usr/share/perl/5.*/Locale/Maketext/TPJ13.pod",
        "changes": "/usr/share/doc/linux-doc-*/changelog.Debian.gz",
        "html": "/usr/share/doc/python3*-doc/html/howto/regex.html",
    },
}
KIND = 36_000


def pages(pattern: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Name and text of every page of a package, in the order of a hash of its name."""
    root = newest(pattern)
    found = {str(path.relative_to(root)): path for path in root.rglob(f"*{suffix}")}
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield name, read(found[name])


def of_kind(name: str, pattern: str) -> tuple[str, str]:
    """The first part of the one file that stands for a kind of text."""
    return name, read(newest(pattern))[:KIND]


def newest(pattern: str) -> Path:
    """The last file or folder of a pattern, which is that of the newest version."""
    found = sorted(Path("/").glob(pattern.lstrip("/")))
    if not found:
        raise SystemExit(f"nothing at {pattern}: apt-get install python3-doc linux-doc")
    return found[-1]


def read(path: Path) -> str:
    """The text of a file, gzipped or not."""
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", errors="replace")


def write(folder: Path, texts: list[tuple[str, str]]) -> None:
    """One file a page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts:
        stem = name.replace("/", "-").partition(".rst")[0]
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
    print(f"{folder}: {len(texts)} pages, {sum(len(text) for _, text in texts):,} characters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--long", type=int, default=8, help="pages in each half of the long ones")
    parser.add_argument("--short", type=int, default=30, help="pages of each package among the short ones")
    options = parser.parse_args()
    python = list(pages(PYTHON, ".rst.txt"))
    kernel = list(pages(KERNEL, ".rst.gz"))
    long = [page for page in python if len(page[1]) >= LONG]
    write(options.out / "long" / "train", long[: options.long])
    write(options.out / "long" / "measure", long[options.long : 2 * options.long])
    short = [[page for page in package if len(page[1]) in SHORT][: options.short] for package in (python, kernel)]
    write(options.out / "short", [page for package in short for page in package])
    kinds = {half: [of_kind(*kind) for kind in files.items()] for half, files in KINDS.items()}
    for package, name in ((python, "python"), (kernel, "kernel")):
        kinds["observe"].append((name, next(text for _, text in package if len(text) in range(KIND, LONG))[:KIND]))
    for half, texts in kinds.items():
        write(options.out / "kinds" / half, texts)


if __name__ == "__main__":
    main()
