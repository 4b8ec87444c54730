"""The plan over DTensors of one mesh: the kernels are given the shards that lie here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedstep import _C
from fusedstep.distributed import local, shard_like
from fusedstep.optim.plan import Named, Plan, require_gradient


class ShardedPlan(Plan):
    """A Plan whose parameters, gradients and state are DTensors."""

    def rebuild(self, groups: list[list[Named]], *rest: Any) -> None:
        self._labels = [label for group in groups for label, _, _ in group]
        super().rebuild(groups, *rest)

    def _memory(self, params: list[Tensor]) -> list[Tensor]:
        return list(map(local, params))

    def _gradients(self) -> list[Tensor | None]:
        """The shards of the gradients, which are checked at every step.

        One that is placed otherwise than its parameter takes all ranks to bring here. They do so
        once in a step, even where one of them has to look at its tensors again.
        """
        for label, param in zip(self._labels, self._owners, strict=True):
            require_gradient(self.function, label, param)
        grads = [param.grad for param in self._owners]
        for param, grad in zip(self._owners, grads, strict=True):
            if grad is not None and grad not in self._brought:
                self._brought[grad] = shard_like(param, grad)
        return [None if grad is None else self._brought[grad] for grad in grads]

    def replaced(self) -> bool:
        """Also whether there is other memory under a parameter, as when a module was moved."""
        shards = list(map(local, self._owners))
        return not _C.same_items(shards, self.params) or super().replaced()

    def release(self) -> None:
        super().release()
        self._brought: dict[Tensor, Tensor] = {}
