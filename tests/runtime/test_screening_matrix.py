"""Screening on every family: identity when open, equality of presentations, against an independent oracle, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from surgery.anatomy import FAMILIES
from surgery.conversion import convert
from surgery.errors import PlanRefusedError
from surgery.loading import operation_modules
from surgery.loading.model import recompute
from surgery.operations import OPERATIONS
from surgery.verification.presentations import presentation_differences, randomized
from tests.families import VOCABULARY, WINDOW, families_for_the_matrix
from tests.runtime.test_family_matrix import BOUND, load, logits, tokens

THRESHOLDS = torch.tensor([-0.3, -0.1, 0.1, 0.2])
SOFTNESS = torch.tensor([0.1, 0.3, 0.0, 0.2])
WINDOWS = torch.tensor([9, 64, 30, 12])
SINKS = 2


@pytest.fixture(params=families_for_the_matrix())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def screened(source: Path, out: Path, **options: Any) -> Path:
    if reason := OPERATIONS["screening"].family_refusal(FAMILIES[source.name.removeprefix("tiny-")]):
        with pytest.raises(PlanRefusedError, match=reason):
            convert(source, "screening", layers="all", output=out, **{"open": True, **options})
        pytest.skip(reason)
    return convert(source, "screening", layers="all", output=out, **{"open": True, **options}).output


def test_open_is_exactly_the_source(make_source: Any, tmp_path: Path, family: str) -> None:
    source = load(make_source(family))
    operated = load(screened(make_source(family), tmp_path / "out"))
    assert torch.equal(logits(operated, tokens()), logits(source, tokens()))
    modules: dict[str, Any] = operation_modules(operated)
    assert {module.path for module in modules.values()} == {"open"}


def test_the_reference_path_is_exact_where_everything_is_accepted(
    make_source: Any, tmp_path: Path, family: str
) -> None:
    """The same as above through every operation of the reference, which runs where parameters get gradients."""
    source = load(make_source(family), attn_implementation="eager")
    operated = load(screened(make_source(family), tmp_path / "out"), attn_implementation="eager")
    modules: dict[str, Any] = operation_modules(operated)
    assert torch.equal(operated(input_ids=tokens()).logits, logits(source, tokens()))
    assert {module.path for module in modules.values()} == {"reference"}


def test_presentations_agree(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(screened(make_source(family), tmp_path / "out"))
    start = logits(model, tokens())
    with randomized(model):
        assert (logits(model, tokens()) - start).abs().max() > 1e-1, "the random thresholds must matter"
        differences = presentation_differences(model, tokens())
    assert len(differences) == (9 if model._supports_sdpa else 8)
    found = {name: value for name, value in differences.items() if not value <= BOUND}
    assert {name: value for name, value in found.items() if name not in FAMILIES[family].breaks} == {}


def oracle(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Row by row from the definition: the old weights times alpha and window, over their sum."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    allowed = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    scores = query @ key.transpose(-1, -2) * kwargs["scaling"]
    if kwargs.get("softcap") is not None:
        scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
    out = torch.zeros_like(query)
    first = module.first_token
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            for i in range(query.shape[2]):
                seen = allowed[row, 0, i].nonzero().flatten()
                if not len(seen):
                    continue
                rho = torch.cosine_similarity(query[row, head, i : i + 1], key[row, head, seen], dim=-1)
                above = rho - THRESHOLDS[head]
                alpha = (above / SOFTNESS[head]).clamp(0, 1) ** 2 if SOFTNESS[head] else (above > 0).float()
                alpha = alpha * ((i - seen) < WINDOWS[head])
                begins = first[row]
                if module.chunk is not None:
                    begins += (i - begins) // module.chunk * module.chunk
                alpha[seen < begins + SINKS] = 1
                weights = scores[row, head, i, seen].exp() * alpha
                if weights.sum() > 0:
                    out[row, head, i] = (weights / weights.sum()) @ value[row, head, seen]
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def _oracle() -> Any:
    AttentionInterface.register("screening_oracle", oracle)
    AttentionMaskInterface.register("screening_oracle", eager_mask)
    yield
    del AttentionInterface._global_mapping["screening_oracle"]
    del AttentionMaskInterface._global_mapping["screening_oracle"]


@pytest.mark.usefixtures("_oracle")
def test_the_model_computes_screening(make_source: Any, tmp_path: Path, family: str) -> None:
    stock = load(make_source(family), attn_implementation="screening_oracle")
    operated = load(screened(make_source(family), tmp_path / "out", sinks=SINKS))
    set_parameters(operated)
    ids = torch.randint(3, VOCABULARY, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0  # one row is left-padded
    for module in stock.modules():
        module.first_token = [0, 9]
        # Llama 4's layers with rotary positions have chunks.
        module.chunk = getattr(module.config, "attention_chunk_size", None) if getattr(module, "use_rope", 0) else None
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        found = operated(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert (expected - found).abs().max() < 2e-4


def set_parameters(model: Any) -> None:
    modules: dict[str, Any] = operation_modules(model)
    with torch.no_grad():
        for module in modules.values():
            module.threshold.copy_(THRESHOLDS)
            module.softness.copy_(SOFTNESS)
            module.log2_window.copy_(WINDOWS.float().log2())


def test_generation_equals_a_plain_loop(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(screened(make_source(family), tmp_path / "out"))
    set_parameters(model)
    prompt = tokens(20)
    generated = model.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    by_hand = prompt
    for _ in range(6):
        scores = logits(model, by_hand)[:, -1]
        scores[:, model.generation_config.eos_token_id] = -torch.inf
        by_hand = torch.cat([by_hand, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, by_hand)


def test_a_training_step_moves_every_parameter_and_survives_saving(
    make_source: Any, tmp_path: Path, family: str
) -> None:
    model = load(screened(make_source(family), tmp_path / "out")).train()
    set_parameters(model)
    learned = {name: p for name, p in model.named_parameters() if ".screening." in name}
    before = {name: p.detach().clone() for name, p in learned.items()}
    optimizer = torch.optim.SGD(list(learned.values()), lr=1.0)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    gradients = {name: p.grad for name, p in learned.items()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    optimizer.step()
    moved = {name: p.detach() != before[name] for name, p in learned.items()}
    windows = torch.stack([heads for name, heads in moved.items() if name.endswith("log2_window")])
    assert all(heads.sum() >= 3 for name, heads in moved.items() if not name.endswith("log2_window")), moved
    # Head 1's window is wider than the sequence: its edge may not be felt. The others move, each in some layer, for
    # a window's gradient is zero where no key near its edge passes the threshold.
    assert windows.any(0)[[0, 2, 3]].all(), moved
    with torch.no_grad():
        for name, p in learned.items():
            if name.endswith("softness"):
                p.clamp_(min=0.05)
    model.eval().save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


def test_gradient_checkpointing_gives_the_same_gradients(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(screened(make_source(family), tmp_path / "out")).train()
    set_parameters(model)
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers' own model has no gradient checkpointing")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            recompute(model, True)
        model.zero_grad()
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if ".screening." in n})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name
