"""Tiny checkpoints of packed weights: FP8 by hand, and what bitsandbytes and torchao write where they are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import tiny_model
from tests.recovery.conftest import converted, make_recipe, texts, write_tokenizer  # noqa: F401

BLOCK = 64
Quantized = Callable[[str], Path]


def fp8(plain: Path, folder: Path) -> None:
    """As DeepSeek and Qwen publish: the weights of the layers in float8 with one float32 scale per block."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if "proj" not in name:
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        packed = (blocks / scales[:, None, :, None]).view(rows, columns)
        tensors[name] = packed.to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    method = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))


def _by_transformers(plain: Path, folder: Path, settings: Any) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings).save_pretrained(folder)


def bitsandbytes(plain: Path, folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    import torch
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    _by_transformers(plain, folder, settings)


def torchao(plain: Path, folder: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    _by_transformers(plain, folder, TorchAoConfig(quantization.Int8WeightOnlyConfig()))


METHODS: dict[str, Callable[[Path, Path], None]] = {"fp8": fp8, "bitsandbytes": bitsandbytes, "torchao": torchao}


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """``quantized("fp8")``: a tiny Llama packed so, with a byte tokenizer; made once, never written to."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp("quantized")
            sizes = {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 4}
            tiny_model("llama", **sizes).save_pretrained(folder / "plain")
            METHODS[method](folder / "plain", folder / method)
            write_tokenizer(folder / method)
            made[method] = folder / method
        return made[method]

    return make
