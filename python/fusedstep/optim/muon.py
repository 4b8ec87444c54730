"""Muon, and AdamW for all other parameters. Elementwise formulas: kernels/optim/rules/muon.h.

A step has three parts. The first pass updates the parameters of AdamW's groups and writes the
direction of each matrix's momentum. Newton-Schulz iterations orthogonalize the directions:
newton_schulz.py; where the user asks, their rows are normalized: normuon.py. The second pass moves
the matrices along them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Muon as TorchsMuon  # by this name even if users put ours in its place

from fusedstep.checks import refuse, require_beta, require_count
from fusedstep.optim import adam
from fusedstep.optim.distributed import Place
from fusedstep.optim.hyperparameters import (
    Group,
    Values,
    flag,
    label,
    numbers,
    parameter_labels,
    rule_fields,
)
from fusedstep.optim.matrices import RATIOS, Division, division_of
from fusedstep.optim.muon_tables import DescentTable, DirectionTable
from fusedstep.optim.newton_schulz import Iteration
from fusedstep.optim.normuon import Moments
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import OptionArguments, Options
from fusedstep.optim.state import MOMENT, StateSpec
from fusedstep.optim.step import Step
from fusedstep.optim.tables import Table
from fusedstep.optim.whole_matrices import MatrixGroup, WholeMatrices

if TYPE_CHECKING:
    from typing_extensions import Unpack

# torch.optim.AdamW's arguments and defaults, for groups with use_muon=False.
ADAMW = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False,
    "decoupled_weight_decay": True,
}  # fmt: skip
# What torch's groups lack, without a meaning for them; a checkpoint without it leaves it as it is.
NOT_IN_TORCH = Division()._asdict() | {"normuon_beta2": None}
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
    `use_muon=False`.

    DTensors may be placed in any way on meshes of any number of dimensions. Each matrix is sent to
    one rank of its mesh, which orthogonalizes its share of them, in the batches that one process
    would form, and sends them back. That takes two all-to-alls a step for each mesh. An element of
    a shard travels at most once each way, in bfloat16: 4 (W - 1) / W bytes a step for W ranks. FSDP
    moves W / 2 times as many to gather bfloat16 parameters once. While matrices travel, a rank
    needs up to 4 bytes more for each element of its shard and of the batches that it owns, which
    are about a shard if there are many more batches than ranks. If matrices of equal shape are on
    one mesh, the bits are those of one process. All matrices of a mesh take part in every step. If
    a rank has no gradient of one, its part of the direction counts as zeros, and its shard does not
    move. NorMuon's moments travel in the same messages: those of a row once to its owner, and back
    to every rank that holds a part of it, 4 bytes each time (8 of float64 parameters).

    With `split_sizes`, `num_heads` and `flatten`, a parameter holds several matrices. Each moves as
    it would as a parameter of its own, bit for bit, except for what depends on an element's place
    in its parameter: the blocks of 8-bit state and the random numbers of stochastic rounding.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. Muon's
            parameters are matrices [m, n], stacks of matrices [e, m, n], such as those of experts,
            and, with `flatten`, tensors of more dimensions. The arguments below are Muon's, and
            each may be an entry of a group; a group with `use_muon=False` takes `lr`, `betas`,
            `eps`, `weight_decay` and `amsgrad`, with torch.optim.AdamW's defaults.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        weight_decay: The parameter is multiplied by `1 - lr * weight_decay` at every step.
        momentum: Decay rate of the average of the gradients, 0 or more.
        nesterov: Use Nesterov momentum.
        ns_coefficients: Coefficients a, b and c of the iteration X <- a X + (b G + c G^2) X with G
            = X X^T.
        eps: Smallest Frobenius norm that a direction is divided by, 0 or more.
        ns_steps: Number of iterations, 0 to 99.
        adjust_lr_fn: Ratio of the step to `lr` for a matrix [m, n] that is orthogonalized. None or
            `"original"`: sqrt(max(1, m / n)); `"match_rms_adamw"`: 0.2 sqrt(max(m, n));
            `"spectral_unclamped"`: sqrt(m / n).
        maximize: Maximize the objective instead of minimizing it, in groups that do not override
            it.
        split_sizes: Row counts of the matrices that each matrix [m, n] of a parameter holds one
            below the other, such as Q, K and V in one weight, or the gate and the up projection of
            a gated MLP; their sum is m. Each is orthogonalized by itself. None: one matrix.
        num_heads: Number of heads, equal blocks of rows that are each orthogonalized by itself: an
            int for all of `split_sizes`, or one for each, as grouped-query attention needs. For a
            weight whose rows are q, k and v of one head after the other, use three times the number
            of heads and no `split_sizes`. None: one.
        flatten: True: a parameter [m, ...], such as a convolution's kernel, is one matrix whose
            columns are its other dimensions. False: a parameter [..., m, n] is a stack of matrices.
            None: the same, but four dimensions or more are refused, because a stack of a
            convolution's [height, width] is rarely meant.
        normuon_beta2: Decay rate of NorMuon's second moments, in [0, 1); the authors use 0.95. Each
            row of an orthogonal matrix is divided by the root of the average of its mean square,
            and the matrix scaled back to its Frobenius norm, so that all rows move about equally
            far. The state has a `second_momentum_buffer` with one column, which is float32 or
            float64 with any `state_dtype`. Of a DTensor, each rank has the moments of its rows,
            and ranks that share a row have the same. NorMuon decays weights as Muon does. None:
            Muon.
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

        Q of 32 heads, K and V of 8 heads each, in one weight [(32 + 8 + 8) * 128, d]; the gate and
        the up projection of all experts in one weight [e, 2 * h, d]; the rest of the matrices:

        >>> opt = fusedstep.Muon([
        ...     {"params": qkv, "split_sizes": (4096, 1024, 1024), "num_heads": (32, 8, 8)},
        ...     {"params": gate_up, "split_sizes": (h, h)},
        ...     {"params": other_matrices},
        ...     {"params": the_rest, "use_muon": False},
        ... ], lr=0.02)

    Sources: Jordan 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, equation 4; Bernstein 2025,
    https://jeremybernste.in/writing/deriving-muon; Li et al. 2025 (NorMuon),
    https://arxiv.org/abs/2510.05491.
    """

    _rule = "muon"
    _table_type = DirectionTable
    _never_negative = adam.NEVER_NEGATIVE
    _not_in_torch = frozenset({MOMENT})

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
        split_sizes: Sequence[int] | None = None,
        num_heads: int | Sequence[int] | None = None,
        flatten: bool | None = None,
        normuon_beta2: float | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn, "maximize": maximize, "use_muon": True,
            "split_sizes": split_sizes, "num_heads": num_heads, "flatten": flatten,
            "normuon_beta2": normuon_beta2,
        }  # fmt: skip
        params, *_ = self._prepare(params, defaults, options)
        # Its constructor refuses the parameters of AdamW's groups.
        super(TorchsMuon, self).__init__(params, defaults)

    def _begin(self, options: Options, native: bool, divided: bool) -> None:
        super()._begin(options, native, divided)
        self._whole_matrices = WholeMatrices()

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
        index, group = len(self.param_groups) - 1, self.param_groups[-1]
        try:
            self._require_matrices(group, index)
        except Exception:
            self.param_groups.pop()
            raise
        if group["use_muon"]:  # tuples of ints, which need not be read again at every step
            group.update(division_of(type(self).__name__, group, index)._asdict())

    def _append_group(self, param_group: dict[str, Any]) -> None:
        # From torch 2.15 on, that of its Muon refuses the parameters of AdamW's groups.
        super(TorchsMuon, self).add_param_group(param_group)

    def _require_matrices(self, group: Group, index: int) -> None:
        """Refuses parameters of group `index` that its values, those of `group`, do not fit."""
        name, own = type(self).__name__, self.param_groups[index]
        division = division_of(name, group, index) if group["use_muon"] else None
        if group["use_muon"] and self.options.mode.of(group).stochastic_rounding:
            # The first launch would round the directions so, too.
            refuse(name, label(index, "stochastic_rounding"), "be False where use_muon", True)
        labels = parameter_labels(own, f"param_groups[{index}]['params']")
        for where, param in zip(labels, own["params"], strict=True):
            if division is not None:
                division.require(name, index, where, param)

    def _completed(self, saved: Group, index: int) -> Group:
        saved = dict(saved)
        _complete(saved, self.param_groups[index])
        completed = super()._completed(saved, index)
        self._require_matrices(completed, index)
        return completed

    @torch._disable_dynamo
    def __setstate__(self, state: dict[str, Any]) -> None:
        groups = state["param_groups"]  # a checkpoint's may come from another implementation
        own = getattr(self, "param_groups", [NOT_IN_TORCH] * len(groups))  # or a pickle's
        for group, before in zip(groups, own, strict=True):
            _complete(group, before)
        super().__setstate__(state)

    def to_torch_state_dict(self) -> dict[str, Any]:
        """As in every optimizer; how matrices are divided, and NorMuon's entries, are left out."""
        exported = super().to_torch_state_dict()
        for group in exported["param_groups"]:
            for key in NOT_IN_TORCH:
                group.pop(key, None)
        return exported

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["use_muon"] else adam.state_names(group)

    def _spec(self, group: Group) -> StateSpec:
        spec = super()._spec(group)
        if not group["use_muon"]:
            return spec
        moments = group["normuon_beta2"] is not None
        return spec._replace(division=Division.of(group), moments=moments)

    def _rule_values(self, group: Group, index: int | None) -> Values:
        name = type(self).__name__
        use_muon = flag(name, group, index, "use_muon")
        if not use_muon:
            return UNUSED | adam.rule_values(name, group, index)
        numbers(name, group, index, ("eps",))
        _require_iteration(name, group, index)
        division_of(name, group, index)
        if group["normuon_beta2"] is not None:
            require_beta(name, label(index, "normuon_beta2"), group["normuon_beta2"])
        values = numbers(name, group, index, ("weight_decay", "momentum"))
        nesterov = flag(name, group, index, "nesterov")
        return UNUSED | values | {"nesterov": nesterov, "use_muon": use_muon}

    # --- the step --------------------------------------------------------------------------------

    def _write(self, step: Step, active: dict[Place, Table]) -> Tensor | None:
        norm = super()._write(step, active)  # AdamW's part, and the directions
        written: dict[Tensor, list[Tensor]] = {}
        moments: dict[Tensor, Moments] = {}  # a rank sends its own even where it has no gradients
        for table in _tables_of(self._internals.tables):
            moments.update(table.moments)
        tables = _tables_of(active)
        for table in tables:
            written.update(table.written_matrices())
        groups = [
            MatrixGroup(group["params"], Division.of(group), _iteration_of(group), _beta2_of(group))
            for group in self.param_groups
            if group["use_muon"]
        ]
        self._whole_matrices.orthogonalize_(
            groups, written, moments, self._internals.tables.version
        )
        for table in tables:
            if table.descent.has_grads:
                table.moments.advance(step, written.keys(), norm)
                self._descend(step, table.descent, norm)
        return norm

    def _descend(self, step: Step, table: DescentTable, norm: Tensor | None) -> None:
        """Moves the matrices, unless the step is skipped, by the same test as the first pass."""
        plan, groups = table.plan_for(step, self.param_groups)
        norm = None if norm is None else norm.to(table.place.device)
        step.run(table, plan, groups, norm)  # clipped in the first pass


def _tables_of(tables: Mapping[Place, Table]) -> list[DirectionTable]:
    return [table for table in tables.values() if isinstance(table, DirectionTable)]


def _beta2_of(group: Group) -> float | None:
    beta2 = group["normuon_beta2"]
    return None if beta2 is None else float(beta2)


def _iteration_of(group: Group) -> Iteration:
    return Iteration(tuple(group["ns_coefficients"]), group["ns_steps"], float(group["eps"]))


# --- checks of parameter groups -------------------------------------------------------------------


def _complete(group: dict[str, Any], before: Group | None = None) -> None:
    """Fills in what a group lacks: AdamW's defaults in its groups, so that Muon's do not apply.

    A checkpoint's group that lacks entries of NOT_IN_TORCH has those that it had `before`.
    """
    if not group.get("use_muon", True):
        for name, value in ADAMW.items():
            group.setdefault(name, value)
    if before is not None:
        for name in NOT_IN_TORCH:
            group.setdefault(name, before[name])


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
