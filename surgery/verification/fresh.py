"""Checks that need a fresh process: loading without this package or a network, and refusal by stock classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import VerificationError
from surgery.operations import OPERATIONS
from surgery.verification.checks import Check, Status, bounded

if TYPE_CHECKING:
    import torch

TIMEOUT_SECONDS = 3600
TOKENIZER_CHECK = "tokenizer loads, nothing waits"


@dataclass(frozen=True)
class FreshRequest:
    """What a fresh process loads and computes, as plain data.

    ``own_code``: the checkpoint carries modelling code, and the stock class, if there is one, must refuse it.
    ``tokenizer_code``: the tokenizer brings code too, which runs only with ``trust_tokenizer_code``.
    ``every_tensor``: the model's class must use every tensor of the checkpoint.
    """

    folder: Path
    stock_class: str | None
    attn_implementation: str
    tokens: list[int]
    text: str
    new_tensors: list[str]
    has_tokenizer: bool
    own_code: bool = True
    tokenizer_code: bool = False
    trust_tokenizer_code: bool = False
    every_tensor: bool = False


def ask(requests: Sequence[FreshRequest]) -> list[tuple[dict[str, Any], Any]]:
    """Run the requests one after the other in a fresh, isolated process with stdin closed.

    Returns:
        For each request the answer, and the logits ``(1, tokens, vocabulary)`` as an array, or None where loading
        failed.

    Raises:
        VerificationError: the process died or did not end.
    """
    import numpy
    import torch

    with tempfile.TemporaryDirectory(prefix="surgery-verify-") as temporary:
        scratch = Path(temporary)
        for number, request in enumerate(requests):
            content = {
                **request.__dict__,
                "folder": str(request.folder.resolve()),
                "logits": str(scratch / f"logits-{number}.npy"),
                "answer": str(scratch / f"answer-{number}.json"),
                "threads": torch.get_num_threads(),
            }
            (scratch / f"request-{number}.json").write_text(json.dumps(content), encoding="utf-8")
        paths = [str(scratch / f"request-{number}.json") for number in range(len(requests))]
        # The process uses no cache of this user and leaves none behind.
        environment = {
            **os.environ,
            "HF_HOME": str(scratch / "hf"),
            "HF_MODULES_CACHE": str(scratch / "modules"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment.pop("PYTHONPATH", None)
        with as_file(files(__package__).joinpath("fresh_load.py")) as script:
            try:
                process = subprocess.run(
                    [sys.executable, "-I", str(script), *paths],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise VerificationError(f"the fresh process did not end within {TIMEOUT_SECONDS} s") from error
        if not (scratch / f"answer-{len(requests) - 1}.json").is_file():
            raise VerificationError(
                f"the fresh process ended with {process.returncode}: {process.stderr.strip()[-800:]}"
            )
        answers = []
        for number in range(len(requests)):
            answer = json.loads((scratch / f"answer-{number}.json").read_text(encoding="utf-8"))
            logits = numpy.load(scratch / f"logits-{number}.npy") if "load" in answer else None
            answers.append((answer, logits))
    return answers


def fresh_checks(request: FreshRequest, here: torch.Tensor, reference_tokens: list[int] | None) -> list[Check]:
    """The checks that a fresh process answers.

    Args:
        request: what to ask.
        here: logits ``(1, tokens, vocabulary)`` that this process got for the same tokens.
        reference_tokens: what the source's tokenizer makes of ``request.text``, if there is one to compare with.
    """
    ((answer, logits),) = ask([request])
    return judge(request, answer, logits, here, reference_tokens)


def judge(
    request: FreshRequest, answer: dict[str, Any], logits: Any, here: torch.Tensor, reference_tokens: list[int] | None
) -> list[Check]:
    """As :func:`fresh_checks`, for an answer that is already there."""
    import torch

    name = "loads without surgery, offline"
    checks = []
    if "load" not in answer:
        checks.append(Check(name, "failed", answer["error"]))
    else:
        load = answer["load"]
        strange = load["unexpected"] if request.every_tensor else []
        own = strange or [key for key in load["unexpected"] if set(key.split(".")) & OPERATIONS.keys()]
        wrong = [f"missing {key}" for key in load["missing"]] + [f"unexpected {key}" for key in own]
        wrong += [f"{key} is {dtype}" for key, dtype in load["parameters"].items() if dtype != "float32"]
        wrong += [f"{key} was not loaded" for key in request.new_tensors if key not in load["parameters"]]
        detail = f"{load['class']}, {_leftover(load['unexpected'])}, generates"
        checks.append(Check(name, "failed" if wrong else "passed", "; ".join(wrong[:5]) or detail))
        difference = (torch.from_numpy(logits) - here.cpu()).abs().max().item()
        checks.append(bounded("same logits without surgery", difference, 0.0))
    if not request.own_code:
        if "load" in answer:
            own = answer["load"]["class"]
            status: Status = "passed" if own == request.stock_class else "failed"
            checks.append(Check("stock class runs it", status, f"{own}, as transformers has it"))
    elif request.stock_class is not None:
        checks.append(_refusal_check(request, answer))
    if request.has_tokenizer:
        checks.append(_tokenizer_check(answer["tokenizer"], reference_tokens))
    return checks


def _leftover(names: Sequence[str]) -> str:
    """What is said of tensors that the model's class does not use."""
    if not names:
        return "no missing or unexpected tensor"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"no missing tensor, the class ignores {names[0]}{more}"


def _refusal_check(request: FreshRequest, answer: dict[str, Any]) -> Check:
    loaded = [way for way, said in answer["refusals"].items() if said is None]
    refused = f"{request.stock_class}: {len(answer['refusals'])} ways refused"
    silently = f"{request.stock_class} loads it silently with {', '.join(loaded)}"
    return Check("stock classes refuse it", "failed" if loaded else "passed", silently if loaded else refused)


def _tokenizer_check(answers: dict[str, Any], reference: list[int] | None) -> Check:
    name = TOKENIZER_CHECK
    broken = {way: said for way, said in answers.items() if not isinstance(said, list)}
    if broken:
        return Check(name, "failed", "; ".join(f"{way}: {said}" for way, said in broken.items()))
    if reference is not None and any(said != reference for said in answers.values()):
        return Check(name, "failed", "its tokens of a text differ from those of the source's tokenizer")
    ways = list(answers.values())
    if any(way != ways[0] for way in ways):
        return Check(name, "failed", "its tokens of a text differ with and without trust_remote_code")
    return Check(name, "passed", f"{len(ways[0])} tokens, as the source's" if reference else "loads")
