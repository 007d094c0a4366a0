"""Programs that train and measure models of transformers: TRL and lm-eval."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.interop.conftest import Operated, load, logits, scales
from tests.tokenizers import save_tiny_tokenizer

TEXT = "one two three four five six seven eight nine ten"


@pytest.fixture
def folder(operated: Operated, tmp_path: Path) -> Path:
    """A converted checkpoint with a tokenizer of characters."""
    made = shutil.copytree(operated(), tmp_path / "model")
    save_tiny_tokenizer(made)
    return made


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_trl_trains_the_scales(folder: Path, tmp_path: Path, packing: bool) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed: make test-interop")
    from datasets import Dataset
    from transformers import AutoTokenizer

    model = load(folder)
    start = {name: value.detach().clone() for name, value in scales(model).items()}
    counted: list[torch.Tensor] = []
    model.model.layers[1].self_attn.ssmax.register_forward_pre_hook(lambda _, given: counted.append(given[0].clone()))
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in scales(model).items():
        parameter.register_post_accumulate_grad_hook(
            lambda value, name=name: gradients.update({name: value.grad.clone()})
        )
    lengths = [30, 20]
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        train_dataset=Dataset.from_dict({"text": [TEXT[:length] for length in lengths]}),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            max_length=64,
            packing=packing,
            packing_strategy="bfd",
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
    )
    trainer.train()
    assert set(gradients) == set(start) and all(grad.abs().sum() > 0 for grad in gradients.values())
    moved = {name: value.detach().clone() for name, value in scales(model).items()}
    assert all((value != start[name]).all() for name, value in moved.items())
    # TRL ends each text with a token of its own. Padding counts the keys before it; a packed text starts again.
    long, short = [list(range(1, length + 2)) for length in lengths]
    padding = [] if packing else short[-1:] * (len(long) - len(short))
    assert counted[0].shape[0] == (1 if packing else 2)
    assert sorted(counted[0].flatten().tolist()) == sorted([*long, *short, *padding])
    trainer.save_model(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert all(torch.equal(value, moved[name]) for name, value in scales(again).items())
    assert torch.equal(logits(again), logits(model.eval()))


def test_lm_eval_measures_it_by_its_own_loader(folder: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[eval]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    measured = HFLM(
        pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2, dtype="float32", add_bos_token=False
    )
    assert type(measured.model).__name__ == "SurgeryLlamaForCausalLM"
    questions = [(TEXT[:20], TEXT[20:30]), (TEXT[:5], TEXT[5:40])]  # of two lengths, so that one is padded
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=question, idx=number)
        for number, question in enumerate(questions)
    ]
    found = measured.loglikelihood(instances, disable_tqdm=True)
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for (context, continuation), (value, greedy) in zip(questions, found, strict=True):
        ids = torch.tensor([tokenizer.encode(context + continuation)])
        chances = logits(model, ids)[0, :-1].log_softmax(-1)
        rows, after = torch.arange(len(context) - 1, ids.shape[1] - 1), ids[0, len(context) :]
        assert value == pytest.approx(chances[rows, after].sum().item(), abs=1e-3)
        assert greedy == torch.equal(chances[rows].argmax(-1), after)
