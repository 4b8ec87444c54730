"""One plan for each place an optimizer has parameters at, and whether they still fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse, require_dense
from fusedstep.distributed import (
    Place,
    is_dtensor,
    is_flattened,
    local,
    place_of,
    refuse_mixture,
    require_placed,
)
from fusedstep.optim.arrays import Kept, arrays_of
from fusedstep.optim.hyperparameters import parameter_labels
from fusedstep.optim.modes import require_mode_of
from fusedstep.optim.plan import Named, Plan, require_gradient
from fusedstep.optim.sharded_plan import ShardedPlan
from fusedstep.optim.state import Initial, require_state
from fusedstep.overlap import is_plain, refuse_overlap

Groups = Sequence[Mapping[str, Any]]  # an optimizer's param_groups
State = dict[Tensor, dict[str, Tensor]]  # an optimizer's state


class Plans(dict[Place, Plan]):
    """The plans by place: a device and, of DTensors, what is sharded how over which ranks.

    `function` is how messages call the optimizer, `kind` the class of plans of plain tensors.
    """

    def __init__(self, function: str, kind: type[Plan] = Plan) -> None:
        self._function = function
        self._kind = kind
        self._listed: list[Tensor] = []
        self._group_sizes: list[int] = []
        self._stateless: list[Tensor] = []  # parameters that never had a gradient
        self._entries: list[dict[str, Tensor]] = []  # the state's, which users may clear or refill
        self._kept: list[Kept] = []
        self.shared: list[Place] = []  # those of all DTensors, which other ranks have as well
        self.flattened: str | None = None  # a slice of which nobody knows who has the others

    def fit(self, groups: Groups, state: State, kept: list[Kept]) -> bool:
        """Whether parameters and state are the objects that the plans were made from.

        Tensors that moved in memory under the same object are for the tables to notice.
        """
        lists = [group["params"] for group in groups]
        return (
            bool(self)
            and _C.same_items(list(chain.from_iterable(lists)), self._listed)
            and self._group_sizes == list(map(len, lists))
            and _C.same_items(list(state.values()), self._entries)
            and (not self._stateless or all(param.grad is None for param in self._stateless))
            and not any(plan.replaced() for plan in self.values())
            and self._kept == kept
        )

    def make(self, groups: Groups, state: State, kept: list[Kept], initial: Initial) -> None:
        """Checks parameters, gradients and states, then makes the states and tables they need.

        `kept[g]`: what is kept of the parameters of group g.
        """
        self.forget()  # should anything below be refused, the next step must look again
        labels: list[str] = []
        listed: list[Tensor] = []
        stateless: list[Tensor] = []
        by_place: dict[Place, list[list[Named]]] = {}
        for g, group in enumerate(groups):
            named = parameter_labels(group, first=len(listed))
            labels += named
            for label, param in zip(named, group["params"], strict=True):
                listed.append(param)
                shard = local(param)
                require_dense(self._function, label, shard)
                require_placed(self._function, label, param)
                if not is_plain(shard, shard.stride()):
                    got = "a lazy negation or zero"
                    refuse(self._function, label, "hold its values in memory", got)
                require_gradient(self._function, label, param)
                require_mode_of(self._function, label, param, kept[g].mode)
                if param.grad is None and not state.get(param):
                    stateless.append(param)
                    continue
                there = state.get(param, {})
                require_state(self._function, label, param, there, arrays_of(param, kept[g]))
                here = by_place.setdefault(place_of(param), [[] for _ in groups])
                here[g].append((label, param, len(listed) - 1))
        refuse_mixture(self._function, labels, listed)
        for here in by_place.values():
            names_here, params, _ = zip(*chain.from_iterable(here), strict=True)
            refuse_overlap(self._function, names_here, list(map(local, params)))

        for place, here in by_place.items():
            kind = self._kind if place.mesh is None else ShardedPlan
            self.setdefault(place, kind(self._function)).rebuild(here, kept, state, initial)
        for place in self.keys() - by_place.keys():
            del self[place]
        self.shared = list(dict.fromkeys(place_of(p) for p in listed if is_dtensor(p)))
        slices = (name for name, p in zip(labels, listed, strict=True) if is_flattened(p))
        self.flattened = next(slices, None)
        self._listed, self._stateless, self._kept = listed, stateless, kept
        self._group_sizes = [len(group["params"]) for group in groups]
        self._entries = list(state.values())

    def forget(self) -> None:
        """Makes the next step look at everything; the tables stay for the graphs that use them."""
        self._listed = []
