"""The main job on one model: make it find facts in long texts, prove what was done, and show the gain and its control.

    python examples/demo.py MODEL [FOLDER]

Every step is a command, printed before it runs. The texts are the documentation in the source files of torch, numpy and
transformers; `make demo` installs pinned versions, so they are the same everywhere. The control sharpens every head by
the same factor, which needs no texts and no calibration.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# To calibrate on, and other files of the same packages to measure on.
CALIBRATE = (
    "torch/_torch_docs.py",
    "torch/nn/modules/loss.py",
    "numpy/_core/_add_newdocs.py",
    "numpy/lib/_function_base_impl.py",
    "transformers/generation/logits_process.py",
    "transformers/tokenization_utils_base.py",
)
MEASURE = (
    "torch/_tensor_docs.py",
    "torch/functional.py",
    "torch/nn/modules/conv.py",
    "torch/nn/modules/activation.py",
    "numpy/_core/fromnumeric.py",
    "numpy/linalg/_linalg.py",
    "numpy/lib/_nanfunctions_impl.py",
    "transformers/generation/utils.py",
)
# With SmolLM2-135M about 480 s of a core in all: the calibration 205, the evaluation 236.
STEPS = 6


def write_texts(folder: Path, files: tuple[str, ...]) -> Path:
    """Copy source files of installed packages as text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        package, _, place = name.partition("/")
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        text = (Path(spec.origin).parent / place).read_text(encoding="utf-8")
        (folder / (name.replace("/", "-") + ".txt")).write_text(text, encoding="utf-8")
    return folder


def run(step: int, what: str, *arguments: str | Path, needed: bool = True) -> None:
    """Print a step and its ``surgery`` command, and run it. If it fails, the demo stops, unless it can do without."""
    words = ["surgery", *map(str, arguments)]
    print(f"\n[{step} of {STEPS}] {what}\n$ {shlex.join(words)}", flush=True)
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "surgery", *words[1:]]) as process:
        # Without this a kill of the demo would leave the command running.
        signal.signal(signal.SIGTERM, lambda number, frame: (process.terminate(), sys.exit(128 + number)))
        code = process.wait()
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    if code != 0 and needed:
        sys.exit(code)


def main(model: str, folder: Path) -> None:
    """Run every step; ``folder`` gets the texts, the models and the report."""
    began = time.monotonic()
    texts = write_texts(folder / "texts" / "calibrate", CALIBRATE)
    others = write_texts(folder / "texts" / "measure", MEASURE)
    recall, sharpened, plain, report = (folder / name for name in ("recall", "sharpened", "plain", "report"))
    run(1, "What attention does the model have?", "inspect", model)
    run(2, "Choose a temperature and a gain for each head, so that facts in long texts are found (2 to 3 minutes)",
        "convert", "--to", "ssmax", model, "-o", recall, "--calibrate", texts, "--lengths", "768",
        "--haystacks", "8", "--force")  # fmt: skip
    run(3, "The control: every head sharpened alike", "convert", "--to", "ssmax", "--form", "constant", "--start",
        "bias=1.2", model, "-o", sharpened, "--force")  # fmt: skip
    run(4, "Prove what was done (half a minute)", "verify", recall, "--against", model)
    run(5, "Write them into the weights: a plain checkpoint, for any program", "merge", recall, "-o", plain,
        "--force", needed=False)  # fmt: skip
    run(6, "Facts found and loss, on other texts (2 to 3 minutes)", "evaluate", recall, sharpened, "--against", model,
        "--suite", Path(__file__).with_name("demo-suite.yaml"), "--text", others, "-o", report, "--force")  # fmt: skip
    print(f"\n{time.monotonic() - began:.0f} s. The report: {report / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "demo"))
