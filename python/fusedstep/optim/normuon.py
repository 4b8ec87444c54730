"""NorMuon's second moments: one for each row of an orthogonal direction, which it is divided by.

Li et al. 2025, https://arxiv.org/abs/2510.05491, algorithm 1. Of a matrix O with n columns:

    v_i <- beta2 v_i + (1 - beta2) sum_j O_ij^2 / n
    O_i <- c O_i / (sqrt(v_i) + 1e-10)

c leaves the Frobenius norm of O as it was, as in the authors' code, so the ratios of `adjust_lr_fn`
keep their meaning. The paper's c makes it 0.2 sqrt(m n), which "match_rms_adamw" comes close to.
All rows share c, so a correction of the bias of v would cancel.

The moments are averages and advance as those of parameters do: kernels/optim/average.h, in one
launch for all, which leaves them if the step is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.optim.matrices import Division
from fusedstep.optim.row_blocks import Row, list_rows
from fusedstep.optim.state import MOMENT, Role, StateSpec, compute_dtype
from fusedstep.optim.step import Plan, Step

EPS = 1e-10


class Rows(NamedTuple):
    """A direction, and a number for each of its rows in tensors of one column."""

    direction: Tensor
    division: Division
    moment: Tensor
    mean: Tensor  # the rows' mean squares; kept, because the C++ table and CUDA graphs point there
    address: int  # of the moment, when it was listed

    def lengths(self) -> Tensor:
        """The norms of the rows."""
        columns = self.division.columns(self.direction.dim())
        norms: Tensor = torch.linalg.vector_norm(
            self.direction, dim=columns, keepdim=True, dtype=self.moment.dtype
        )
        return norms.contiguous()


class RowMoments:
    """The moments at one place, and the C++ table by which they advance."""

    def __init__(self) -> None:
        self._table = _C.TensorTable()
        self._rows: dict[Tensor, Rows] = {}  # by parameter
        self._listed: list[Rows] = []
        self._planned: tuple[Step, list[float], Plan] | None = None

    def rebuild(
        self,
        params: Mapping[Tensor, StateSpec],
        directions: Mapping[Tensor, Tensor],
        state: Mapping[Tensor, dict[str, Any]],
    ) -> None:
        """Creates the moments of parameters that lack them, and converts the others."""
        old, self._rows, self._listed = self._rows, {}, []
        for param, spec in params.items():
            if not spec.moments or spec.division is None or not param.numel():
                continue
            shape, dtype = spec.division.column_of(param.shape), compute_dtype(param.dtype)
            moment = state[param].get(MOMENT)
            if moment is None:
                moment = torch.zeros(shape, dtype=dtype, device=param.device)
            moment = state[param][MOMENT] = moment.to(param.device, dtype).contiguous()
            mean = old[param].mean if param in old else torch.empty(0)
            if (mean.shape, mean.dtype, mean.device) != (moment.shape, dtype, param.device):
                mean = torch.zeros_like(moment)
            self._rows[param] = Rows(
                directions[param], spec.division, moment, mean, moment.data_ptr()
            )

    def __bool__(self) -> bool:
        return bool(self._rows)

    def are_current(self, states: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Whether the moments are those of the parameters' states, where they were listed."""
        return all(
            states[p].get(MOMENT) is rows.moment and rows.moment.data_ptr() == rows.address
            for p, rows in self._rows.items()
        )

    def normalize_(self, step: Step, betas: Mapping[Tensor, float], norm: Tensor | None) -> None:
        """Advances the moments, and divides the rows of the orthogonal directions by their roots.

        Args:
            step: The step that has written the directions.
            betas: beta2 of each parameter with a gradient.
            norm: The gradients' norm, which decides whether the step is skipped; None: it is not.
        """
        present = {p: beta2 for p, beta2 in betas.items() if p in self._rows}
        rows = [self._rows[param] for param in present]
        if not rows:
            return
        lengths = [each.lengths() for each in rows]
        for each, length in zip(rows, lengths, strict=True):
            columns = each.direction.numel() // length.numel()
            torch.mul(length, length / columns, out=each.mean)
        self._advance(step, rows, list(present.values()), norm)

        def matrices(columns: Sequence[Tensor]) -> list[Tensor]:
            pairs = zip(rows, columns, strict=True)
            return [part for each, column in pairs for part in each.division.matrices(column)]

        roots = torch._foreach_sqrt([each.moment for each in rows])
        scales = torch._foreach_reciprocal(torch._foreach_add(roots, EPS))
        before = torch._foreach_norm(matrices(lengths))
        after = torch._foreach_norm(matrices(torch._foreach_mul(lengths, scales)))
        factors = torch._foreach_div(before, torch._foreach_clamp_min(after, EPS))
        torch._foreach_mul_(matrices(scales), factors)
        torch._foreach_mul_([each.direction for each in rows], scales)

    def _advance(
        self, step: Step, rows: list[Rows], betas: list[float], norm: Tensor | None
    ) -> None:
        """Moves the moments to the mean squares; each is a group of the table."""
        if [id(each) for each in rows] != [id(each) for each in self._listed]:
            groups = [
                [Row(each.mean, each.mean, [each.moment], [Role.AVERAGE], i)]
                for i, each in enumerate(rows)
            ]
            if not list_rows(self._table.address, groups):
                raise RuntimeError(f"{step.function}: a table refused moments of rows")
            self._listed, self._planned = rows, None
        if self._planned is None or self._planned[:2] != (step, betas):
            self._planned = step, betas, step.plan_of_averages(betas)
        step.average(self._table.address, self._planned[2], rows[0].mean, norm)
