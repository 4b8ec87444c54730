"""NorMuon's second moments: one for each row of an orthogonal matrix, which it is divided by.

Li et al. 2025, https://arxiv.org/abs/2510.05491, algorithm 1. Of a matrix O with n columns:

    v_i <- beta2 v_i + (1 - beta2) sum_j O_ij^2 / n
    O_i <- c O_i / (sqrt(v_i) + 1e-10)

c leaves the Frobenius norm of O as it was, as in the authors' code, so the ratios of `adjust_lr_fn`
keep their meaning. The paper's c makes it 0.2 sqrt(m n), which "match_rms_adamw" comes close to.
All rows share c, so a correction of the bias of v would cancel.

c needs all rows of a matrix, so whoever orthogonalized it computes this, and a DTensor's moments
travel with its parts: exchange.py. What results are the next moments. One launch for all then moves
the moments there, unless the step is skipped: an average (kernels/optim/average.h) with decay 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.optim.distributed import is_dtensor, local
from fusedstep.optim.newton_schulz import Iteration, orthogonalize_
from fusedstep.optim.row_blocks import Row, list_rows
from fusedstep.optim.state import MOMENT, Role, StateSpec, as_moment
from fusedstep.optim.step import Plan, Step
from fusedstep.switches import numerical

EPS = 1e-10


class Scaled(NamedTuple):
    """A matrix [m, n] to orthogonalize; where its rows have moments, these and their decay."""

    matrix: Tensor
    moments: Tensor | None  # [m, 1], float32 or float64
    beta2: float | None


def orthogonalize_batch_(batch: Sequence[Scaled], iteration: Iteration) -> None:
    """Orthogonalizes matrices of one shape, and normalizes those whose rows have moments.

    Args:
        batch: The matrices; they and their moments are overwritten, the moments by the next ones.
        iteration: The Newton-Schulz iteration of all of them.
    """
    orthogonalize_([each.matrix for each in batch], *iteration)
    normalize_(
        [
            (matrix, moments, beta2)
            for matrix, moments, beta2 in batch
            if moments is not None and beta2 is not None
        ]
    )


@numerical
def normalize_(scaled: Sequence[tuple[Tensor, Tensor, float]]) -> None:
    """Divides the rows of orthogonal matrices by the roots of their next moments.

    Args:
        scaled: Matrices [m, n] of one shape, each with its moments [m, 1], in float32 or float64,
            and beta2; matrices and moments are overwritten.
    """
    for beta2 in dict.fromkeys(beta2 for *_, beta2 in scaled):
        matrices, moments = zip(*((m, v) for m, v, beta in scaled if beta == beta2), strict=True)
        x, v = torch.stack(matrices), torch.stack(moments)
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=v.dtype)
        v = v * beta2 + lengths * (lengths / x.shape[-1]) * (1 - beta2)
        scales = 1 / (v.sqrt() + EPS)
        before, after = (
            torch.linalg.vector_norm(of_rows, dim=(-2, -1), keepdim=True)
            for of_rows in (lengths, lengths * scales)
        )
        x = x * (scales * (before / after.clamp_min(EPS)))
        torch._foreach_copy_([*matrices, *moments], [*x, *v])


class Moments(NamedTuple):
    """The moments of a parameter's rows on this rank."""

    moment: Tensor
    next: Tensor  # kept, because the C++ table and CUDA graphs point there
    parts: list[Tensor]  # of `next`, for each matrix; of a DTensor none
    address: int  # of the moment, when it was listed


class RowMoments(dict[Tensor, Moments]):
    """The moments at one place, by parameter, and the C++ table by which they move."""

    def __init__(self) -> None:
        super().__init__()
        self._table = _C.TensorTable()
        self._listed: list[Moments] = []
        self._planned: tuple[Step, Plan] | None = None

    def rebuild(
        self, params: Mapping[Tensor, StateSpec], state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        """Creates the moments of parameters that lack them, and converts the others."""
        old = dict(self)
        self.clear()
        self._listed = []
        for param, spec in params.items():
            if not spec.moments or spec.division is None or not param.numel():
                continue
            value = as_moment(param, spec.division, state[param].get(MOMENT))
            state[param][MOMENT] = value
            moment = local(value)
            following = old[param].next if param in old else torch.empty(0)
            if (following.shape, following.dtype, following.device) != (
                moment.shape, moment.dtype, moment.device,
            ):  # fmt: skip
                following = torch.zeros_like(moment)
            parts = [] if is_dtensor(param) else spec.division.matrices(following)
            self[param] = Moments(moment, following, parts, moment.data_ptr())

    def are_current(self, states: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Whether the moments are those of the parameters' states, where they were listed."""
        for param, rows in self.items():
            moment = states[param].get(MOMENT)
            if moment is None or local(moment) is not rows.moment:
                return False
            if rows.moment.data_ptr() != rows.address:
                return False
        return True

    def advance(self, step: Step, params: Set[Tensor], norm: Tensor | None) -> None:
        """Moves the moments of `params` to the next ones.

        Args:
            step: The step that has orthogonalized the directions.
            params: The parameters with a gradient.
            norm: The gradients' norm, which decides whether the step is skipped; None: it is not.
        """
        rows = [each for param, each in self.items() if param in params and each.next.numel()]
        if not rows:
            return
        if [id(each) for each in rows] != [id(each) for each in self._listed]:
            listed = [
                Row(each.next, each.next, [each.moment], [Role.AVERAGE], i)
                for i, each in enumerate(rows)
            ]
            if not list_rows(self._table.address, [listed]):
                raise RuntimeError(f"{step.function}: a table refused moments of rows")
            self._listed = rows
        if self._planned is None or self._planned[0] is not step:
            self._planned = step, step.plan_of_averages([0.0])
        step.average(self._table.address, self._planned[1], rows[0].next, norm)
