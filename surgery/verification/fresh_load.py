"""Script for a fresh process: load a converted checkpoint as another program would, and report the result.

It stands alone on purpose. Importing ``surgery`` and opening a connection both raise here, so what loads, loads from
the folder. The command line names files with one request each, a JSON object; each answer is a JSON object in the
file that its request names.
"""

from __future__ import annotations

import importlib.abc
import json
import socket
import sys
from typing import Any


class _Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "surgery" or fullname.startswith("surgery."):
            raise ImportError("surgery is not installed here")


def _no_network(*_: Any, **__: Any) -> None:
    raise OSError("no network here")


def _load(request: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import torch
    from transformers import AutoModelForCausalLM

    model: Any
    info: Any
    model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
        request["folder"],
        # Without modelling code of surgery, any code in the folder is foreign and is not run.
        trust_remote_code=request["own_code"],
        local_files_only=True,
        dtype=torch.float32,
        attn_implementation=request["attn_implementation"],
        output_loading_info=True,
    )
    model.eval()
    tokens = torch.tensor([request["tokens"]])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        generated = model.generate(tokens[:, :8], max_new_tokens=4, do_sample=False)
    numpy.save(request["logits"], logits.numpy())
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "parameters": {
            name: str(parameter.dtype).removeprefix("torch.")
            for name, parameter in model.named_parameters()
            if name in request["new_tensors"]
        },
        "generated": generated[0].tolist(),
    }


def _refusals(request: dict[str, Any]) -> dict[str, str | None]:
    """Error of the stock class for each way of loading; None if it loads, which is the worst outcome."""
    import transformers

    stock = getattr(transformers, request["stock_class"])
    said: dict[str, str | None] = {}
    for name in (None, "sdpa", "eager"):
        arguments = {} if name is None else {"attn_implementation": name}
        try:
            stock.from_pretrained(request["folder"], local_files_only=True, **arguments)
            said[str(name or "default")] = None
        except Exception as error:  # whatever it raises is a refusal, and is reported
            said[str(name or "default")] = f"{type(error).__name__}: {error}"[:400]
    return said


def _tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    answers: dict[str, Any] = {}
    ways: tuple[bool | None, ...] = (True, None) if request["own_code"] else (None,)
    if request["tokenizer_code"]:
        ways = (True,) if request["trust_tokenizer_code"] else (None,)
    for trust in ways:
        arguments = {} if trust is None else {"trust_remote_code": True}
        try:
            tokenizer = AutoTokenizer.from_pretrained(request["folder"], local_files_only=True, **arguments)
            answers["trusted" if trust else "plain"] = tokenizer(request["text"])["input_ids"]
        except Exception as error:  # reported as the answer; the caller decides whether it is a failure
            answers["trusted" if trust else "plain"] = f"{type(error).__name__}: {error}"[:400]
    return answers


def main() -> None:
    """Answer every request."""
    sys.meta_path.insert(0, _Blocked())
    socket.socket.connect = _no_network  # type: ignore[method-assign]
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            _answer(json.load(file))


def _answer(request: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(request["threads"])
    answer: dict[str, Any] = {}
    try:
        answer["load"] = _load(request)
    except Exception as error:  # the caller turns it into a failed check
        answer["error"] = f"{type(error).__name__}: {error}"[:2000]
    if request["own_code"] and request["stock_class"]:
        answer["refusals"] = _refusals(request)
    if request["has_tokenizer"]:
        answer["tokenizer"] = _tokenizer(request)
    with open(request["answer"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(answer, file)


if __name__ == "__main__":
    main()
