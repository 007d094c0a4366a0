"""Texts for the other benchmarks, from Debian's packages ``python3-doc`` and ``linux-doc``; always the same ones.

    apt-get install python3-doc linux-doc
    python -m bench.texts TEXTS

What is in TEXTS then:

    long/train, long/measure     pages of Python's documentation, of 80 KB or more each
    short                        pages of both, of 7 to 9 KB each: about 2,000 tokens

Which pages they are hangs on a hash of their names and on the packages' version.
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


def pages(pattern: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Name and text of every page of a package, in the order of a hash of its name."""
    roots = sorted(Path("/").glob(pattern.lstrip("/")))
    if not roots:
        raise SystemExit(f"nothing at {pattern}: apt-get install python3-doc linux-doc")
    root = roots[-1]
    found = {str(path.relative_to(root)): path for path in root.rglob(f"*{suffix}")}
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        raw = found[name].read_bytes()
        yield name, (gzip.decompress(raw) if suffix.endswith(".gz") else raw).decode("utf-8", errors="replace")


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


if __name__ == "__main__":
    main()
