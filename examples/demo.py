"""The whole job on one model: inspect, convert, verify, finetune, evaluate, report.

    python examples/demo.py MODEL [FOLDER]

Every step is a command that is printed before it runs. The texts are Python's documentation topics (``pydoc_data``):
three quarters for training, the rest for measuring.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Write Python's documentation topics as text files.

    Topics are short, so several are joined into one file to make long documents.

    Returns:
        The training folder and the measuring folder; no text is in both.
    """
    from pydoc_data.topics import topics

    training, measuring = folder / "training", folder / "measuring"
    joined: dict[Path, list[str]] = {}
    for index, (_, text) in enumerate(sorted(topics.items())):
        target = measuring if index % 4 == 0 else training
        joined.setdefault(target / f"{index // 16}.txt", []).append(text)
    for path, texts in joined.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(texts), encoding="utf-8")
    return training, measuring


def run(*arguments: str | Path) -> None:
    """Print a ``surgery`` command, run it, and stop the demo if it fails."""
    words = ["surgery", *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "surgery", *words[1:]], check=False).returncode
    if code != 0:
        sys.exit(code)


def main(model: str, folder: Path) -> None:
    """Run every step; ``folder`` gets the texts, the models and the report."""
    began = time.monotonic()
    training, measuring = write_texts(folder / "texts")
    converted, trained, report = folder / "converted", folder / "trained", folder / "report"
    run("inspect", model)
    run("convert", "--to", "ssmax", model, "-o", converted, "--force")
    run("verify", converted, "--against", model)
    run("finetune", Path(__file__).parent.parent / "recipes" / "ssmax-scale.yaml", "--set", f"model={converted}",
        "--set", f"data.text={training}", "--set", f"output={trained}",
        "--set", "budget.tokens=8000", "--set", "evaluation.sequences=2", "--force")  # fmt: skip
    run("evaluate", trained, "--against", model, "--text", measuring, "--length", "1024", "--documents", "4",
        "-o", report, "--force")  # fmt: skip
    print(f"\n{time.monotonic() - began:.0f} s. The report: {report / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "demo"))
