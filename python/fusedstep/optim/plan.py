"""What an optimizer remembers of one device's parameters between steps: lists and a C++ table."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse, require_dense
from fusedstep.distributed import local, require_mesh_of
from fusedstep.optim.arrays import Kept, arrays_of
from fusedstep.optim.state import Initial, prepare_state
from fusedstep.overlap import in_layout_of, is_dense, is_plain

_GRAD = attrgetter("grad")
_REFRESH = torch.ops.fusedstep.table_refresh.default
# How messages call a parameter, the parameter, and where the optimizer lists it.
Named = tuple[str, Tensor, int]


class Plan:
    """The parameters of one device that have state, group after group, and the table over them.

    The table outlives changes of the parameters: a captured CUDA graph may still point to it.
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self.table = _C.TensorTable()
        self.params: list[Tensor] = []
        self._owners: list[Tensor] = []  # whose memory `params` are: they themselves, or DTensors
        self._states: list[dict[str, Tensor]] = []
        self._state_keys: tuple[str, ...] = ()
        self._state_tensors: list[Tensor] = []
        self._strided: list[int] = []  # indices of parameters whose elements have gaps
        self.release()

    def rebuild(
        self,
        groups: list[list[Named]],
        kept: list[Kept],
        state: dict[Tensor, dict[str, Tensor]],
        initial: Initial,
    ) -> None:
        """Takes over the parameters of each group, already checked; `kept[g]`: of their state."""
        named = list(chain.from_iterable(groups))
        self._owners = [param for _, param, _ in named]
        self.params = self._memory(self._owners)
        self._strided = [i for i, param in enumerate(self.params) if not is_dense(param)]
        arrays = [
            arrays_of(param, keeps)
            for group, keeps in zip(groups, kept, strict=True)
            for _, param, _ in group
        ]
        for (_, param, _), needed in zip(named, arrays, strict=True):
            if needed:
                prepare_state(param, state[param], needed, initial)
        self._states = [state.get(param, {}) for param in self._owners]
        self._state_keys = tuple({array.name: None for array in chain.from_iterable(arrays)})
        self._state_tensors = [s[k] for s in self._states for k in self._state_keys if k in s]
        self._assigned = (
            [local(s[a.name]) for s, n in zip(self._states, arrays, strict=True) for a in n],
            [array.role for array in chain.from_iterable(arrays)],
            [len(needed) for needed in arrays],
            [len(group) for group in groups],
            [position for _, _, position in named],
        )
        if not self._strided:
            self._assign(self.params)

    def _assign(self, params: list[Tensor]) -> None:
        torch.ops.fusedstep.table_assign(self.table.address, params, *self._assigned)

    def _memory(self, params: list[Tensor]) -> list[Tensor]:
        """The tensors that the kernels are given for these parameters."""
        return params

    def _gradients(self) -> list[Tensor | None]:
        """And for their gradients."""
        return list(map(_GRAD, self.params))

    def replaced(self) -> bool:
        """Whether somebody put another tensor into the state of a parameter."""
        return not _C.same_objects(self._states, self._state_keys, self._state_tensors)

    def look(self) -> bool:
        """Notes the gradients there are now; False where there is none."""
        grads = self._gradients()
        self._grads = [grad for grad in grads if grad is not None]
        self._missing: list[int] = []
        self._written = self._owners
        if len(self._grads) < len(grads):
            self._missing = [i for i, grad in enumerate(grads) if grad is None]
            self._written = [p for p, g in zip(self._owners, grads, strict=True) if g is not None]
        return bool(self._grads)

    def refresh(self) -> bool:
        """Brings the table up to date, with nothing written; False where it no longer fits."""
        if self._strided:
            return self.refresh_by_copies()
        return self._refresh(self._grads)

    def refresh_by_copies(self) -> bool:
        """The same with gapless copies of parameters that have gaps and of unusual gradients."""
        params = list(self.params)
        for i in self._strided:
            params[i] = torch.empty_like(params[i]).copy_(params[i])
        missing = set(self._missing)
        with_grad = (param for i, param in enumerate(params) if i not in missing)
        grads = [
            grad if is_plain(grad, param.stride()) else in_layout_of(param, grad)
            for param, grad in zip(with_grad, self._grads, strict=True)
        ]
        self._copies = params
        self._grads = grads  # held until the kernels have read them
        self._assign(params)
        return self._refresh(grads)

    def _refresh(self, grads: list[Tensor]) -> bool:
        try:
            return _REFRESH(self.table.address, grads, self._missing)
        except NotImplementedError:  # the dispatcher's word for gradients that have no kernel
            return False

    def finish(self) -> None:
        """After the step: copies go back; autograd is told, so that a stale backward raises."""
        for i in self._strided:
            self.params[i].copy_(self._copies[i])
        torch.autograd.graph.increment_version(self._written)

    def release(self) -> None:
        """Lets go of gradients and copies: between steps their memory is not ours to hold."""
        self._grads: list[Tensor] = []
        self._written: list[Tensor] = []
        self._copies: list[Tensor] = []


def require_gradient(function: str, name: str, param: Tensor) -> None:
    """The gradient of `param` must be something the kernels can read."""
    grad = param.grad
    if grad is None:
        return
    require_dense(function, f"{name}.grad", local(grad))
    require_mesh_of(function, f"{name}.grad", param, grad)
    if grad.device != param.device:
        refuse(function, f"{name}.grad", f"be on {param.device}, as its parameter", grad.device)
    if grad.shape != param.shape:
        must = f"have its parameter's shape {tuple(param.shape)}"
        refuse(function, f"{name}.grad", must, tuple(grad.shape))
