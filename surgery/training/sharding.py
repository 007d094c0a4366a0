"""FSDP2: each process holds a share of every weight, and gathers a layer's weights while that layer runs.

accelerate's environment turns it on (``accelerate launch --use_fsdp --fsdp_version 2``, or the same variables under
``torchrun``). This module calls torch's ``fully_shard`` itself: accelerate shards only on accelerators, and under mixed
precision it also casts float32 parameters. Checkpoints and results are whole, the same files as without sharding.

Imports no torch at the top: the environment is read before a model is needed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgery.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

_ASKED = "ACCELERATE_USE_FSDP"
_TRUE = frozenset({"true", "1"})
_FALSE = frozenset({"false", "0", ""})
# Unsupported settings of accelerate's launcher, and what to do instead.
_REFUSED = {
    "FSDP_OFFLOAD_PARAMS": (_TRUE, "weights stay on the device; leave --fsdp_offload_params out."),
    "FSDP_ACTIVATION_CHECKPOINTING": (_TRUE, "set gradient_checkpointing: true in the recipe."),
    "FSDP_RESHARD_AFTER_FORWARD": (
        frozenset({"false", "shard_grad_op", "no_reshard"}),
        "layers are sharded again after their forward pass; leave --fsdp_reshard_after_forward out.",
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_TRUE, "all processes share one copy of the weights."),
}


@contextmanager
def own_sharding(device: str) -> Iterator[bool]:
    """Whether the environment turns FSDP2 on, within a ``with`` block in which accelerate and transformers see it off.

    Args:
        device: kind of device that the run is on.

    Raises:
        UsageError: FSDP is not available with these settings on this device.
    """
    asked = os.environ.get(_ASKED, "false")
    if asked.lower() in _FALSE:
        yield False
        return
    _check(device)
    os.environ[_ASKED] = "false"
    try:
        yield True
    finally:
        os.environ[_ASKED] = asked


def _check(device: str) -> None:
    version = os.environ.get("FSDP_VERSION") or "1"
    if version != "2":
        raise UsageError(
            f"FSDP {version} is not supported; only FSDP 2 is",
            hint="Use accelerate launch --use_fsdp --fsdp_version 2, or FSDP_VERSION=2 with torchrun.",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UsageError(
            "FSDP shards weights over several processes, but this run has one",
            hint="Start with torchrun --nproc-per-node N or accelerate launch --num_processes N, or without FSDP.",
        )
    if device not in ("cpu", "cuda"):
        raise UsageError(f"FSDP runs on cpu or cuda, not on {device}", hint="Set --device cpu, or leave FSDP out.")
    for name, (values, instead) in _REFUSED.items():
        value = os.environ.get(name, "")
        if value.lower() in values:
            raise UsageError(f"FSDP with {name}={value} is not supported", hint=f"{instead[0].upper()}{instead[1:]}")


def shard(
    model: nn.Module,
    units: Sequence[nn.Module],
    device: str,
    *,
    whole: Iterable[nn.Module] = (),
    trained: Collection[str] = (),
) -> int:
    """Shard a model in place over all processes, unit by unit; the rest of the model is one more unit.

    Frozen weights are sharded as well. Every process must hold the same model, on the CPU. `average_gradients` is for
    the modules that stay whole.

    Args:
        model: with all adapters on.
        units: modules that gather their own weights, inner ones first: layers, and modules that are called directly.
        device: cpu or cuda, where the shares go.
        whole: modules that stay whole in every process: a unit has gradients of one dtype, so few parameters of
            another dtype, or ones that are read outside of a forward pass, belong here.
        trained: names of the parameters that are ever trained.

    Returns:
        The number of parameters in this process.

    Raises:
        UsageError: the weights that are trained have several dtypes.
    """
    import torch
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    state = PartialState(cpu=device == "cpu")  # the processes as accelerate knows them
    mesh = init_device_mesh(device, (state.num_processes,))
    kept = [module.to(state.device) for module in whole]
    ignored = {parameter for module in kept for parameter in module.parameters()}
    shares = {name: own for name, own in model.named_parameters() if name in trained and own not in ignored}
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in shares.values()})
    if len(dtypes) > 1:
        raise UsageError(
            f"FSDP trains weights of one dtype, but these are {' and '.join(dtypes)}",
            hint="Set precision: bfloat16-mixed, or float32.",
        )
    for unit in [*units, model]:
        # For the outermost unit too: its parameters would otherwise stay whole, as other objects, after an evaluation.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    # The first forward pass fixes the units and their gradients' dtypes: through the whole model, with everything that
    # is ever trained switched on.
    chosen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=state.device), use_cache=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen[name])
    return sum(local(parameter).numel() for parameter in model.parameters())


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a `DTensor`, which not every build of torch has."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a sharded one (all processes must call this); another tensor is returned unchanged."""
    part: Any = tensor
    return part.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share of a sharded tensor; another tensor is returned unchanged."""
    part: Any = tensor
    return part.to_local() if is_sharded(tensor) else tensor


def sharded_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor that every process has, sharded as another one is."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    pattern: Any = other
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def copy_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into the parameters of their names, sharded or not."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(sharded_like(tensor, parameters[name]))


def average_gradients(model: nn.Module) -> None:
    """Average each gradient that FSDP2 does not reduce over all processes, which all must call this."""
    import torch
    from torch import distributed

    own = [parameter.grad for parameter in model.parameters() if not is_sharded(parameter)]
    gradients = [gradient for gradient in own if gradient is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def whole_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors on the CPU, in the same form as without sharding.

    ``torch.distributed.checkpoint.state_dict`` gathers the same bits, but keys them by name, and refuses to load where
    a parameter has no state, as weights outside the attention have none after matching.

    Args:
        optimizer: of sharded parameters.
        keep: whether this process keeps the result; all processes must call this.
    """
    state = optimizer.state_dict()
    found: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        for key, value in values.items():
            tensor = whole(value)
            if keep:
                found.setdefault(number, {})[key] = tensor.to("cpu")
    return {**state, "state": found}


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state dict into the optimizer of sharded parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shares = {
        number: {
            # A copy, since a share may be a view of the whole.
            key: sharded_like(value, parameters[number]).clone() if value.shape == parameters[number].shape else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shares})
