"""Each option of a recipe does what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.data import Row, collate
from surgery.errors import PlanRefusedError, SurgeryError, UsageError
from surgery.loading import RunOptions, load_model
from surgery.loading.model import recompute
from surgery.recovery import DivergedError, finetune, read_recipe
from surgery.recovery.api import read_rows
from surgery.recovery.layout import Layout
from surgery.recovery.lora import prepare_model
from surgery.recovery.needs import effective_precision
from surgery.recovery.parameters import operation_parameters, optimizer_groups
from surgery.recovery.stage_hooks import stage_hooks
from surgery.recovery.teachers import SameWeights, attention_modules, original
from surgery.training.arguments import training_arguments
from surgery.training.dataset import TrainingData
from surgery.training.folder import TrainingFolder
from surgery.training.logits import token_logits
from surgery.training.losses import next_token_sum
from surgery.training.objectives import NextToken
from surgery.training.rows import StageRows
from surgery.training.trainer import StageTrainer
from surgery.training.trial import trial
from tests.recovery.conftest import Converted, MakeRecipe, objective_sum


def _draw(model: Any, seed: int = 0) -> Any:
    """The operation's parameters at random, so that nothing agrees trivially."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".ssmax." in name:
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) * 0.6 - 0.1)
    return model


def _rows(seed: int = 0, count: int = 6) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 14, (count,), generator=generator).tolist()
    return [Row((tuple(torch.randint(3, 250, (length,), generator=generator).tolist()),)) for length in lengths]


def _mean_loss(model: Any, rows: list[Row]) -> float:
    batch = collate(rows)
    with torch.no_grad():
        return next_token_sum(token_logits(model, batch)[:, :-1], batch["labels"][:, 1:]).item() / sum(
            row.targets for row in rows
        )


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_packed_equals_unpacked(converted: Converted, family: str) -> None:
    options = {"attention": "layers.{layer}.attention", "prefix": "gpt_neox."} if family == "gpt_neox" else {}
    model = _draw(load_model(converted(family, spread=0.3, **options), RunOptions(device="cpu")))
    rows = _rows()
    packed = [Row(tuple(document for row in rows[:4] for document in row.documents)), Row(rows[4].documents), rows[5]]
    alone = sum(_mean_loss(model, [row]) * row.targets for row in rows) / sum(row.targets for row in rows)
    assert _mean_loss(model, packed) == pytest.approx(alone, abs=2e-6)
    assert _mean_loss(model, rows) == pytest.approx(alone, abs=2e-6)  # padded
    merged = [Row((tuple(token for row in rows for document in row.documents for token in document),))]
    assert abs(_mean_loss(model, merged) - alone) > 1e-3  # borders do matter


def _trainer(recipe: dict[str, Any], folder: Path, rows: list[Row] | None = None) -> StageTrainer:
    valid = read_recipe(recipe)
    checkpoint = open_checkpoint(Path(valid.model))
    layout = Layout(checkpoint.config)
    valid = valid.model_copy(update={"precision": effective_precision(valid, checkpoint)})
    dtype = "bfloat16" if valid.precision == "bfloat16" else "float32"
    model = prepare_model(load_model(Path(valid.model), RunOptions(device="cpu", dtype=dtype)), valid, layout)
    training = TrainingFolder(folder / "run")
    training.path.mkdir(parents=True)
    options = valid.training_options()
    return StageTrainer(
        model,
        training_arguments(options, training.path, valid.length.steps or 1, "cpu"),
        options=options,
        folder=training,
        rows=StageRows(train=[rows or _rows(count=8)], held_out=_rows(seed=1, count=3)),
        teacher=SameWeights(),
        extensions=stage_hooks(model, layout, valid),
        groups=optimizer_groups,
    )


def test_mixed_precision_reaches_matched_attention(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path
) -> None:
    recipe = make_recipe(converted(form="paper"), objective={"name": "match"}, precision="bfloat16-mixed")
    trainer = _trainer(recipe, tmp_path)
    seen: list[torch.dtype] = []
    for module in attention_modules(trainer.module).values():
        projection = module.get_submodule("q_proj")
        projection.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer.compute_loss(trainer.module, collate(_rows()))
    assert len(seen) == 6 and set(seen) == {torch.bfloat16}  # of three layers, teacher and student


def _losses(trainer: StageTrainer) -> list[dict[str, Any]]:
    trainer.train()
    return [row for row in trainer.folder.rows() if "loss" in row]


@pytest.mark.parametrize("what", ["scale", "scale+lora", "full"])
def test_optimizer_groups(make_recipe: MakeRecipe, tmp_path: Path, what: str) -> None:
    optimizer: dict[str, Any] = {"scale_lr": 0.03, "betas": [0.8, 0.9], "epsilon": 1e-7}
    if what != "scale":
        optimizer |= {"lr": 2e-4, "weight_decay": 0.1}
    trainer = _trainer(make_recipe(train={"what": what}, optimizer=optimizer), tmp_path)
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    scales = {id(parameter) for parameter in operation_parameters(trainer.module).values()}
    assert len(scales) == 3
    assert {id(parameter) for parameter in groups["scale"]["params"]} == scales
    assert (groups["scale"]["lr"], groups["scale"]["weight_decay"]) == (0.03, 0.0)
    assert groups["scale"]["betas"] == (0.8, 0.9) and groups["scale"]["eps"] == 1e-7
    if what != "scale":
        assert (groups["weights"]["lr"], groups["weights"]["weight_decay"]) == (2e-4, 0.1)
    if what == "full":
        assert (groups["no_decay"]["lr"], groups["no_decay"]["weight_decay"]) == (2e-4, 0.0)
        assert all(parameter.dim() == 1 for parameter in groups["no_decay"]["params"])
    trained = {id(parameter) for parameter in trainer.module.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for group in groups.values() for parameter in group["params"]}
    assert all(parameter.dtype == torch.float32 for parameter in operation_parameters(trainer.module).values())


def test_weight_decay_leaves_scale_alone(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With gradients of zero only decay moves anything."""
    recipe = read_recipe(make_recipe(train={"what": "full"}, optimizer={"weight_decay": 0.5, "lr": 0.1}))
    model = _draw(load_model(Path(recipe.model), RunOptions(device="cpu")))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(optimizer_groups(model, recipe.optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    same = {name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)}
    assert same == {name for name in before if ".ssmax." in name or "norm" in name}


def test_schedule_warmup_and_clip(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def rates(name: str, warmup: float) -> list[float]:
        optimizer = {"scale_lr": 0.01, "schedule": name, "warmup": warmup}
        trainer = _trainer(make_recipe(optimizer=optimizer, budget={"steps": 5}), tmp_path / f"{name}{warmup}")
        return [row["learning_rates"]["scale"] / 0.01 for row in _losses(trainer)]

    assert rates("constant", 0) == [1, 1, 1, 1, 1]
    assert rates("constant", 2) == [0, 0.5, 1, 1, 1]
    assert rates("linear", 0.2) == pytest.approx([0, 1, 0.75, 0.5, 0.25])
    assert rates("cosine", 0) == pytest.approx([(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)])


def test_clip(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """SGD-like: the first Adam step does not depend on the gradient's size, its second average does."""

    def second_average(clip: float) -> tuple[float, float]:
        trainer = _trainer(make_recipe(optimizer={"clip": clip}, budget={"steps": 1}), tmp_path / str(clip))
        norm = _losses(trainer)[0]["grad_norm"]
        states = trainer.optimizer.state_dict()["state"].values()
        return norm, sum(state["exp_avg_sq"].sum().item() for state in states) / (1 - 0.99)

    norm, squares = second_average(0)
    assert squares == pytest.approx(norm**2, rel=1e-3)
    clipped_norm, squares = second_average(norm / 4)
    assert clipped_norm == pytest.approx(norm)
    assert squares == pytest.approx((norm / 4) ** 2, rel=1e-3)


def test_accumulation_equals_a_larger_batch(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = _rows(count=4)

    def scale(sequences: int, accumulation: int) -> torch.Tensor:
        batch = {"sequences": sequences, "accumulation": accumulation}
        trainer = _trainer(make_recipe(batch=batch, budget={"steps": 2}), tmp_path / str(sequences), rows)
        losses = [row["loss"] for row in _losses(trainer)]
        assert trainer.progress.tokens == 2 * sum(row.tokens for row in rows)
        return torch.cat([*operation_parameters(trainer.module).values(), torch.tensor(losses)])

    # Unequal rows: a mean of means would differ.
    assert torch.allclose(scale(4, 1), scale(1, 4), atol=2e-5)


def test_gradient_checkpointing_changes_nothing_but_memory(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    plain = _trainer(make_recipe(), tmp_path / "plain")
    saving = _trainer(make_recipe(gradient_checkpointing=True), tmp_path / "saving")
    expected = [row["loss"] for row in _losses(plain)]
    assert [row["loss"] for row in _losses(saving)] == pytest.approx(expected, abs=1e-6)
    assert saving.module.is_activation_checkpointing and not plain.module.is_activation_checkpointing
    for one, other in zip(
        operation_parameters(plain.module).values(), operation_parameters(saving.module).values(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_trial_step_saves_the_same_memory(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Before training begins; and a later stage without it keeps its activations."""
    saving = _trainer(make_recipe(gradient_checkpointing=True), tmp_path / "saving")
    layer: Any = saving.module.get_submodule("model.layers.1")
    calls: list[bool] = []
    layer.mlp.register_forward_pre_hook(lambda module, arguments: calls.append(torch.is_grad_enabled()))
    trial(saving)
    assert len(calls) == 2  # forward, and again in the backward pass
    recompute(saving.module, False)
    calls.clear()
    trial(saving)
    assert len(calls) == 1


@pytest.mark.parametrize("what", ["scale", "scale+lora", "full"])
def test_layers(make_recipe: MakeRecipe, tmp_path: Path, what: str) -> None:
    recipe = make_recipe(train={"what": what, "layers": "1-2"})
    trainer, layout = _trainer(recipe, tmp_path), Layout(open_checkpoint(Path(recipe["model"])).config)
    layers = {layout.layer(name) for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert layers == {1, 2}
    with pytest.raises(UsageError, match="layer 3, but the model has the layers 0 to 2"):
        _trainer(make_recipe(train={"what": what, "layers": [3]}), tmp_path / "beyond")


def test_lora_options(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train = {"what": "scale+lora", "rank": 3, "alpha": 6.0, "dropout": 0.25, "targets": ["q_proj", "v_proj"]}
    trainer = _trainer(make_recipe(train=train), tmp_path)
    adapted = {name: module for name, module in trainer.module.named_modules() if hasattr(module, "lora_A")}
    assert sorted(name.rpartition("layers.")[2] for name in adapted) == sorted(
        f"{layer}.self_attn.{kind}" for layer in range(3) for kind in ("q_proj", "v_proj")
    )
    module = adapted[next(iter(adapted))]
    assert module.lora_A["default"].weight.shape[0] == 3
    assert module.scaling["default"] == 2.0 and module.lora_dropout["default"].p == 0.25
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        _trainer(make_recipe(train={**train, "targets": ["q_porj"]}), tmp_path / "wrong")
    every = _trainer(make_recipe(train={"what": "scale+lora", "rslora": True, "dora": True}), tmp_path / "every")
    names = {name.rpartition(".")[2] for name, module in every.module.named_modules() if hasattr(module, "lora_A")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert any("magnitude" in name for name, _ in every.module.named_parameters())
    module = next(module for module in every.module.modules() if hasattr(module, "lora_A"))
    assert module.scaling["default"] == pytest.approx(32 / 4)


def test_seed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def losses(seed: int, name: str) -> list[float]:
        trainer = _trainer(make_recipe(seed=seed), tmp_path / name)
        return [row["loss"] for row in _losses(trainer)]

    assert losses(3, "a") == losses(3, "b") != losses(4, "c")


@pytest.mark.parametrize(
    ("what", "precision", "resolved"),
    [
        ("scale", "auto", "bfloat16"),
        ("full", "auto", "bfloat16-mixed"),
        ("scale+lora", "float32", "float32"),
        ("scale+lora", "auto", "bfloat16"),
    ],
)
def test_precision_of_a_bfloat16_checkpoint(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, what: str, precision: str, resolved: str
) -> None:
    recipe = make_recipe(converted(dtype=torch.bfloat16), train={"what": what}, precision=precision)
    assert effective_precision(read_recipe(recipe), open_checkpoint(Path(recipe["model"]))) == resolved
    trainer = _trainer(recipe, tmp_path)
    _losses(trainer)
    weight = next(p for name, p in trainer.module.named_parameters() if "mlp.up_proj" in name)
    assert weight.dtype == (torch.bfloat16 if resolved == "bfloat16" else torch.float32)
    assert trainer.args.bf16 == (resolved == "bfloat16-mixed")
    for parameter in operation_parameters(trainer.module).values():
        assert parameter.dtype == torch.float32 and parameter.abs().min() > 0
    for state in trainer.optimizer.state_dict()["state"].values():
        assert state["exp_avg"].dtype == torch.float32


def test_evaluation(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = _trainer(make_recipe(evaluation={"every": 2}), tmp_path)
    trainer.train()
    rows = [row for row in trainer.folder.rows() if "held_out_loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1]["held_out_loss"] == pytest.approx(_mean_loss(trainer.module.eval(), _rows(seed=1, count=3)))


def test_log_rows(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    trainer = _trainer(make_recipe(), tmp_path)
    trainer.steps_log.on_progress = events.append
    rows = _losses(trainer)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(
        row.keys() == {"step", "tokens", "loss", "learning_rates", "grad_norm", "scale", "seconds"} for row in rows
    )
    assert [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)
    mean, least, greatest = rows[-1]["scale"]["scale"]["2"]
    values = operation_parameters(trainer.module)["model.layers.2.self_attn.ssmax.scale"]
    assert (mean, least, greatest) == pytest.approx(
        (values.mean().item(), values.min().item(), values.max().item()), abs=1e-6
    )
    steps = [event for event in events if event["event"] == "step"]
    assert steps[1]["steps"] == 4 and steps[1]["tokens_per_second"] > 0 and steps[1]["seconds_left"] >= 0


def test_nan_stops_before_the_step(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, total = 0, NextToken.total

    def poisoned(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return total(*arguments) * (math.nan if calls == 5 else 1.0)  # the trial is the first

    monkeypatch.setattr(NextToken, "total", poisoned)
    recipe = make_recipe(checkpoints={"every": 2}, budget={"steps": 6})
    with pytest.raises(DivergedError, match=r"step 4: the loss became nan") as caught:
        finetune(recipe)
    assert "out.training/checkpoint-2" in str(caught.value)
    assert (tmp_path / "out.training" / "checkpoint-2" / "complete.json").is_file()
    monkeypatch.setattr(NextToken, "total", total)
    assert finetune(recipe, resume=True).steps == 6


def test_gradient_guard(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = _trainer(make_recipe(), tmp_path)
    before = trainer.trained_tensors()["model.layers.0.self_attn.ssmax.scale"].clone()
    parameter = operation_parameters(trainer.module)["model.layers.0.self_attn.ssmax.scale"]
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match="gradient's norm"):
        trainer.train()
    assert torch.equal(trainer.trained_tensors()["model.layers.0.self_attn.ssmax.scale"], before)


def test_trial_step(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = _trainer(make_recipe(), tmp_path)
    before, state = trainer.trained_tensors(), torch.random.get_rng_state()
    seen: list[int] = []
    trainer.module.model.embed_tokens.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    trial(trainer)
    assert seen == [48]
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.trained_tensors().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in trainer.module.parameters())
    for module in trainer.module.modules():
        if hasattr(module, "log_reference"):
            module.enabled = False
    with pytest.raises(SurgeryError, match="3 parameters of the operation get no gradient"):
        trial(trainer)


def test_distill_pulls_towards_the_original(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    objective = read_recipe(make_recipe(objective={"name": "distill", "temperature": 2.0})).objective
    model = load_model(converted(), RunOptions(device="cpu"))
    batch = collate(_rows())
    assert objective_sum(objective, model, batch).item() == pytest.approx(0, abs=1e-4)  # starts as the original
    # Far from the identity, in a model whose attention is far from uniform.
    paper = converted(form="paper", scale=1.5, spread=0.4)
    assert objective_sum(objective, load_model(paper, RunOptions(device="cpu")), batch).item() > 1
    mixed = read_recipe(make_recipe(objective={"name": "distill", "share": 0.25})).objective
    plain = next_token_sum(token_logits(model, batch)[:, :-1], batch["labels"][:, 1:]).item()
    assert objective_sum(mixed, model, batch).item() == pytest.approx(0.75 * plain, rel=1e-4)

    recipe = make_recipe(
        paper, objective={"name": "distill"}, optimizer={"scale_lr": 0.1, "schedule": "constant"}, budget={"steps": 12}
    )
    trainer = _trainer(recipe, tmp_path)
    before = objective_sum(objective, trainer.module, batch).item()
    trainer.train()
    assert objective_sum(objective, trainer.module, batch).item() < before / 2


def test_the_teacher_is_the_original_under_an_adapter(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path
) -> None:
    paper = converted(form="paper", scale=1.5, spread=0.4)
    trainer = _trainer(make_recipe(paper, train={"what": "scale+lora"}, optimizer={"lr": 0.05}), tmp_path)
    trainer.train()
    batch = collate(_rows())
    stock = load_model(paper.parent / "source", RunOptions(device="cpu"))
    with torch.no_grad():
        expected = token_logits(stock, batch)
        with original(trainer.module):
            taught = token_logits(trainer.module, batch)
        assert trainer.module.training
        trained = token_logits(trainer.module.eval(), batch)
    assert torch.allclose(taught, expected, atol=1e-5)
    assert not torch.allclose(trained, expected, atol=1e-1)


def test_report_to(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback, integrations

    with pytest.raises(UsageError, match="'nonesuch' is not an installed tracker"):
        finetune(make_recipe(report_to=["nonesuch"]))
    assert not (tmp_path / "out.training").exists()
    seen: list[dict[str, Any]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(logs)

    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: ["own"])
    monkeypatch.setitem(integrations.integration_utils.INTEGRATION_TO_CALLBACK, "own", Tracker)
    _trainer(make_recipe(report_to=["own"]), tmp_path).train()
    assert [entry["loss"] for entry in seen if "loss" in entry] and "learning_rate_scale" in seen[0]


def _read(recipe: dict[str, Any]) -> TrainingData:
    return read_rows(read_recipe(recipe), lambda texts: [list(text.encode()) for text in texts])


def test_data_options(make_recipe: MakeRecipe, texts: Path, tmp_path: Path) -> None:
    plain = _read(make_recipe())
    assert plain.fingerprint == _read(make_recipe()).fingerprint != _read(make_recipe(seed=1)).fingerprint
    assert plain.train_documents + plain.held_out_documents == 16 and plain.held_out_documents >= 2
    loose = _read(make_recipe(data={"packing": False}))
    assert all(len(row.documents) == 1 for row in loose.train) and any(len(row.documents) > 1 for row in plain.train)
    assert loose.train_tokens == plain.train_tokens
    few = _read(make_recipe(evaluation={"sequences": 1}))
    assert len(few.held_out) == 1 < len(plain.held_out)
    assert _read(make_recipe(data={"held_out": 0})).held_out == ()
    chosen = _read(make_recipe(data={"held_out": [str(texts / "0[0-3].txt")]}))
    assert (chosen.train_documents, chosen.held_out_documents, chosen.dropped_documents) == (12, 4, 4)
    one = tmp_path / "one.txt"
    one.write_text("first document%%second document%%third")
    with pytest.raises(UsageError, match="two different documents"):
        _read(make_recipe(data={"text": str(one)}))
    assert _read(make_recipe(data={"text": str(one), "separator": "%%"})).train_documents == 2
    with pytest.raises(UsageError, match="nothing to train on"):
        _read(make_recipe(data={"held_out": [str(texts)]}))


def test_nothing_to_train(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="ssmax logn added no parameters") as caught:
        finetune(make_recipe(converted(form="logn")), dry_run=True)
    assert caught.value.exit_code == 3
    with pytest.raises(PlanRefusedError, match=r"no layer among train\.layers '0'"):
        finetune(make_recipe(converted(layers=[1, 2]), train={"what": "scale", "layers": "0"}), dry_run=True)
    with pytest.raises(PlanRefusedError, match="was not converted"):
        finetune(make_recipe(converted().parent / "source"), dry_run=True)
    assert finetune(make_recipe(converted(form="logn"), train={"what": "scale+lora"}), dry_run=True).plan.parameters
    assert not (tmp_path / "out.training").exists()


@pytest.mark.parametrize("what", ["scale", "scale+lora", "full"])
def test_plan_counts_what_is_trained(make_recipe: MakeRecipe, tmp_path: Path, what: str) -> None:
    recipe = make_recipe(train={"what": what})
    plan = finetune(recipe, dry_run=True).plan
    trainer = _trainer(recipe, tmp_path)
    groups = {
        group["name"]: sum(parameter.numel() for parameter in group["params"])
        for group in trainer.create_optimizer().param_groups
    }
    assert plan.parameters == groups
    assert plan.memory.optimizer == 8 * sum(groups.values())
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.training").exists()


def test_plan_steps_and_memory(make_recipe: MakeRecipe) -> None:
    def plan(**sections: Any) -> Any:
        return finetune(make_recipe(**sections), dry_run=True).plan

    by_tokens = plan(budget={"tokens": 1000})
    assert by_tokens.steps == math.ceil(1000 / by_tokens.tokens_per_step) and by_tokens.tokens >= 1000
    assert plan(budget={"steps": 3}).steps == 3
    one = plan(batch={"sequences": 2})
    assert plan(batch={"sequences": 4}).memory.activations == 2 * one.memory.activations
    assert plan(gradient_checkpointing=True).memory.activations < one.memory.activations
    assert plan(precision="bfloat16").memory.weights < one.memory.weights


def test_plan_counts_the_logits_that_are_held_at_once(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def activations(**sections: Any) -> int:
        return finetune(make_recipe(**sections), dry_run=True).plan.memory.activations

    whole, taught = activations(), activations(objective={"name": "distill"})
    monkeypatch.setattr("surgery.recovery.needs.TRAINED_AT_ONCE", 1000)
    assert 0 < whole - activations() == whole - activations(objective={"name": "match"})
    assert taught - whole == (whole - activations()) + 2 * 1000 * 4
    assert taught - activations(objective={"name": "distill"}) == 2 * (whole - activations())


def test_devices(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cuda:1"):
        finetune(make_recipe(), device="cuda:1")
    assert not (tmp_path / "out.training").exists()
