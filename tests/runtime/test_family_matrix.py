"""Every family in short; and through the whole matrix, which is slow but for a few: identity, equalities of n,
generation, training, saving.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from surgery.anatomy import FAMILIES, read_anatomy
from surgery.checkpoint import load_json, open_checkpoint
from surgery.conversion import convert
from surgery.errors import PlanRefusedError
from surgery.loading import operation_modules
from surgery.loading.model import recompute
from surgery.verification.presentations import Multipliers, presentation_differences, randomized
from tests.families import TINY, VOCABULARY, WINDOW, auto_class, families_for_the_matrix, is_bounded

LENGTH = 3 * WINDOW
BOUND = 1e-4
MULTIPLIER_BOUND = 1e-6
FORMS = ("anchored", "bias", "constant", "logn", "paper")


def tokens(length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (1, length), generator=generator)


def load(folder: Path, **kwargs: Any) -> Any:
    model_type = load_json(folder / "config.json")["model_type"]
    # What was operated on answers to AutoModelForCausalLM, whatever its family does.
    auto = AutoModelForCausalLM if model_type.startswith("surgery_") else auto_class(model_type)
    return auto.from_pretrained(folder, trust_remote_code=False, **kwargs).eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(params=families_for_the_matrix())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def converted(make_source: Any, tmp_path: Path, family: str, form: str = "anchored", **options: Any) -> Path:
    return convert(make_source(family), form=form, layers="all", output=tmp_path / form, **options).output


def attention_layers(make_source: Any, family: str) -> list[int]:
    anatomy = read_anatomy(open_checkpoint(make_source(family)))
    return [layer.index for layer in anatomy.layers if layer.kind != "none" and not layer.scaled]


def test_every_family_has_a_tiny_configuration() -> None:
    assert set(TINY) == set(FAMILIES)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_in_short(make_source: Any, tmp_path: Path, model_type: str) -> None:
    """Convert, load strictly, identity, the equalities with random numbers, a training step, save and reload."""
    source = load(make_source(model_type))
    operated = load(converted(make_source, tmp_path, model_type, outputs="gain"))
    modules: dict[str, Any] = operation_modules(operated)
    assert torch.equal(logits(operated, tokens()), logits(source, tokens()))
    check_equalities(operated, model_type)

    optimizer = torch.optim.AdamW(
        [parameter for module in modules.values() for parameter in module.parameters()], lr=0.05, weight_decay=0.0
    )
    operated.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert all((module.scale != 0).all() for module in modules.values()), "a step moves every scale"
    assert all((module.gain != 1).all() for module in modules.values()), "a step moves every gain"
    operated.eval().save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again, tokens()), logits(operated, tokens()))


def check_equalities(model: Any, model_type: str) -> None:
    """With random scales: the multipliers agree in every presentation, the logits in all that the family allows."""
    family = FAMILIES[model_type]
    start = logits(model, tokens())
    with randomized(model, spread=0.3):
        assert (logits(model, tokens()) - start).abs().max() > 1e-2, "the random scales must matter"
        multipliers = presentation_differences(Multipliers(model), tokens())
        differences = presentation_differences(model, tokens())
    assert {name: value for name, value in multipliers.items() if not value <= MULTIPLIER_BOUND} == {}
    assert len(differences) == (9 if model._supports_sdpa else 8)
    found = {name: value for name, value in differences.items() if not value <= BOUND}
    assert found.keys() == family.breaks.keys(), {**found, "sdpa": model._supports_sdpa}


@pytest.mark.parametrize("form", ["anchored", "bias", "constant", "logn"])
def test_identity_at_the_start(make_source: Any, tmp_path: Path, family: str, form: str) -> None:
    if form == "logn" and is_bounded(make_source(family)):  # n never gets beyond the default N, which is the window
        with pytest.raises(PlanRefusedError, match=f"N = {WINDOW} has no effect: .* sees at most {WINDOW} keys"):
            converted(make_source, tmp_path, family, form)
        return
    source = load(make_source(family))
    operated = load(converted(make_source, tmp_path, family, form))
    assert operated.config._attn_implementation == source.config._attn_implementation
    assert torch.equal(logits(operated, tokens()), logits(source, tokens()))


def test_paper_form_is_not_the_identity(make_source: Any, tmp_path: Path, family: str) -> None:
    source = load(make_source(family))
    operated = load(converted(make_source, tmp_path, family, "paper"))
    assert (logits(operated, tokens()) - logits(source, tokens())).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["anchored", "bias", "paper"])
def test_equalities_of_n(make_source: Any, tmp_path: Path, family: str, form: str) -> None:
    check_equalities(load(converted(make_source, tmp_path, family, form)), family)


def test_every_layer_is_operated(make_source: Any, tmp_path: Path, family: str) -> None:
    """Changing the scale of any one layer changes the logits."""
    model = load(converted(make_source, tmp_path, family))
    start = logits(model, tokens())
    modules: dict[str, Any] = operation_modules(model)
    assert len(modules) == len(attention_layers(make_source, family))
    for name, module in modules.items():
        with torch.no_grad():
            module.scale += 0.2
            changed = logits(model, tokens())
            module.scale -= 0.2
        assert (changed - start).abs().max() > 1e-4, name


def test_generation_equals_a_plain_loop(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(converted(make_source, tmp_path, family, "paper"))
    prompt = tokens(12)
    generated = model.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    by_hand = prompt
    for _ in range(6):
        scores = logits(model, by_hand)[:, -1]
        scores[:, model.generation_config.eos_token_id] = -torch.inf
        by_hand = torch.cat([by_hand, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, by_hand)


def test_padded_batch_generates_as_single_rows(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(converted(make_source, tmp_path, family, "paper"))
    long, short = tokens(14), tokens(9)
    padded = torch.nn.functional.pad(short, (5, 0), value=0)
    mask = (torch.arange(14) >= torch.tensor([[0], [5]])).long()
    together = model.generate(torch.cat([long, padded]), attention_mask=mask, max_new_tokens=5, do_sample=False)
    for row, prompt in zip(together, (long, short), strict=True):
        alone = model.generate(prompt, max_new_tokens=5, do_sample=False)[0]
        new = row[14:]
        assert torch.equal(new[: len(alone) - prompt.shape[1]], alone[prompt.shape[1] :])


def test_one_training_step_moves_every_scale_and_survives_saving(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(converted(make_source, tmp_path, family)).train()
    scales = {name: p for name, p in model.named_parameters() if name.endswith("ssmax.scale")}
    before = {name: p.detach().clone() for name, p in scales.items()}
    optimizer = torch.optim.AdamW(list(scales.values()), lr=0.05, weight_decay=0.0)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert all((p.detach() != before[name]).all() for name, p in scales.items())
    model.eval().save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))
    assert (tmp_path / "saved" / "modeling_surgery.py").is_file()


def test_chosen_layers_and_heads_only(make_source: Any, tmp_path: Path, family: str) -> None:
    chosen = str(attention_layers(make_source, family)[-1])
    folder = convert(
        make_source(family), form="paper", layers=chosen, heads="2", output=tmp_path / "one", start={"scale": 0.5}
    ).output
    model = load(folder)
    modules: dict[str, Any] = operation_modules(model)
    assert [next(part for part in name.split(".") if part.isdigit()) for name in modules] == [chosen]
    (module,) = modules.values()
    assert module.scale.shape == (1,)
    multiplier = module(torch.tensor([[1.0, 10.0]]))
    assert multiplier.shape == (1, 4, 2, 1)
    assert torch.equal(multiplier[0, [0, 1, 3]], torch.ones(3, 2, 1))
    assert torch.allclose(multiplier[0, 2, :, 0], 0.5 * torch.tensor([1.0, 10.0]).log())


def test_gradient_checkpointing_gives_the_same_gradients(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(converted(make_source, tmp_path, family, "paper")).train()
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers' own model has no gradient checkpointing")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            recompute(model, True)
        model.zero_grad()
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if "ssmax" in n})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_a_model_built_from_its_config_starts_at_the_start_values(
    make_source: Any, tmp_path: Path, family: str
) -> None:
    model = load(converted(make_source, tmp_path, family, "bias", start={"scale": 0.25, "bias": 0.5}))
    fresh = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    modules: dict[str, Any] = operation_modules(fresh)
    assert len(modules) == len(attention_layers(make_source, family))
    for module in modules.values():
        assert (module.scale == 0.25).all() and (module.bias == 0.5).all()
