"""Texts for the other benchmarks, from Debian's packages ``python3-doc`` and ``linux-doc``; always the same texts.

    apt-get install python3-doc linux-doc
    python -m bench.texts TEXTS

TEXTS then holds:

    long/train, long/measure     pages of Python's documentation, of 80 KB or more each
    short                        pages of both packages, of 7 to 9 KB each: about 2,000 tokens
    kinds/observe                one page of each package, Python source, and a licence: for calibration
    kinds/measure                texts of other kinds: an article, a change log, HTML
    topics/training, measuring   Python's documentation topics (`pydoc_data`), several joined into each file
    recall/train                 50 pages of both packages that are in recall_pages.json
    recall/haystacks             24 other long pages, to hide facts in
    recall/loss/KIND             pages of each package, and modules of Python's library, to measure the loss
    memory/observe               nine such pages, seven modules of installed packages, an HTML page and a licence
    memory/measure               C headers of the kernel and of torch, a kind that is not observed

A hash of the names and the version of the packages decide which pages are chosen. The other texts come with every
Debian (Perl, the licences, the kernel's headers) and with Python and its packages, whose versions change them a little.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PYTHON = "/usr/share/doc/python3*-doc/html/_sources"
KERNEL = "/usr/share/doc/linux-doc-*/Documentation"
LONG = 80_000
SHORT = range(7_000, 9_000)
# Kinds of text. The first part of one file represents each kind.
KINDS = {
    "observe": {"source": "/usr/lib/python3*/tarfile.py", "licence": "/usr/share/common-licenses/GPL-3"},
    "measure": {
        "article": "/usr/share/perl/5.*/Locale/Maketext/TPJ13.pod",
        "changes": "/usr/share/doc/linux-doc-*/changelog.Debian.gz",
        "html": "/usr/share/doc/python3*-doc/html/howto/regex.html",
    },
}
KIND = 36_000
# For each folder: the name of each file, and its package and place there.
NAMED = {folder: Path(__file__).with_name(f"{folder}_pages.json") for folder in ("recall", "memory")}


def pages(pattern: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Name and text of every page of a package, ordered by a hash of the name."""
    root = newest(pattern)
    found = {str(path.relative_to(root)): path for path in root.rglob(f"*{suffix}")}
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield name, read(found[name])


def of_kind(name: str, pattern: str) -> tuple[str, str]:
    """Name and first part of the file that represents a kind of text."""
    return name, read(newest(pattern))[:KIND]


def newest(pattern: str) -> Path:
    """The last match of a pattern: the newest version."""
    found = sorted(Path("/").glob(pattern.lstrip("/")))
    if not found:
        raise SystemExit(f"nothing at {pattern}: apt-get install python3-doc linux-doc")
    return found[-1]


def packages() -> Path:
    """The folder of the installed packages."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise SystemExit("torch is not installed: make install")
    return Path(found.origin).parents[1]


def read(path: Path) -> str:
    """The text of a file, gzipped or not."""
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", errors="replace")


def write(folder: Path, texts: list[tuple[str, str]]) -> None:
    """Write one file for each page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts:
        stem = name.replace("/", "-").partition(".rst")[0]
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
    print(f"{folder}: {len(texts)} pages, {sum(len(text) for _, text in texts):,} characters")


def write_topics(folder: Path) -> None:
    """Write Python's documentation topics: three quarters to train on, the rest to measure on.

    Topics are short, so several are joined into one file to make long documents.
    """
    from pydoc_data.topics import topics

    joined: dict[tuple[str, str], list[str]] = {}
    for index, (_, text) in enumerate(sorted(topics.items())):
        half = "measuring" if index % 4 == 0 else "training"
        joined.setdefault((half, f"{index // 16}"), []).append(text)
    for half in ("training", "measuring"):
        write(folder / half, [(name, "\n".join(texts)) for (own, name), texts in joined.items() if own == half])


def write_named(folder: Path, names: Path) -> None:
    """Write the texts that a file names one by one."""
    python = newest(PYTHON)
    roots = {"kernel": newest(KERNEL), "python": python, "html": python.parent, "system": Path("/usr")}
    roots |= {"source": Path(sysconfig.get_paths()["stdlib"]), "packages": packages()}
    for part, pages_of_part in json.loads(names.read_text(encoding="utf-8")).items():
        found = []
        for name, place in pages_of_part.items():
            package, _, path = place.partition(":")
            found.append((name.removesuffix(".txt"), read(roots[package] / path)))
        write(folder / part, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--long", type=int, default=8, help="long pages for training, and as many for measuring")
    parser.add_argument("--short", type=int, default=30, help="short pages of each package")
    options = parser.parse_args()
    python = list(pages(PYTHON, ".rst.txt"))
    kernel = list(pages(KERNEL, ".rst.gz"))
    long = [page for page in python if len(page[1]) >= LONG]
    write(options.out / "long" / "train", long[: options.long])
    write(options.out / "long" / "measure", long[options.long : 2 * options.long])
    short = [[page for page in package if len(page[1]) in SHORT][: options.short] for package in (python, kernel)]
    write(options.out / "short", [page for package in short for page in package])
    write_topics(options.out / "topics")
    for folder, names in NAMED.items():
        write_named(options.out / folder, names)
    kinds = {half: [of_kind(*kind) for kind in files.items()] for half, files in KINDS.items()}
    for package, name in ((python, "python"), (kernel, "kernel")):
        kinds["observe"].append((name, next(text for _, text in package if len(text) in range(KIND, LONG))[:KIND]))
    for half, texts in kinds.items():
        write(options.out / "kinds" / half, texts)


if __name__ == "__main__":
    main()
