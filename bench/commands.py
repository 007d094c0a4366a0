"""Time of the light commands; time and memory of a linked conversion against loading and saving the model.

python -m bench.commands MODEL [--repeats 7] [--out docs/results/data/commands.json]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import arguments, report
from surgery.evaluation.speed.stopwatch import interleaved, ratio


def process(*arguments: str) -> Callable[[], Any]:
    """A call that runs Python with these arguments, and raises if Python fails."""

    def call() -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return call


def peak_megabytes(*arguments: str) -> float:
    """Peak resident memory of one new process."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    said = subprocess.run([sys.executable, "-c", code, sys.executable, *arguments], check=True, capture_output=True)
    return int(said.stdout) / 1024


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    model = str(options.model)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out, saved = str(Path(folder) / "out"), str(Path(folder) / "saved")
        load_and_save = (
            "import sys; from transformers import AutoModelForCausalLM as A; "
            "A.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
        )
        light = process("-c", "import typer, rich")
        convert = ("-m", "surgery", "convert", "--to", "ssmax", model, "-o", out, "--link", "--force")
        pairs: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
            "--help": (process("-m", "surgery", "--help"), "import typer, rich", light),
            "inspect": (process("-m", "surgery", "inspect", model), "import typer, rich", light),
            "convert --dry-run": (
                process("-m", "surgery", "convert", "--to", "ssmax", model, "--dry-run"),
                "import typer, rich",
                light,
            ),
            "convert --link": (process(*convert), "load and save", process("-c", load_and_save, model, saved)),
        }
        for name, (way, label, against) in pairs.items():
            seconds = interleaved({"way": way, "against": against}, options.repeats)
            middle = {key: sorted(values)[len(values) // 2] for key, values in seconds.items()}
            rows.append(
                {
                    "command": name,
                    "seconds": middle["way"],
                    "against": label,
                    "its seconds": middle["against"],
                    "ratio": ratio(seconds, "way", "against"),
                }
            )
        rows[-1]["peak MB"] = peak_megabytes(*convert)
        rows[-1]["its peak MB"] = peak_megabytes("-c", load_and_save, model, saved)
    keys = list(rows[-1])
    report("commands", [{key: row.get(key, "") for key in keys} for row in rows], options.out)


if __name__ == "__main__":
    main()
