"""Averages in place of the parameters, and the copies of parameters that others keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fusedstep.checks import refuse
from fusedstep.optim.distributed import is_dtensor, is_flattened
from fusedstep.optim.hyperparameters import parameter_labels
from fusedstep.optim.state import require_entry_like

Forget = Callable[[], None]  # makes the holder of a copy read the parameters again


@contextmanager
def swapped_in(
    function: str,
    groups: Sequence[Mapping[str, Any]],
    averages: Sequence[Tensor],
    model: nn.Module | None,
) -> Iterator[None]:
    """Context manager: the parameters of all groups hold `averages`.

    They keep their own values where the average is the parameter itself. On exit, and if entering
    fails half-way, the parameters get their values back.
    """
    labels: list[str] = []
    for group in groups:
        labels += parameter_labels(group, first=len(labels))
    params = [param for group in groups for param in group["params"]]
    holders = holders_of(function, labels, params, model)
    for forget in holders:
        forget()
    for label, param, average in zip(labels, params, averages, strict=True):
        require_entry_like(function, f"state of {label}['ema']", param, average)
    pairs = [(p, a) for p, a in zip(params, averages, strict=True) if a is not p]
    kept = [param.detach().clone() for param, _ in pairs]
    with ExitStack() as on_exit:  # the last first, each even if another fails
        for (param, _), values in zip(pairs, kept, strict=True):
            on_exit.callback(_write, param, values)
        for forget in holders:
            on_exit.callback(forget)
        for param, average in pairs:
            _write(param, average)
        yield


@torch.no_grad()
def _write(param: Tensor, values: Tensor) -> None:
    param.copy_(values)


# --- copies of the parameters ---------------------------------------------------------------------


def holders_of(
    function: str, labels: Sequence[str], params: Sequence[Tensor], model: nn.Module | None
) -> list[Forget]:
    """What to call before parameters are overwritten, and again before they are restored.

    Refuses parameters of which somebody may hold a copy that cannot be found.
    """
    for label, param in zip(labels, params, strict=True):
        if hasattr(param, "_fp_param"):  # a forward leaves its casts in the parameter's place
            must = "not be cast by DistributedDataParallel(mixed_precision=...)"
            refuse(function, label, must, "such a parameter")
    return [
        torch.clear_autocast_cache,
        _forget_parametrizations,
        *_fsdp2(function, params, model),
        *_fsdp1(function, labels, params, model),
    ]


def _forget_parametrizations() -> None:
    """What torch.nn.utils.parametrize.cached() has computed."""
    getattr(parametrize, "_cache", {}).clear()


def _fsdp2(function: str, params: Sequence[Tensor], model: nn.Module | None) -> Iterator[Forget]:
    """The gathered parameters of modules that fully_shard does not reshard after their forward."""
    if "torch.distributed.fsdp" not in sys.modules or not any(map(is_dtensor, params)):
        return
    from torch.distributed.fsdp import FSDPModule

    found = [] if model is None else [m for m in model.modules() if isinstance(m, FSDPModule)]
    try:
        ours = set(map(id, params))
        found += [m for m in _registered(FSDPModule) if ours.intersection(map(id, _managed_by(m)))]
    except (ImportError, AttributeError) as error:  # private names of torch
        if model is None:
            must = "be given, since this torch does not tell which modules gather the parameters"
            refuse(function, "model", must, f"None ({error})")
    for module in dict.fromkeys(found):
        yield partial(_reshard, module)


def _registered(kind: type) -> list[Any]:
    """All living modules that torch.distributed's functions, such as fully_shard, have changed."""
    from torch.distributed._composable_state import _module_state_mapping

    return [module for module in list(_module_state_mapping) if isinstance(module, kind)]


def _groups(module: Any) -> list[Any]:
    """The FSDPParamGroups of an FSDPModule; older versions of torch have at most one."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [group for group in (state._fsdp_param_group,) if group is not None]


def _managed_by(module: Any) -> list[Tensor]:
    return [p.sharded_param for group in _groups(module) for p in group.fsdp_params]


def _reshard(module: Any) -> None:
    try:
        pending = any(group._all_gather_result is not None for group in _groups(module))
    except AttributeError:
        pending = True  # unknown
    if pending:
        module.unshard()  # waits for unshard(async_op=True), which the next forward would use
    module.reshard()


def _fsdp1(
    function: str, labels: Sequence[str], params: Sequence[Tensor], model: nn.Module | None
) -> Iterator[Forget]:
    """FSDP1's gathered flat parameters, which the root keeps after a forward."""
    slices = {label: p for label, p in zip(labels, params, strict=True) if is_flattened(p)}
    if not slices:
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp._runtime_utils import _reshard as reshard

    if model is None:
        must = "be the FSDP1 module, which may hold gathered copies of the parameters"
        refuse(function, "model", must, None)
    units: list[Any] = list(FullyShardedDataParallel.fsdp_modules(model))
    units = [unit for unit in units if unit._handle is not None]
    flat = [unit._handle.flat_param for unit in units]
    known = set(map(id, chain(flat, *(param._params or () for param in flat))))
    for label, param in slices.items():
        if id(param) not in known:
            refuse(function, "model", f"be the FSDP1 module that has {label}", type(model).__name__)
    for unit in units:
        yield partial(reshard, unit, unit._handle, unit._handle.uses_sharded_strategy)
