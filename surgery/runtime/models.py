# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Config and model classes: ``Surgery<X>`` is a subclass of transformers' ``<X>``, made when it is first asked for."""

from __future__ import annotations

import functools
import inspect
import json
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from surgery.runtime.attention import PREFIX, attention_class, relay_class, subclass, uses_a_backend
from surgery.runtime.operation import CHUNK, IN_CONFIG_ALONE, OPERATIONS, VISIBLE_KEYS, OperationCache, OperationModule
from surgery.runtime.visible_keys import count_visible_keys

FORMAT_VERSION = 1
MODEL_TYPE_PREFIX = "surgery_"
# The module that config.json names the classes in; it lies beside this one.
ENTRY = f"{__name__.rpartition('.')[0]}.modeling_surgery"
# The keyword for the cache, since transformers 5.24 and before.
CACHE_NAMES = ("cache", "past_key_values")
# Bases that an installed package adds to the config classes that are made here.
CONFIG_BASES: list[type] = []


def base_model_of(model: Any) -> Any:
    """The base model inside a model with a head, or the model itself if it holds no other.

    Llama 4's class names an attribute for it that does not exist.
    """
    for name in (model.base_model_prefix, "model"):
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    return model


def install(base_model: nn.Module, config: PreTrainedConfig) -> None:
    """Put the operations of ``config.surgery`` on the attention modules of a base model."""
    block: dict[str, Any] = config.surgery
    counted: Any = base_model.get_submodule(block.get("counted_at", ""))
    if not isinstance(counted, _Counting):
        counted.__class__ = counting_class(type(counted))  # type: ignore[arg-type]
    counted.surgery_counts, counted.surgery_relays = True, block.get("relay", False)
    text_config = config.get_text_config()
    for options in block["operations"]:
        if options["name"] in IN_CONFIG_ALONE:
            continue
        if (operation := OPERATIONS.get(options["name"])) is None:
            raise ValueError(
                f"this code has no operation {options['name']!r} (it has {', '.join(sorted(OPERATIONS))}). "
                "`surgery refresh` rewrites the code."
            )
        for layer in options["layers"]:
            attention = base_model.get_submodule(block["attention"].format(layer=layer))
            if hasattr(attention, options["name"]):
                continue
            setattr(attention, options["name"], operation(options, text_config.num_attention_heads))
            getattr(attention, options["name"]).check_backend(text_config._attn_implementation or "eager")
            if (chunk := _chunk_of(text_config, layer)) is not None:
                setattr(attention, CHUNK, chunk)
            if hasattr(type(attention), "_operated_attention"):
                continue
            attention.__class__ = attention_class(type(attention))  # type: ignore[arg-type]
            if block.get("relay"):
                stem, number, _ = block["attention"].partition("{layer}")
                around: Any = base_model.get_submodule(stem + number.format(layer=layer))
                # In lists, so that torch does not take them for submodules of the layer.
                around.surgery_counted, around.surgery_operated = [counted], [attention]
                around.__class__ = relay_class(type(around))  # type: ignore[arg-type]
    if not block.get("relay"):
        _keep_n_from_others(base_model, block["attention"], text_config.num_hidden_layers)


def _chunk_of(config: PreTrainedConfig, layer: int) -> int | None:
    """Keys in a chunk, in a layer with chunked attention; None in another."""
    labels = getattr(config, "layer_types", None) or ()
    chunked = layer < len(labels) and labels[layer] == "chunked_attention"
    return int(config.attention_chunk_size) if chunked else None


def _keep_n_from_others(base_model: nn.Module, path: str, count: int) -> None:
    """Let the attention of other layers drop n from its keywords: a serving engine's attention may not know it."""
    for layer in range(count):
        try:
            attention = base_model.get_submodule(path.format(layer=layer))
        except AttributeError:
            continue  # a layer of a hybrid without attention
        if not hasattr(type(attention), "_operated_attention") and uses_a_backend(type(attention)):  # type: ignore[arg-type]
            attention.__class__ = attention_class(type(attention))  # type: ignore[arg-type]


def lock(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config that a stock class refuses to load.

    A stock class would drop the new tensors with a printed line. So ``surgery.locks`` of config.json names entries
    with a value at which it stops (``lock``), the model's own value (``was``; absent if it has none), and, in a model
    of several parts, the part of the config that holds the entry (``inside``).
    """
    locked = dict(config)
    block = config.get("surgery") or {}
    for name, entry in block.get("locks", {}).items():
        entry.pop("was", None)
        holder = _holder(locked, entry)
        if name in holder:
            entry["was"] = holder[name]
        holder[name] = entry["lock"]
    return locked


def unlock(config: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`lock`: the config as the family's own class reads it."""
    opened = dict(config)
    block = config.get("surgery") or {}
    for name, entry in block.get("locks", {}).items():
        holder = _holder(opened, entry)
        holder.pop(name, None)
        if "was" in entry:
            holder[name] = entry["was"]
    return opened


def _holder(config: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The dict that holds a lock's key: a copy of the part that the entry names, put into the config; or the config."""
    part = config.get(entry.get("inside", ""))
    if not isinstance(part, dict):
        return config
    config[entry["inside"]] = dict(part)
    return config[entry["inside"]]


class SurgeryConfigMixin:
    """A family's config with the block ``surgery``; takes the locks off on load and puts them on when saving.

    ``windowed_cache = True``, in config.json or given to ``from_pretrained``, lets ``generate`` and a forward pass
    without a cache use the cache that an operation brings (:meth:`OperationModule.make_cache`).
    """

    windowed_cache = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers' own, for a config.json that is locked."""
        config_dict = unlock(config_dict)
        version = config_dict.get("surgery", {}).get("format_version")
        if version is not None and version > FORMAT_VERSION:
            raise ValueError(
                f"This checkpoint has format version {version}; this code reads up to {FORMAT_VERSION}. Install a "
                "newer `model-surgery`, or load it with the code that came with it."
            )
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_json_string(self, *args: Any, **kwargs: Any) -> str:
        """As transformers' own, locked again: a stock class refuses a saved model as it refused the loaded one."""
        content = json.loads(super().to_json_string(*args, **kwargs))  # type: ignore[misc]
        return json.dumps(lock(content), indent=2, sort_keys=True) + "\n"


class _InitialValues:
    """Operations start at the values that config.json gives; everything else as the family initialises it."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, OperationModule):
            super()._init_weights(module)  # type: ignore[misc]
        elif not all(getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()):
            module.reset_parameters()

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the family's own code initialises the weights, by its rules.

        In custom code transformers skips modules that hold no parameter themselves. Some families fill buffers there
        (Falcon-H1), which would stay uninitialised memory.
        """
        return False

    # transformers reads the source of a class's module to learn what can be set on it. This source would say that no
    # experts run grouped: a loop over them, slower and rounded otherwise. So the family's own class is asked.
    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(stock_class(cls)._can_set_experts_implementation())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(stock_class(cls)._can_set_attn_implementation())


def stock_class(operated: type) -> Any:
    """The class of transformers that a class made here is a subclass of."""
    return next(base for base in operated.__mro__ if base.__module__.startswith("transformers.models."))


def _positional_names(stock: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(stock.forward).parameters)[1:]


def _cache_in(kwargs: dict[str, Any]) -> Any:
    """The cache among the keywords of a call, by either name; None if there is none."""
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)


def _new_cache(model: Any) -> Any:
    """The cache that the operations of a model bring."""
    for name in dict.fromkeys(options["name"] for options in model.config.surgery["operations"]):
        if name in OPERATIONS and (cache := OPERATIONS[name].make_cache(model)) is not None:
            return cache
    raise ValueError(
        "windowed_cache needs an operation that brings such a cache, and no operation of this model does; set "
        "config.windowed_cache = False."
    )


def _past_length(cache: Any, backend: str) -> int | torch.Tensor | None:
    """Number of keys in the cache; None if an engine keeps the keys: in pages, or behind a backend of its own."""
    if cache is not None:
        return cache.get_seq_length() if hasattr(cache, "get_seq_length") else None
    # transformers' own backends; a name with a slash is a kernel from the hub.
    return 0 if backend.startswith(("eager", "sdpa", "flash_", "flex_")) or "/" in backend else None


class _Counting:
    """The module whose forward runs the layers: counts the visible keys once per call and passes them on."""

    surgery_counts = False  # True on one module of a model
    surgery_relays = False  # whether it keeps n for layers that pass no keywords on

    # Serving engines look for these three names among the parameters of forward.
    def forward(
        self, *args: Any, input_ids: Any = None, inputs_embeds: Any = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        """As the family's own forward."""
        kwargs |= {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": position_ids}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        kwargs.update(zip(self._positional_names, args))  # type: ignore[attr-defined]  # noqa: B905
        if not self.surgery_counts:
            return super().forward(**kwargs)  # type: ignore[misc]
        inputs = kwargs["input_ids"] if "input_ids" in kwargs else kwargs.get("inputs_embeds")
        cache = _cache_in(kwargs)
        if cache is None and getattr(self.config, "windowed_cache", False) and self._fills_a_cache(kwargs):  # type: ignore[attr-defined]
            name = next(name for name in CACHE_NAMES if name in self._positional_names)  # type: ignore[attr-defined]
            cache = kwargs[name] = _new_cache(self)
        if inputs is not None and VISIBLE_KEYS not in kwargs:
            kwargs[VISIBLE_KEYS] = count_visible_keys(
                length=inputs.shape[1],
                device=inputs.device,
                attention_mask=kwargs.get("attention_mask"),
                position_ids=kwargs.get("position_ids"),
                past_length=_past_length(cache, self.config._attn_implementation or "eager"),  # type: ignore[attr-defined]
            )
            if self.surgery_relays:
                setattr(self, VISIBLE_KEYS, kwargs[VISIBLE_KEYS])
        if isinstance(cache, OperationCache):
            cache.note(kwargs.get("attention_mask"), kwargs[VISIBLE_KEYS])
        return super().forward(**kwargs)  # type: ignore[misc]

    def _fills_a_cache(self, kwargs: dict[str, Any]) -> bool:
        use_cache = kwargs.get("use_cache")
        return not self.training and (self.config.use_cache if use_cache is None else use_cache)  # type: ignore[attr-defined]


class _InnerModel(_InitialValues, _Counting):
    """The part of a base model whose forward runs the layers, where that is not the base model itself."""


@functools.cache
def counting_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Subclass of the module inside a base model whose forward runs the layers; it counts the keys."""
    return subclass(counting_class, stock, _InnerModel, {"_positional_names": _positional_names(stock)})


class SurgeryModelMixin(_InitialValues, _Counting):
    """Base model: carries the operations, and counts unless a module inside it does."""

    def post_init(self) -> None:
        """Install the operations before transformers initialises weights and collects dtype rules."""
        install(self, self.config)  # type: ignore[attr-defined,arg-type]
        super().post_init()  # type: ignore[misc]


class SurgeryHeadMixin(_InitialValues):
    """Model with a language-modelling head, around the base model."""

    def post_init(self) -> None:
        """Turn the base model into its operated class, then let transformers finish as usual."""
        base_model = self.base_model
        if not isinstance(base_model, (SurgeryModelMixin, SurgeryHeadMixin)):
            base_model.__class__ = class_for(PREFIX + type(base_model).__name__)
        install(base_model, self.config)  # type: ignore[attr-defined]
        super().post_init()  # type: ignore[misc]

    @property
    def base_model(self) -> Any:
        """As transformers' own, where a class names the right attribute."""
        return base_model_of(self)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As transformers' own; an operation's cache replaces the default one if the config asks for it."""
        given = _cache_in(model_kwargs)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        cache = _cache_in(model_kwargs)
        wanted = self.config.windowed_cache and given is None and not generation_config.is_assistant  # type: ignore[attr-defined]
        if wanted and type(cache) is DynamicCache and not cache.offloading:
            name = next(name for name in CACHE_NAMES if model_kwargs.get(name) is cache)
            model_kwargs[name] = _new_cache(self)


class _StrictLoading:
    """Missing tensors, and tensors of operations that are left over, are an error here, never a printed line."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        # Other tensors that are left over the family's own class ignores too: a base model the head's, for example.
        problems = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
        problems["unexpected"] = [key for key in problems["unexpected"] if set(key.split(".")) & OPERATIONS.keys()]
        found = "; ".join(f"{kind}: {', '.join(keys[:8])}" for kind, keys in problems.items() if keys)
        if found:
            raise ValueError(f"{name}: the tensors do not fit the model. {found}")
        return (model, info) if wants_info else model


@functools.cache
def class_for(name: str) -> type:
    """``Surgery<X>`` for a config, base model or causal language model class ``<X>`` of transformers."""
    stock: Any = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(stock, type):
        raise AttributeError(f"module {ENTRY!r} has no attribute {name!r}")
    namespace: dict[str, Any] = {"__module__": ENTRY, "__doc__": f"{stock.__name__} with operated attention."}
    if issubclass(stock, PreTrainedConfig):
        namespace |= {"model_type": MODEL_TYPE_PREFIX + stock.model_type, "_auto_class": "AutoConfig"}
        return type(name, (*CONFIG_BASES, SurgeryConfigMixin, stock), namespace)
    if not issubclass(stock, PreTrainedModel):
        raise AttributeError(f"{stock.__name__} is neither a config nor a model class of transformers")

    stock_config: Any = stock.config_class
    config_class = class_for(PREFIX + stock_config.__name__)
    is_head = hasattr(stock, "prepare_inputs_for_generation") and stock.can_generate()
    namespace |= {
        "config_class": config_class,
        "_auto_class": "AutoModelForCausalLM" if is_head else "AutoModel",
        "_keep_in_fp32_modules_strict": {*(stock._keep_in_fp32_modules_strict or ()), *OPERATIONS},
        "_positional_names": _positional_names(stock),
    }
    mixin = SurgeryHeadMixin if is_head else SurgeryModelMixin
    _register_conversions(stock_config.model_type, stock.__name__)
    return type(name, (_StrictLoading, mixin, stock), namespace)


def _register_conversions(model_type: str, class_name: str) -> None:
    """transformers skips a family's checkpoint conversions (merged experts, renames) for code that is not its own."""
    from transformers import conversion_mapping

    for stock, own in ((model_type, MODEL_TYPE_PREFIX + model_type), (class_name, PREFIX + class_name)):
        if (conversions := conversion_mapping.get_checkpoint_conversion_mapping(stock)) is not None:
            conversion_mapping.register_checkpoint_conversion_mapping(own, conversions, overwrite=True)
