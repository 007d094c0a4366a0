"""Tiny checkpoints of packed weights: FP8 by hand, and what other libraries write where they are installed.

They are the extra ``[quantized]``, which `make test-all` installs.
"""

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


def compressed_tensors(plain: Path, folder: Path) -> None:
    """As llm-compressor publishes: eight int4 weights in an int32, a scale for each group of 32."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=32)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    settings = QuantizationConfig(config_groups=groups, ignore=["lm_head"], format="pack-quantized")
    model = AutoModelForCausalLM.from_pretrained(plain)
    apply_quantization_config(model, settings)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            each = module.weight.view(module.weight.shape[0], -1, 32)
            module.weight_scale.data.copy_(calculate_qparams(each.amin(-1), each.amax(-1), weights)[0])
    ModelCompressor(quantization_config=settings).compress_model(model)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    method = {**json.loads(settings.model_dump_json(exclude_none=True)), "quantization_status": "compressed"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))


METHODS: dict[str, Callable[[Path, Path], None]] = {
    "fp8": fp8,
    "bitsandbytes": bitsandbytes,
    "torchao": torchao,
    "compressed-tensors": compressed_tensors,
}


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
