"""The plan over DTensors of one mesh: the kernels are given the shards that lie here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedstep import _C
from fusedstep.distributed import local, require_mesh_of, shard_like
from fusedstep.optim.plan import Named, Plan


class ShardedPlan(Plan):
    """A Plan whose parameters, gradients and state are DTensors."""

    def rebuild(self, groups: list[list[Named]], *rest: Any) -> None:
        self._labels = [label for group in groups for label, _, _ in group]
        super().rebuild(groups, *rest)

    def _memory(self, params: list[Tensor]) -> list[Tensor]:
        return list(map(local, params))

    def _gradients(self) -> list[Tensor | None]:
        grads = [param.grad for param in self._owners]
        labelled = zip(self._labels, self._owners, grads, strict=True)
        return [None if grad is None else self._shard(*each, grad) for *each, grad in labelled]

    def _shard(self, label: str, param: Tensor, grad: Tensor) -> Tensor:
        """What of a gradient belongs to the shard of its parameter.

        One that is placed otherwise than its parameter takes all ranks to bring here. They do so
        once in a step, even where one of them has to look at its tensors again.
        """
        require_mesh_of(self.function, f"{label}.grad", param, grad)
        if grad.placements == param.placements:
            return local(grad)
        if grad not in self._brought:
            self._brought[grad] = shard_like(param, grad)
        return self._brought[grad]

    def replaced(self) -> bool:
        """Also whether there is other memory under a parameter, as when a module was moved."""
        shards = list(map(local, self._owners))
        return not _C.same_items(shards, self.params) or super().replaced()

    def release(self) -> None:
        super().release()
        self._brought: dict[Tensor, Tensor] = {}
