"""Muon, and AdamW for all other parameters. Elementwise formulas: kernels/optim/rules/muon.h.

A step has three parts. The first pass updates the parameters of AdamW's groups and writes the
direction of each matrix's momentum. Newton-Schulz iterations orthogonalize the directions:
newton_schulz.py. The second pass moves the matrices along them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Muon as TorchsMuon  # by this name even if users put ours in its place

from fusedstep import _C
from fusedstep.checks import refuse, require_count
from fusedstep.optim import adam
from fusedstep.optim.distributed import Place, is_dtensor
from fusedstep.optim.hyperparameters import (
    Group,
    Values,
    flag,
    label,
    numbers,
    parameter_labels,
    rule_fields,
)
from fusedstep.optim.newton_schulz import orthogonalize_
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import Mode, OptionArguments
from fusedstep.optim.state import Initial, StateSpec
from fusedstep.optim.step import Plan, Step
from fusedstep.optim.tables import Entry, Groups, State, States, Table

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The step's ratio to the rate, for a matrix of m rows and n columns: Jordan's, Liu et al. 2025,
# equation 4 (https://arxiv.org/abs/2502.16982), and Bernstein's.
RATIOS = {
    "original": lambda m, n: math.sqrt(max(1, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "spectral_unclamped": lambda m, n: math.sqrt(m / n),
}
# torch.optim.AdamW's arguments and defaults, for groups with use_muon=False.
ADAMW = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False,
    "decoupled_weight_decay": True,
}  # fmt: skip
# A group has the fields of both kinds of step; those of the other kind stay zero.
UNUSED = dict.fromkeys(rule_fields("muon"), 0.0)


class Muon(FusedOptimizer, TorchsMuon):
    """Muon for hidden matrices and AdamW for all other parameters, in one optimizer.

    A step computes the global norm, clips, decays and updates. For the hidden layers' matrices,
    Newton-Schulz iterations orthogonalize the momentum, in bfloat16 or, where that is faster on a
    CPU, in float32. Groups with `use_muon=False`, such as embeddings, heads, gains and biases, use
    AdamW, bitwise equal to fusedstep.AdamW.

    As in every optimizer here, the norm takes one launch. Clip, AdamW and Muon's momentum take one
    per compute type, or two if only some of its tensors are stored in that type (directions are
    bfloat16). Then come the matrix products of each shape, and the launches that move the matrices.
    State has torch's names, so checkpoints can be exchanged with torch.optim.Muon. In addition, a
    direction is kept for each matrix, in bfloat16. Parameters and gradients are float32, float64,
    bfloat16 or float16; their dtypes may differ. Sparse gradients are refused. State is float32, or
    float64 for float64 parameters, unless `state_dtype` is set. `stochastic_rounding` requires
    `use_muon=False`. DTensors raise a TypeError.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. Muon's
            parameters are matrices [m, n], each orthogonalized as a whole, also if it holds several
            (Q, K and V in one weight). The arguments below are Muon's; a group with
            `use_muon=False` takes `lr`, `betas`, `eps`, `weight_decay` and `amsgrad`, with
            torch.optim.AdamW's defaults.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        weight_decay: The parameter is multiplied by `1 - lr * weight_decay` at every step.
        momentum: Decay rate of the average of the gradients, 0 or more.
        nesterov: Use Nesterov momentum.
        ns_coefficients: Coefficients a, b and c of the iteration X <- a X + (b G + c G^2) X with G
            = X X^T.
        eps: Smallest Frobenius norm that a direction is divided by, 0 or more.
        ns_steps: Number of iterations, 0 to 99.
        adjust_lr_fn: Ratio of the step to `lr` for a matrix [m, n]. None or `"original"`:
            sqrt(max(1, m / n)); `"match_rms_adamw"`: 0.2 sqrt(max(m, n)); `"spectral_unclamped"`:
            sqrt(m / n).
        maximize: Maximize the objective instead of minimizing it, in groups that do not override
            it.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `Muon: <argument> must <property>, got <value>`; nothing is changed.

    Example:
        >>> opt = fusedstep.Muon([
        ...     {"params": hidden_matrices},
        ...     {"params": the_rest, "use_muon": False, "lr": 3e-4, "betas": (0.9, 0.95)},
        ... ], lr=0.02, weight_decay=0.01, max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/.
    """

    _rule = "muon"
    _never_negative = adam.NEVER_NEGATIVE

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        maximize: bool = False,
        **options: Unpack[OptionArguments],
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn, "maximize": maximize, "use_muon": True,
        }  # fmt: skip
        params, *_ = self._prepare(params, defaults, options)
        # Its constructor refuses the parameters of AdamW's groups.
        super(TorchsMuon, self).__init__(params, defaults)

    # --- groups ----------------------------------------------------------------------------------

    @torch._disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch.optim.Optimizer does.

        Args:
            param_group: `{"params": tensors}` and the values that differ from the defaults; with
                `use_muon=False` the defaults are AdamW's.

        Raises:
            ValueError, TypeError: The step would refuse the group. The group is not added.
        """
        if isinstance(param_group, dict):
            _complete(param_group)
        super().add_param_group(param_group)
        try:
            self._require_matrices(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise

    def _require_matrices(self, index: int) -> None:
        name, group = type(self).__name__, self.param_groups[index]
        if group["use_muon"] and self.options.mode.of(group).stochastic_rounding:
            # The first launch would round the directions so, too.
            refuse(name, label(index, "stochastic_rounding"), "be False where use_muon", True)
        labels = parameter_labels(group, f"param_groups[{index}]['params']")
        for where, param in zip(labels, group["params"], strict=True):
            if is_dtensor(param):  # the matrix products need all of it
                refuse(name, where, "be a plain tensor", type(param).__name__, TypeError)
            if group["use_muon"]:
                _require_matrix(name, where, param)

    def _completed(self, saved: Group) -> Group:
        saved = dict(saved)
        _complete(saved)
        return super()._completed(saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:  # a checkpoint may come from another implementation
            _complete(group)
        super().__setstate__(state)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["use_muon"] else adam.state_names(group)

    def _rule_values(self, group: Group, index: int | None) -> Values:
        name = type(self).__name__
        use_muon = flag(name, group, index, "use_muon")
        if not use_muon:
            return UNUSED | adam.rule_values(name, group, index)
        numbers(name, group, index, ("eps",))
        _require_iteration(name, group, index)
        values = numbers(name, group, index, ("weight_decay", "momentum"))
        nesterov = flag(name, group, index, "nesterov")
        return UNUSED | values | {"nesterov": nesterov, "use_muon": use_muon}

    # --- the step --------------------------------------------------------------------------------

    def _write(self, step: Step, active: dict[Place, Table]) -> Tensor | None:
        norm = super()._write(step, active)  # AdamW's part, and the directions
        for table in active.values():
            assert isinstance(table, _DirectionTable)
            iterations: dict[tuple[Any, ...], list[Tensor]] = {}
            for group, directions in zip(
                self.param_groups, table.written_directions(self.param_groups), strict=True
            ):
                if directions:
                    key = (tuple(group["ns_coefficients"]), group["ns_steps"], float(group["eps"]))
                    iterations.setdefault(key, []).extend(directions)
            for (coefficients, steps, eps), directions in iterations.items():
                orthogonalize_(directions, coefficients, steps, eps)
            if iterations:
                self._descend(step, table.descent, norm)
        return norm

    def _descend(self, step: Step, table: _DescentTable, norm: Tensor | None) -> None:
        """Moves the matrices, unless the step is skipped, by the same test as the first pass."""
        groups = [self.param_groups[g] for g, _ in table.kinds]
        norm = None if norm is None else norm.to(table.place.device)
        step.run(table, table.plan_for(step, groups), groups, norm)  # clipped in the first pass


# --- the tables of the two passes -----------------------------------------------------------------


class _DirectionTable(Table):
    """The table of the first pass: matrices are represented by their directions.

    A direction has its parameter's shape and layout and is bfloat16, which the matrix products
    read, or float64 for a float64 parameter. It is not state, since every step overwrites it. It is
    kept because the C++ table and CUDA graphs point to it.
    """

    def __init__(self, function: str, place: Place) -> None:
        self.descent = _DescentTable(function, place)
        self._directions: dict[Tensor, Tensor] = {}
        self._represented: list[Tensor] = []  # a direction or parameter for each of the table's
        super().__init__(function, place)

    def rebuild(
        self, groups: list[list[Entry]], specs: list[StateSpec], state: State, initial: Initial
    ) -> None:
        matrices = [
            group if "momentum_buffer" in spec.names else []
            for group, spec in zip(groups, specs, strict=True)
        ]
        if self.place.mesh is not None:  # converted since they were added
            first = next(chain.from_iterable(groups))
            refuse(self.function, first.label, "be a plain tensor", "a DTensor", TypeError)
        for entry in chain.from_iterable(matrices):
            _require_matrix(self.function, *entry[:2])  # a checkpoint may have made it Muon's
        old = self._directions
        self._directions = {
            entry.param: _direction_of(entry.param, old.get(entry.param))
            for entry in chain.from_iterable(matrices)
        }
        here = [
            _of_direction(spec) if of_muon else spec
            for spec, of_muon in zip(specs, matrices, strict=True)
        ]
        self._represented = [
            self._directions.get(entry.param, entry.param) for entry in chain.from_iterable(groups)
        ]
        super().rebuild(groups, here, state, initial)
        self.descent.rebuild_for(matrices, self._directions, specs, state, initial)

    def _data(self) -> list[Tensor]:
        return self._represented

    def find_states(self, states: Mapping[Tensor, int]) -> None:
        super().find_states(states)
        self.descent.find_states(states)

    def _gradients(self) -> list[Tensor | None]:
        return [entry.grad for entry in self._entries]

    def open(self, states: States) -> bool:
        return super().open(states) and self.descent.open(states)

    def open_rebuilt(self) -> None:
        super().open_rebuilt()
        self.descent.open_rebuilt()

    def resting(self) -> Iterator[tuple[_C.TensorTable, Tensor]]:
        yield from super().resting()
        yield from self.descent.resting()

    def written_directions(self, groups: Groups) -> list[list[Tensor]]:
        """For each parameter group, the directions that this step wrote."""
        written = {entry.param for entry in self._entries if entry.grad is not None}
        return [
            [self._directions[p] for p in group["params"] if p in self._directions and p in written]
            for group in groups
        ]

    def release(self) -> None:
        super().release()
        self.descent.release()


def _of_direction(spec: StateSpec) -> StateSpec:
    """What the first pass needs: the momentum, and the count if either pass rounds by it."""
    counts = ("step",) if spec.mode.rounds_params else ()
    names, mode = (*counts, *spec.names), Mode(spec.mode.state_dtype)
    return StateSpec(names, spec.never_negative, mode, average=False)


class _DescentTable(Table):
    """The table of the second pass: matrices, with their orthogonal directions as gradients.

    Matrices of one parameter group and one shape are a group of the table, because the step's ratio
    to the rate depends on the shape.
    """

    def rebuild_for(
        self,
        groups: list[list[Entry]],
        directions: dict[Tensor, Tensor],
        specs: list[StateSpec],
        state: State,
        initial: Initial,
    ) -> None:
        """Lists the matrices that have state, `groups` being those of the optimizer."""
        self._directions = directions
        by_kind: dict[tuple[int, torch.Size], list[Entry]] = {}
        for g, group in enumerate(groups):
            for entry in group:
                by_kind.setdefault((g, entry.param.shape), []).append(entry)
        self.kinds = list(by_kind)  # of each group here: the optimizer's group and the shape
        self._planned: tuple[Step, Plan] | None = None
        # The first pass keeps momentum and count; this one updates masters and averages.
        here = [specs[g]._replace(names=()) for g, _ in self.kinds]
        self.rebuild(list(by_kind.values()), here, state, initial)

    def plan_for(self, step: Step, groups: list[Group]) -> Plan:
        """The plan of the descent, made once for a step; groups[g] is the g-th of the table's."""
        if self._planned is None or self._planned[0] is not step:
            of_kinds = []
            for (g, (m, n)), group in zip(self.kinds, groups, strict=True):
                ratio = RATIOS[group["adjust_lr_fn"] or "original"](m, n) if m and n else 0.0
                of_kinds.append(step.values[g] | {"descent": 1.0, "counted": 1.0, "ratio": ratio})
            self._planned = step, step.plan_of(step.rule, groups, of_kinds)
        return self._planned[1]

    def _gradients(self) -> list[Tensor | None]:
        return [None if e.grad is None else self._directions[e.param] for e in self._entries]


Muon._table_type = _DirectionTable


def _direction_of(param: Tensor, old: Tensor | None) -> Tensor:
    """The old direction if it fits, else zeros."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.bfloat16
    new = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    fits = (
        old is not None
        and (old.device, old.shape, old.stride()) == (new.device, new.shape, new.stride())
        and old.dtype == dtype
    )
    return old if old is not None and fits else new


# --- checks of parameter groups -------------------------------------------------------------------


def _complete(group: dict[str, Any]) -> None:
    """Fills in AdamW's defaults in its groups, so that Muon's do not apply."""
    if not group.get("use_muon", True):
        for name, value in ADAMW.items():
            group.setdefault(name, value)


def _require_matrix(function: str, argument: str, param: Tensor) -> None:
    """A matrix: Muon updates nothing else."""
    if param.dim() != 2:
        must = "have two dimensions, or be in a group with use_muon=False"
        refuse(function, argument, must, tuple(param.shape))


def _require_iteration(name: str, group: Group, index: int | None) -> None:
    """Checks the arguments of the iteration and the ratio that are not plain numbers."""
    coefficients, steps = group["ns_coefficients"], group["ns_steps"]
    if not (
        isinstance(coefficients, (tuple, list))
        and len(coefficients) == 3
        and all(isinstance(c, (float, int, Real)) and math.isfinite(c) for c in coefficients)
    ):
        refuse(name, label(index, "ns_coefficients"), "be three numbers", repr(coefficients))
    require_count(name, label(index, "ns_steps"), steps, below=100)
    ratio = group["adjust_lr_fn"]
    if ratio is not None and not (isinstance(ratio, str) and ratio in RATIOS):
        must = f"be None or one of {', '.join(RATIOS)}"
        refuse(name, label(index, "adjust_lr_fn"), must, repr(ratio))
