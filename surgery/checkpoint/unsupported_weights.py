"""Errors for folders whose weights are not in safetensors, with the command that converts them.

Pickled files (.bin, .pt, .pth, .ckpt) are never opened, because loading them can run any code.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from surgery.checkpoint.hub_cache import snapshot_of
from surgery.errors import CheckpointError

_PICKLES = (".pt", ".pth", ".ckpt")


def no_weights_error(folder: Path, files: Iterable[str]) -> CheckpointError:
    """The error for a folder without safetensors weights; the hint has a command that creates them if there is one."""
    names = [name for name in files if "/" not in name]
    given, out = str(folder), f"{folder.name or 'model'}-safetensors"
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    bins = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    pickles = [name for name in names if PurePosixPath(name).suffix.lower() in _PICKLES]
    stray = [name for name in names if name.endswith(".safetensors")]
    if stray:
        return CheckpointError(
            f"the folder has {_some(stray)}, but neither model.safetensors nor model.safetensors.index.json, "
            "so it is unknown which tensors belong to the model",
            hint="Rename a single file to model.safetensors, or download the index of the shards.",
        )
    if bins:
        return _only("pickled .bin weights", bins, _resave(given, out))
    if ggufs:
        return _only("GGUF weights", ggufs, _resave(given, out, f", gguf_file={ggufs[0]!r}"))
    if pickles:
        line = (
            "import torch, safetensors.torch as st; "
            f"w = torch.load({str(folder / pickles[0])!r}, map_location='cpu', weights_only=True); "
            f"st.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, "
            f"{str(folder / 'model.safetensors')!r}, metadata={{'format': 'pt'}})"
        )
        return _only("pickled weights", pickles, _python(line))
    others = [name for name in names if name.endswith(".bin")]
    if others:
        return _only("pickled .bin weights", others, _resave(given, out))
    snapshot = snapshot_of(folder)
    if snapshot is not None:
        return CheckpointError(
            f"{snapshot.hub_id} has no safetensors weights in its cached snapshot",
            hint="If the repository has .bin files only, convert them first:\n  " + _resave(snapshot.hub_id, out),
        )
    return CheckpointError(
        "the folder has a config.json, but no weights: neither model.safetensors nor model.safetensors.index.json",
        hint="Give the folder with the weights, or a hub id.",
    )


def adapter_error(folder: Path) -> CheckpointError:
    """The error for a folder with a PEFT adapter, which is not a whole model."""
    line = shlex.join(["surgery", "merge", str(folder), "-o", f"{folder.name}-merged"])
    return CheckpointError(
        "the folder holds an adapter (adapter_config.json), not a whole model",
        hint="Give the base model, or merge the adapter into it first (with --base if it is not found):\n  " + line,
    )


def _only(what: str, names: list[str], command: str) -> CheckpointError:
    return CheckpointError(
        f"the folder holds only {what} ({_some(names)}), which surgery does not read",
        hint="Convert them to safetensors first:\n  " + command,
    )


def _resave(model: str, out: str, extra: str = "") -> str:
    return _python(
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained({model!r}, dtype='auto'{extra}).save_pretrained({out!r}); "
        f"T.from_pretrained({model!r}{extra}).save_pretrained({out!r})"
    )


def _python(line: str) -> str:
    """A shell command. Double quotes keep the single quotes of the code readable, if the shell allows them."""
    return f"python -c {shlex.quote(line)}" if set(line) & set('"$`\\!') else f'python -c "{line}"'


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
