"""A tiny tokenizer, a tiny model that has learned to copy, and texts that need copying."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

WORDS = 60
PERIOD = 6
OPERATION = {
    "name": "ssmax",
    "form": "anchored",
    "reference_length": 64,
    "layers": [0, 1],
    "heads": None,
    "start": {"scale": 0.0},
}


def save_tokenizer(folder: Path, *, order: int = 1, bos: bool = False) -> None:
    """One token per word ``w0`` to ``w59``, numbered upwards or, with order -1, downwards."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"w{number}": 3 + place for place, number in enumerate(range(WORDS)[::order])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def copying_text(seed: int, words: int) -> str:
    """Six random words, over and over: after the first round each word is the one six before."""
    draw = random.Random(seed)
    cycle = [f"w{draw.randrange(WORDS)}" for _ in range(PERIOD)]
    return " ".join(cycle[place % PERIOD] for place in range(words))


def _config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for seed in range(8):
        (folder / f"text-{seed}.txt").write_text(copying_text(seed, 48 + 16 * (seed % 2)))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, trained for two seconds to copy."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(_config())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(150):
            cycles = torch.randint(3, WORDS + 3, (32, PERIOD))
            batch = cycles.repeat(1, 4)
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def shuffled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the query heads of each layer in another order, keys and values where they were."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-shuffled"
    model = LlamaForCausalLM.from_pretrained(trained)
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.self_attn.q_proj.weight
            weight.copy_(weight.view(4, 8, 32)[[1, 2, 3, 0]].reshape(32, 32))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def operated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with SSMax, at its start."""
    import torch
    from safetensors.torch import load_file, save_file

    from surgery.runtime import lock

    folder = tmp_path_factory.mktemp("models") / "tiny-ssmax"
    shutil.copytree(trained, folder)
    block = {
        "format_version": 1,
        "plan_hash": "0123abcd",
        "attention": "layers.{layer}.self_attn",
        "operations": [OPERATION],
    }
    config = json.loads((trained / "config.json").read_text())
    config |= {"model_type": "surgery_llama", "architectures": ["SurgeryLlamaForCausalLM"], "surgery": block}
    (folder / "config.json").write_text(json.dumps(lock(config)))
    weights = load_file(trained / "model.safetensors")
    weights |= {f"model.layers.{layer}.self_attn.ssmax.scale": torch.zeros(4) for layer in (0, 1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> Any:
    """``copy_of(folder)``: a copy that a test may change."""

    def copy(folder: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return copy
