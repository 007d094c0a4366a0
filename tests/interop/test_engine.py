"""An inference engine that takes the model apart, as vLLM's backend for transformers' models does.

test_vllm.py has vLLM itself, which needs an environment of its own. What it does to a model is done here in small: the
base model is built without weights and with an attention of the engine's own under the engine's own name; linear layers
are replaced, three of them by one, for which the attention's forward is compiled again from its source; weights are
read by name; and requests come as one row of tokens of all of them, whose keys the engine keeps, not transformers.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel

from surgery.checkpoint import open_checkpoint
from surgery.conversion import convert
from tests.interop.conftest import Operated, load, scales, tokens

NAME = "engine"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
BOUND = 1e-4


class EngineLinear(nn.Module):
    """In the place of linear layers; of several, their outputs one after the other."""

    def __init__(self, *replaced: nn.Linear) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.empty_like(linear.weight, device="cpu") for linear in replaced)
        self.biases = nn.ParameterList(
            torch.empty_like(linear.bias, device="cpu") for linear in replaced if linear.bias is not None
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = torch.cat(list(self.biases)) if len(self.biases) else None
        return nn.functional.linear(hidden, torch.cat(list(self.weights)), bias)


class EngineAttention:
    """Attention of one layer: keeps keys and values of each request, and sees tokens in the engine's own layout."""

    def __init__(self, heads: int, groups: int) -> None:
        self.heads, self.groups = heads, groups
        self.kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, requests: dict[str, int], **options: Any
    ) -> torch.Tensor:
        """``(tokens, heads * head_dim)`` of all requests, whose numbers of tokens ``requests`` gives."""
        outputs, start = [], 0
        for request, added in requests.items():
            rows = slice(start, start + added)
            start += added
            keys, values = (part[rows].view(added, self.groups, -1).transpose(0, 1) for part in (key, value))
            if request in self.kept:
                keys, values = (torch.cat(pair, 1) for pair in zip(self.kept[request], (keys, values), strict=True))
            self.kept[request] = keys, values
            q = query[rows].view(added, self.heads, -1).transpose(0, 1)
            k, v = (part.repeat_interleave(self.heads // self.groups, 0) for part in (keys, values))
            scores = q @ k.transpose(1, 2) * options["scaling"]
            if options.get("softcap") is not None:
                scores = options["softcap"] * torch.tanh(scores / options["softcap"])
            total = keys.shape[1]
            behind = torch.arange(total - added, total)[:, None] - torch.arange(total)
            seen = behind >= 0
            if options.get("sliding_window") is not None:
                seen &= behind < options["sliding_window"]
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            outputs.append((weights @ v).transpose(0, 1).reshape(added, -1))
        return torch.cat(outputs)


def engine_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    attention_instances: dict[int, EngineAttention],
    requests: dict[str, int],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What the engine registers: it flattens the tensors and hands over to the layer's own attention."""
    assert attention_mask is None, "an engine that registers no mask is given none"
    flat = [part[0].transpose(0, 1).flatten(1) for part in (query, key, value)]
    own: Any = attention_instances[module.layer_idx]  # type: ignore[index]
    return own.forward(*flat, requests, **options)[None], None


@pytest.fixture
def registered() -> Iterator[None]:
    AttentionInterface.register(NAME, engine_attention)
    yield
    del AttentionInterface._global_mapping[NAME]


class _Fuse(ast.NodeTransformer):
    """``self.q_proj(x)`` becomes ``self.qkv_proj(x).split(self.qkv_sizes, -1)[0]``, and so on."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in PROJECTIONS:
            self.found.append(node.func.attr)
            argument, place = ast.unparse(node.args[0]), PROJECTIONS.index(node.func.attr)
            text = f"self.qkv_proj({argument}).split(self.qkv_sizes, -1)[{place}]"
            return ast.parse(text, mode="eval").body
        return node


def fuse(attention: Any) -> dict[str, nn.Parameter]:
    """One linear layer for three, and the forward compiled again from its source; returns where the weights go."""
    function = inspect.unwrap(type(attention).forward)
    tree = ast.parse("from __future__ import annotations\n" + textwrap.dedent(inspect.getsource(function)))
    definition: Any = tree.body[1]
    definition.decorator_list.clear()
    rewrite = _Fuse()
    rewrite.visit(definition)
    assert sorted(rewrite.found) == sorted(PROJECTIONS)
    made: dict[str, Any] = {}
    code = compile(ast.fix_missing_locations(tree), function.__code__.co_filename, "exec")
    exec(code, function.__globals__, made)

    parts = [getattr(attention, name) for name in PROJECTIONS]
    attention.qkv_sizes = [part.out_features for part in parts]
    attention.qkv_proj = EngineLinear(*parts)
    places = {}
    for name, weight in zip(PROJECTIONS, attention.qkv_proj.weights, strict=True):
        places[f"{name}.weight"] = weight
        delattr(attention, name)
    for name, bias in zip(PROJECTIONS, attention.qkv_proj.biases, strict=False):
        places[f"{name}.bias"] = bias
    attention.forward = types.MethodType(made["forward"], attention)
    return places


class Engine:
    """Answers requests with a model in a folder; ``dtype`` is that of everything it holds.

    With ``strict``, as in vLLM, what the model's class keeps in float32 stays so.
    """

    def __init__(self, folder: Path, *, fused: bool, dtype: torch.dtype = torch.float32, strict: bool = True) -> None:
        from accelerate import init_empty_weights

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config()
        text._attn_implementation = NAME
        with init_empty_weights(include_buffers=False):
            self.model = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        assert type(self.model).is_backend_compatible(), "vLLM asks this before it takes a model"
        places: dict[str, nn.Parameter] = {}
        for name, module in list(self.model.named_modules()):
            if fused and all(hasattr(module, part) for part in PROJECTIONS):
                places |= {f"{name}.{part}": parameter for part, parameter in fuse(module).items()}
        for name, module in list(self.model.named_modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    new = EngineLinear(child)
                    setattr(module, child_name, new)
                    places[f"{name}.{child_name}.weight"] = new.weights[0]
                    if len(new.biases):
                        places[f"{name}.{child_name}.bias"] = new.biases[0]
        own = {id(parameter) for parameter in places.values()}
        float32 = type(self.model)._keep_in_fp32_modules_strict if strict else ()
        for name, module in list(self.model.named_modules()):
            for child_name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in own:  # what was not replaced is made in the engine's dtype, whatever it was
                    full = f"{name}.{child_name}".removeprefix(".")
                    kept = torch.float32 if any(part in full for part in float32) else dtype
                    fresh = nn.Parameter(torch.empty_like(parameter, dtype=kept, device="cpu"))
                    setattr(module, child_name, fresh)
                    places[full] = fresh
        self.attentions = {
            layer: EngineAttention(text.num_attention_heads, text.num_key_value_heads)
            for layer in range(text.num_hidden_layers)
        }
        self.load_weights(folder, places)

    @torch.no_grad()
    def load_weights(self, folder: Path, places: dict[str, nn.Parameter]) -> None:
        from safetensors.torch import load_file

        stored: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            stored |= load_file(path)
        self.head = stored.pop("lm_head.weight", stored.get("model.embed_tokens.weight"))
        assert set(stored) == set(open_checkpoint(folder).tensors) - {"lm_head.weight"}
        assert {name.removeprefix("model.") for name in stored} == set(places)
        for name, value in stored.items():
            places[name.removeprefix("model.")].copy_(value)

    @torch.no_grad()
    def step(self, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """More tokens of some requests, in one row; returns the last hidden states of each."""
        first = self.attentions[0].kept
        past = {name: first[name][0].shape[1] if name in first else 0 for name in parts}
        positions = torch.cat([torch.arange(past[name], past[name] + len(part)) for name, part in parts.items()])
        found = self.model(
            input_ids=torch.cat(list(parts.values()))[None],
            position_ids=positions[None],
            use_cache=False,
            attention_instances=self.attentions,
            requests={name: len(part) for name, part in parts.items()},
            return_dict=False,
        )[0][0]
        return dict(zip(parts, found.split([len(part) for part in parts.values()]), strict=True))


def answers(engine: Engine, requests: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first request in parts while the second begins, then one token of each at a time."""
    a, b = requests["a"], requests["b"]
    steps = [{"a": a[:10]}, {"a": a[10:25], "b": b[:7]}, {"b": b[7:30], "a": a[25:27]}]
    steps += [{"a": a[27 + i : 28 + i], "b": b[30 + i : 31 + i]} for i in range(8)]
    found: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    for step in steps:
        for name, hidden in engine.step(step).items():
            found[name].append(hidden)
    return {name: torch.cat(parts) for name, parts in found.items()}


def hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(input_ids=ids[None]).last_hidden_state[0]


REQUESTS = {"a": tokens(35)[0], "b": tokens(38)[0].flip(0)}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("fused", [False, True], ids=["as they are", "fused"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "qwen3"])
def test_an_engine_with_its_own_attention_and_linear_layers(operated: Operated, family: str, fused: bool) -> None:
    folder = operated(family)
    model = load(folder)
    found = answers(Engine(folder, fused=fused), REQUESTS)
    for name, ids in REQUESTS.items():
        assert (found[name] - hidden_states(model, ids)).abs().max() < BOUND, name
    for parameter in scales(model).values():
        assert parameter.ne(0).all(), "otherwise this would say nothing of the operation"


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_the_base_model_names_its_inputs(operated: Operated, family: str) -> None:
    """vLLM looks these names up in the signature of forward. Its compiler reads the code, so both must have them."""
    base_model = type(load(operated(family)).model)
    code, parameters = base_model.forward.__code__, inspect.signature(base_model.forward).parameters
    for name in ("input_ids", "inputs_embeds", "position_ids"):
        assert name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], name
        assert parameters[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY), name


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("strict", [True, False], ids=["as vLLM", "all in its own dtype"])
def test_an_engine_in_bfloat16(operated: Operated, strict: bool) -> None:
    """vLLM keeps the scales in float32, as their class asks it to; an engine that does not ask rounds them."""
    folder = operated(dtype=torch.bfloat16)
    engine = Engine(folder, fused=True, dtype=torch.bfloat16, strict=strict)
    assert {parameter.dtype for name, parameter in engine.model.named_parameters() if "ssmax" in name} == {
        torch.float32 if strict else torch.bfloat16
    }
    model = load(folder)
    with torch.no_grad():
        for parameter in scales(model).values() if not strict else ():
            parameter.copy_(parameter.bfloat16())
    found = answers(engine, REQUESTS)
    for name, ids in REQUESTS.items():
        expected = hidden_states(model, ids).float()
        assert (found[name].float() - expected).abs().max() <= 0.05 * expected.abs().max(), name


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("form", "message"), [("gated", "a mask per head"), ("unit", "form unit does not run with")])
def test_screening_refuses_an_engine_when_the_model_is_built(
    make_source: Any, tmp_path: Path, form: str, message: str
) -> None:
    """Even if every head is open: in a compiled model nobody can look at the weights later."""
    folder = convert(make_source("llama"), "screening", form=form, open=True, output=tmp_path / "out").output
    with pytest.raises(ValueError, match=f"{message}.*{NAME!r}"):
        Engine(folder, fused=False)
    load(folder, attn_implementation="sdpa").set_attn_implementation(NAME)


@pytest.mark.usefixtures("registered")
def test_an_engine_that_runs_layers_by_themselves_is_refused(operated: Operated) -> None:
    """Without the model's own forward nobody has counted the keys: an error, not softmax."""
    engine = Engine(operated(), fused=False)
    hidden = torch.zeros(1, 4, 32)
    rotary = engine.model.rotary_emb(hidden, torch.arange(4)[None])
    with pytest.raises(RuntimeError, match="without the number of visible keys"):
        engine.model.layers[0](
            hidden, position_embeddings=rotary, attention_instances=engine.attentions, requests={"a": 4}
        )
