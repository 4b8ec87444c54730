"""The tensor tables of an optimizer, kept between steps: one for each place of its parameters.

The life of a table:

    Table.open            are parameters and states still what and where they were? If so, take
                          over the gradients' addresses
    Tables.rebuild        if not: check everything, create missing state, assign everything again
    Table.open_rebuilt    take over the gradients' addresses, or make copies that kernels can read
    (the ops)             read and write what the C++ table lists; tables without gradients rest
    Table.commit          copy back parameters with gaps, advance autograd's version counters
    Table.release         drop all tensors, so that their memory can be freed

Between steps a table keeps the parameters and addresses, but no state: what is replaced is freed at
once. The C++ table outlives rebuilds, because a captured CUDA graph may still point to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse, require_dense
from fusedstep.fakes import register_fake, register_writers
from fusedstep.optim.distributed import (
    Place,
    is_dtensor,
    is_flattened,
    local,
    place_of,
    require_mesh_of,
    require_placed,
    shard_like,
)
from fusedstep.optim.hyperparameters import parameter_labels
from fusedstep.optim.memory import gapless, in_layout_of, is_dense, is_plain, refuse_overlap
from fusedstep.optim.options import require_mode_of
from fusedstep.optim.sendable import received
from fusedstep.optim.shards import first_element
from fusedstep.optim.state import (
    Array,
    Initial,
    Role,
    StateSpec,
    arrays_of,
    prepare_state,
    require_moment,
    require_state,
)

Groups = list[dict[str, Any]]  # an optimizer's param_groups
States = list[dict[str, Tensor]]  # of parameters, in a table's order
State = dict[Tensor, dict[str, Tensor]]  # an optimizer's state

register_writers("table_assign")

OF_VALUE = (Role.MASTER, Role.AVERAGE)  # arrays of what a parameter is, not of how it moves

_REFRESH = torch.ops.fusedstep.table_refresh.default


@register_fake("table_refresh")
def _(table: int, grads: list[Tensor], missing: list[int]) -> bool:
    return True


class Entry(NamedTuple):
    """A parameter that a table lists."""

    label: str  # its name in messages
    param: Tensor
    position: int  # in the optimizer's list of parameters
    source: str  # the attribute that holds its gradient

    @property
    def grad(self) -> Tensor | None:
        """Its gradient. A parameter that lacks the attribute has none."""
        grad: Tensor | None = getattr(self.param, self.source, None)
        return grad

    @property
    def grad_label(self) -> str:
        """The gradient's name in messages."""
        return f"{self.label}.{self.source}"


class Table:
    """The parameters at one place that have state, group after group, and their C++ table."""

    def __init__(self, function: str, place: Place) -> None:
        self.function = function
        self.place = place
        self.handle = _C.TensorTable()
        self.address = self.handle.address
        self._entries: list[Entry] = []
        self._owners: list[Tensor] = []  # the optimizer's parameters, DTensors included
        self._listed = False  # whether gradients must be listed: of DTensors, or not in `.grad`
        self._arrays: list[list[Array]] = []  # what each has besides its gradient
        self._names: list[tuple[str, ...]] = []  # of the arrays
        self._firsts: list[int] = []  # where each begins in the whole tensor
        self._group_sizes: list[int] = []
        self._rows: list[int] = []  # where each one's state is among the optimizer's states
        self._strided: list[int] = []  # indices of parameters whose elements have gaps
        self._averaged: set[int] = set()  # indices of parameters that have an average
        self._resting = _C.TensorTable()  # of those of them that have no gradient
        self._at_rest: list[int] | None = None  # whose indices are these; None: to be assigned
        self.release()

    def release(self) -> None:
        """Drops all tensors of the step but the optimizer's parameters."""
        self.params: list[Tensor] = []  # what the kernels write: the owners' local memory
        self._states: States = []
        self._grads: list[Tensor] = []
        self._missing: list[int] = []  # indices of parameters without one
        self._copies: list[Tensor] = []
        self._redistributed: dict[Tensor, Tensor] = {}

    @cached_property
    def norm(self) -> Tensor:
        """Where the norm of the gradients here is computed: 0-d float64."""
        return torch.empty((), dtype=torch.float64, device=self.place.device)

    @property
    def has_grads(self) -> bool:
        """Whether a parameter has a gradient in this step."""
        return bool(self._grads)

    # --- what subclasses may read and write instead of the parameters themselves ---------------

    def _data(self) -> list[Tensor]:
        """The tensors that the kernels update in place of the parameters: their local memory."""
        return self._owners if self.place.mesh is None else list(map(local, self._owners))

    def _gradients(self) -> list[Tensor | None] | None:
        """The gradient of each parameter, as the kernels read it; None if there is none.

        Instead of a list None, if each tensor in `_data` has its own.
        """
        if not self._listed:
            return None
        return [self._local_grad(entry) for entry in self._entries]

    def _local_grad(self, entry: Entry) -> Tensor | None:
        """The gradient; of a DTensor, the part that belongs to the shard of its parameter.

        If a gradient is placed differently from its parameter, all ranks communicate: once per
        step, even if one of them has to rebuild its table.
        """
        param, grad = entry.param, entry.grad
        if grad is None or not is_dtensor(param):
            return grad
        require_mesh_of(self.function, entry.grad_label, param, grad)
        if is_dtensor(grad) and grad.placements == param.placements:
            return local(grad)
        if grad not in self._redistributed:
            self._redistributed[grad] = shard_like(param, grad)
        return self._redistributed[grad]

    # --- the life of a table ---------------------------------------------------------------------

    def rebuild(
        self,
        groups: list[list[Entry]],
        specs: list[StateSpec],
        state: State,
        initial: Initial,
    ) -> None:
        """Lists the parameters of each group, already checked; specs[g]: what state they have."""
        self._entries = list(chain.from_iterable(groups))
        self._owners = [entry.param for entry in self._entries]
        self._firsts = list(map(first_element, self._owners))
        sources = {entry.source for entry in self._entries}
        self._listed = self.place.mesh is not None or sources != {"grad"}
        self.params = self._data()
        self._strided = [i for i, param in enumerate(self.params) if not is_dense(param)]
        self._arrays = arrays = [
            arrays_of(entry.param, spec)
            for group, spec in zip(groups, specs, strict=True)
            for entry in group
        ]
        for param, needed in zip(self._owners, arrays, strict=True):
            if needed:
                prepare_state(param, state[param], needed, initial)
        self._names = [tuple(array.name for array in needed) for needed in arrays]
        self._states = [state.get(param, {}) for param in self._owners]
        self._group_sizes = list(map(len, groups))
        self._averaged = {
            i for i, needed in enumerate(arrays) if any(a.role == Role.AVERAGE for a in needed)
        }
        self._at_rest = None
        if not self._strided:
            self._assign(self.params)

    def find_states(self, states: Mapping[Tensor, int]) -> None:
        """Notes where the states of the parameters are among all, given by index."""
        self._rows = [states.get(param, len(states)) for param in self._owners]

    def _assign(self, params: list[Tensor]) -> None:
        everything = range(len(params))
        self._assign_to(self.handle, params, everything, self._arrays, self._group_sizes)

    def _assign_to(
        self,
        handle: _C.TensorTable,
        params: list[Tensor],
        indices: Sequence[int],
        arrays: list[list[Array]],
        group_sizes: list[int],
    ) -> None:
        """Lists the parameters at `indices` of this table in `handle`, with `arrays` of each."""
        states = [self._states[i] for i in indices]
        torch.ops.fusedstep.table_assign(
            handle.address,
            params,
            [local(s[array.name]) for s, of in zip(states, arrays, strict=True) for array in of],
            [array.role for array in chain.from_iterable(arrays)],
            list(map(len, arrays)),
            group_sizes,
            [self._entries[i].position for i in indices],
            [self._firsts[i] for i in indices],
        )

    def open(self, states: States) -> bool:
        """Takes over the gradients, if parameters and states are as they were when assigned.

        `states` are all of the optimizer and an empty one. Parameters with gaps are assigned anew
        at every step, as copies without.
        """
        grads, self.params = self._gradients(), self._data()  # ranks communicate in one order
        opened = None
        if not self._strided:
            sharded = self.place.mesh is not None
            opened = self.handle.open(self.params, grads, states, self._rows, self._names, sharded)
        if opened is None:
            return False
        self._grads, self._missing = opened
        if self._averaged:  # `resting` may have to assign
            self._states = [states[row] for row in self._rows]
        return True

    def open_rebuilt(self) -> None:
        """Takes over the gradients after `rebuild`, which has checked them; writes no tensor."""
        grads = self._gradients()
        if grads is None:
            grads = [entry.grad for entry in self._entries]
        self._grads = [grad for grad in grads if grad is not None]
        self._missing = [i for i, grad in enumerate(grads) if grad is None]
        if self._grads:
            plain = not self._strided and _refresh(self.handle, self._grads, self._missing)
            self._require(plain or self._refresh_by_copies())

    def _refresh_by_copies(self) -> bool:
        """Takes gapless copies of parameters that have gaps and of unusual gradients."""
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
        return _refresh(self.handle, grads, self._missing)

    def _require(self, taken: bool) -> None:
        if not taken:
            raise RuntimeError(f"{self.function}: a table refused checked tensors")

    def resting(self) -> Iterator[tuple[_C.TensorTable, Tensor]]:
        """A C++ table of the parameters without a gradient that have an average, and the first."""
        at_rest = [i for i in self._missing if i in self._averaged]
        if not at_rest:
            return
        params = [self.params[i] for i in at_rest]
        if self._strided:
            params = list(map(gapless, params))  # which are only read
        if at_rest != self._at_rest:
            arrays = [
                [array for array in self._arrays[i] if array.role in OF_VALUE] for i in at_rest
            ]
            self._assign_to(self._resting, params, at_rest, arrays, [len(params)])
            self._require(_refresh(self._resting, params, []))
            self._at_rest = at_rest
        yield self._resting, params[0]

    def commit(self) -> None:
        """Copies results back; autograd's version counters advance, so a stale backward raises."""
        for i in self._strided:
            self.params[i].copy_(self._copies[i])
        written = self._owners
        if self._missing:
            missing = set(self._missing)
            written = [param for i, param in enumerate(written) if i not in missing]
        torch.autograd.graph.increment_version(written)


def _refresh(handle: _C.TensorTable, grads: list[Tensor], missing: list[int]) -> bool:
    """Whether the table could take over the gradients that exist."""
    try:
        return bool(_REFRESH(handle.address, grads, missing))
    except NotImplementedError:  # what the dispatcher raises for gradients without a kernel
        return False


class Tables(dict[Place, Table]):
    """The tables by place: a device and, for DTensors, their mesh and how they are sharded.

    `function` is the optimizer's name in messages, `source` the attribute of its parameters that
    holds their gradients, `kind` the class of its tables.
    """

    def __init__(self, function: str, source: str, kind: type[Table] = Table) -> None:
        self._function = function
        self._source = source
        self._kind = kind
        self._params: list[Tensor] = []
        self._group_sizes: list[int] = []
        self._stateless: list[Tensor] = []  # parameters that never had a gradient
        self._with_state: list[Tensor] = []  # the keys of the optimizer's state
        self._specs: list[StateSpec] = []
        self.version = 0  # counts how often the parameters were listed anew
        self.shared: list[Place] = []  # places of DTensors, which other ranks have as well
        self.on_gpu = False  # some of them
        self.flattened: str | None = None  # an FSDP1 slice; the other ranks' slices are unknown

    def _open_as_they_are(self, groups: Groups, state: State, specs: list[StateSpec]) -> bool:
        """Opens all tables; False if something has changed since they were made."""
        if not self or self._specs != specs or type(groups) is not list:
            return False
        for param in self._stateless:
            if getattr(param, self._source, None) is not None:
                return False
        states = _C.states_of(groups, self._params, self._group_sizes, state, self._with_state)
        if states is None:
            return False
        opened = [table.open(states) for table in self.values()]  # all: ranks communicate in them
        return all(opened)

    def rebuild(
        self, groups: Groups, state: State, specs: list[StateSpec], initial: Initial
    ) -> None:
        """Checks parameters, gradients and states, then creates the states and tables they need.

        specs[g]: what state the parameters of group g have.
        """
        self.forget()  # if anything below is refused, the next step must check again
        self.version += 1
        labels: list[str] = []
        params: list[Tensor] = []
        stateless: list[Tensor] = []
        by_place: dict[Place, list[list[Entry]]] = {}
        for g, group in enumerate(groups):
            of_group = parameter_labels(group, first=len(params))
            labels += of_group
            for label, param in zip(of_group, group["params"], strict=True):
                entry = Entry(label, param, len(params), self._source)
                params.append(param)
                self._require_steppable(entry, specs[g])
                if (division := specs[g].division) is not None:
                    division.require(self._function, g, label, param)
                if entry.grad is None and not state.get(param):
                    stateless.append(param)
                    continue
                there = state.get(param, {})
                # ZeRO puts checkpoints into states.
                whole = received(self._function, label, there, specs[g])
                if whole is not there:
                    there = state[param] = dict(whole)
                require_state(self._function, label, param, there, arrays_of(param, specs[g]))
                require_moment(self._function, label, param, there, specs[g])
                here = by_place.setdefault(place_of(param), [[] for _ in groups])
                here[g].append(entry)
        for here in by_place.values():
            entries = list(chain.from_iterable(here))
            shards = [local(entry.param) for entry in entries]
            refuse_overlap(self._function, [entry.label for entry in entries], shards)

        # Ranks communicate table by table: in an order that does not depend on the gradients.
        tables = {
            place: self.get(place) or self._kind(self._function, place)
            for place in dict.fromkeys(map(place_of, params))
            if place in by_place
        }
        self.clear()
        self.update(tables)
        for place, table in self.items():
            table.rebuild(by_place[place], specs, state, initial)
        self.shared = list(dict.fromkeys(place_of(p) for p in params if is_dtensor(p)))
        slices = (name for name, p in zip(labels, params, strict=True) if is_flattened(p))
        self.flattened = next(slices, None)
        self._params, self._stateless, self._specs = params, stateless, specs
        self._group_sizes = [len(group["params"]) for group in groups]
        self.on_gpu = any(place.device.type == "cuda" for place in self)
        self._with_state = list(state)
        index = {param: i for i, param in enumerate(state)}
        for table in self.values():
            table.find_states(index)

    def _require_steppable(self, entry: Entry, spec: StateSpec) -> None:
        """Refuses a parameter or gradient that the kernels cannot read and write."""
        label, param, *_ = entry
        shard = local(param)
        require_dense(self._function, label, shard)
        require_placed(self._function, label, param)
        if not is_plain(shard, shard.stride()):
            refuse(self._function, label, "hold its values in memory", "a lazy negation or zero")
        grad, name = entry.grad, entry.grad_label
        if grad is not None:
            require_dense(self._function, name, local(grad))
            require_mesh_of(self._function, name, param, grad)
            if grad.device != param.device:
                must = f"be on {param.device}, as its parameter"
                refuse(self._function, name, must, grad.device)
            if grad.shape != param.shape:
                must = f"have its parameter's shape {tuple(param.shape)}"
                refuse(self._function, name, must, tuple(grad.shape))
        require_mode_of(self._function, label, param, spec.mode)

    def open(
        self, groups: Groups, state: State, specs: list[StateSpec], initial: Initial
    ) -> dict[Place, Table]:
        """The tables of the places where there are gradients, ready for the ops; close them after.

        It is no context manager, which would cost a small step a tenth of its time.
        """
        try:
            if not self._open_as_they_are(groups, state, specs):
                self.rebuild(groups, state, specs, initial)
                for table in self.values():
                    table.open_rebuilt()
        except BaseException:
            self.close()
            raise
        return {place: table for place, table in self.items() if table.has_grads}

    def close(self) -> None:
        """Lets go of what `open` bound."""
        for table in self.values():
            table.release()

    def forget(self) -> None:
        """Makes the next step rebuild; the C++ tables stay for the graphs that use them."""
        self._params = []
