"""The last layer by least squares: two sums over any number of tokens, then one small solve.

With hidden states X [N, d] and one-hot targets s Y [N, V], the weight of smallest norm among those
that minimise |X Wᵀ - s Y|² + ridge |W|² is W = s C (G + ridge I)⁺ with G = XᵀX and C = YᵀX. G is
d x d, and row v of C is the sum of the hidden states that precede token v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fusedstep import _C, build
from fusedstep.checks import refuse, require_count, require_dense, require_number
from fusedstep.lm_head.batch import (
    Spectrum,
    add_by_token,
    certain_inverse,
    gram,
    in_blocks,
    inverses,
    require_batch,
    require_scale,
    spectrum,
)
from fusedstep.lm_head.one_batch import CLASS_BLOCK, Solve


class LeastSquares:
    """Least squares of one-hot targets on hidden states, over any number of tokens.

    It holds G [d, d] and C [V, d] in float64, regardless of the number of tokens: 314 MB for
    d = 768 and V = 50257. G is the sum of x xᵀ over the hidden states x; row v of C is the sum of
    those that precede token v.

    Args:
        d_model: Width d of the hidden states.
        vocab_size: Number V of tokens.
        scale: Value of the nonzero entry of each one-hot target, finite and not 0. Only `solve` and
            `mse` use it.
        device: Device of the sums and of the hidden states. Default: torch's default device.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `LeastSquares: <argument> must <property>, got <value>`. The methods raise the same
            errors, with `LeastSquares.<method>: ...`, and leave the sums unchanged.

    Example:
        >>> solver = fusedstep.lm_head.LeastSquares(d_model=2, vocab_size=3)
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> solver.update(hidden, torch.tensor([0, 1, 2]))
        >>> solver.solve()
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000],
                [0.5000, 0.0000]], dtype=torch.float64)
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        scale: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        function = type(self).__name__
        d = require_count(function, "d_model", d_model, 1)
        vocabulary = require_count(function, "vocab_size", vocab_size, 1)
        self.scale = require_scale(function, scale)
        place = torch.empty(0, device=device).device  # "cuda" becomes the current one
        if place.type not in ("cpu", "cuda"):
            refuse(function, "device", "be a CPU or a CUDA device", place)
        build.require_cuda(place)
        self._gram = torch.zeros(d, d, dtype=torch.float64, device=place)
        self._sums = torch.zeros(vocabulary, d, dtype=torch.float64, device=place)
        self._count = 0
        self._spectrum: Spectrum | None = None

    @property
    def count(self) -> int:
        """The number of tokens added so far."""
        return self._count

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._gram.device

    def update(self, hidden: Tensor, tokens: Tensor) -> None:
        """Adds hidden states and their target tokens.

        C has the same bits for any number of threads and on any device (the order is in
        kernels/lm_head/segment_sum.h). Unless hidden is float64, G has the same bits for any number
        of threads on a CPU, and from run to run on a GPU (kernels/linalg/gram.h).

        Args:
            hidden: [N, d] or [B, T, d]; float32, float64, bfloat16 or float16. Products and sums
                are computed in float64. A NaN, an infinity or, in float64, a square that overflows
                raises a ValueError.
            tokens: [N] or [B, T], int64, from 0 to V - 1. On a GPU, the checks of their values and
                of the sums wait for the device.

        Raises:
            TypeError: `hidden` or `tokens` has the wrong type or dtype.
            ValueError: `hidden` or `tokens` has an invalid shape, device or value.
        """
        function = f"{type(self).__name__}.update"
        vocabulary, d = self._sums.shape
        rows, ids = require_batch(function, hidden, tokens, d, vocabulary, self.device)
        if len(ids) == 0:
            return
        with torch.no_grad():
            added = gram(function, rows)
            add_by_token(self._sums, rows, ids)
            self._gram += added
        self._count += len(ids)
        self._spectrum = None

    def solve(self, ridge: float | Sequence[float] = 0.0, rtol: float | None = None) -> Tensor:
        """Computes the weight W = scale · C (G + ridge I)⁺.

        Args:
            ridge: 0 or more, in units of G, which grows with the number of tokens. A sequence or
                1-d tensor of ridges shares one factorization.
            rtol: 0 or more: an eigenvalue of G + ridge I, the square of a singular value, counts as
                zero unless it exceeds `rtol` times the largest. Default: the rounding error of a
                zero in float64, about 1e-12. So W has the smallest norm if G is singular, as with
                fewer tokens than d, and ridge = 0 is the limit of ridge -> 0.

        Returns:
            W [V, d], float64; [R, V, d] for R ridges. Rows of tokens that were not added are 0.

        Raises:
            TypeError: `ridge` or `rtol` is not a number.
            ValueError: `ridge` or `rtol` is negative or NaN, or no tokens were added.
        """
        function = f"{type(self).__name__}.solve"
        if isinstance(ridge, Tensor):
            ridge = ridge.tolist()
        several = False
        if isinstance(ridge, Sequence) and not isinstance(ridge, str):
            several = True
            ridges = [require_number(function, f"ridge[{i}]", r) for i, r in enumerate(ridge)]
        else:
            ridges = [require_number(function, "ridge", ridge)]
        threshold = self._threshold(function, rtol)
        inverse = None
        if not several and self._spectrum is None:
            inverse = certain_inverse(self._gram, ridges[0], threshold)
        if inverse is None:
            self._spectrum = self._spectrum or spectrum(self._gram)
            shifts = torch.tensor(ridges, dtype=torch.float64, device=self.device)
            inverse = inverses(self._spectrum, shifts if several else shifts[0], threshold)
        return self._sums @ (inverse * self.scale)

    def mse(self, weight: Tensor) -> Tensor:
        """Computes the mean of (X Wᵀ - scale · Y)² over all N V entries, from G and C.

        It is a difference of sums about as large as scale² / V, the loss of W = 0, and exact to
        about 1e-15 of that: a nearly perfect fit has no correct digits and may be below 0.

        Args:
            weight: W [V, d], float32, float64, bfloat16 or float16, on the sums' device. The result
                is differentiable in weight.

        Returns:
            The mean, 0-d float64.

        Raises:
            TypeError: `weight` is not a dense tensor of one of these dtypes.
            ValueError: `weight` has another shape or device, or no tokens were added.
        """
        function = f"{type(self).__name__}.mse"
        require_dense(function, "weight", weight)
        if weight.shape != self._sums.shape:
            refuse(function, "weight", f"be {list(self._sums.shape)}", list(weight.shape))
        if weight.device != self.device:
            refuse(function, "weight", f"be on the device {self.device}", weight.device)
        self._require_tokens(function)
        total = weight.new_full((), self.scale**2 * self._count, dtype=torch.float64)
        for w, c in in_blocks(CLASS_BLOCK, weight, self._sums):
            wide = w.to(torch.float64).contiguous()  # strides decide how products round
            total = total + (wide * (wide @ self._gram - 2 * self.scale * c)).sum()
        return total / (self._count * len(self._sums))

    def merge(self, other: LeastSquares) -> None:
        """Adds all tokens of `other`, as if they had been added here.

        Args:
            other: LeastSquares of the same sizes on the same device. It is not changed; its scale
                has no effect.

        Raises:
            TypeError: `other` is not a LeastSquares.
            ValueError: `other` has other sizes or is on another device.
        """
        function = f"{type(self).__name__}.merge"
        if not isinstance(other, LeastSquares):
            refuse(function, "other", "be a LeastSquares", type(other).__name__, TypeError)
        if other._sums.shape != self._sums.shape:
            must = f"have sums of the shape {list(self._sums.shape)}"
            refuse(function, "other", must, list(other._sums.shape))
        if other.device != self.device:
            refuse(function, "other", f"be on the device {self.device}", other.device)
        self._gram += other._gram
        self._sums += other._sums
        self._count += other._count
        self._spectrum = None

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Gives every process of a group the sums over all of them.

        Every process must call it, and only once: a second call counts all tokens again.

        Args:
            group: Process group. Default: all processes.

        Raises:
            ValueError: `torch.distributed` is not initialized, or the sizes differ between
                processes.
        """
        function = f"{type(self).__name__}.all_reduce"
        if not (dist.is_available() and dist.is_initialized()):
            refuse(function, "group", "be of an initialised torch.distributed", group)
        mine = torch.tensor([*self._sums.shape, self._count], device=self.device)
        of_all = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(of_all, mine, group)
        shapes = {tuple(sizes.tolist()[:2]) for sizes in of_all}
        if len(shapes) > 1:  # all processes know this, so all raise
            refuse(function, "group", "have one vocab_size and d_model", sorted(shapes))
        dist.all_reduce(self._gram, group=group)
        dist.all_reduce(self._sums, group=group)
        self._count = int(sum(sizes[2] for sizes in of_all))
        self._spectrum = None

    def state_dict(self) -> dict[str, Any]:
        """Returns `gram` [d, d] and `sums` [V, d], float64, not copied, and `count`, an int."""
        return {"gram": self._gram, "sums": self._sums, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the sums by those of another LeastSquares.

        Args:
            state: Result of its `state_dict()`, of the same sizes, on any device.

        Raises:
            TypeError: An entry has the wrong type.
            ValueError: The keys, a dtype, a shape or the count is invalid.
        """
        function = f"{type(self).__name__}.load_state_dict"
        mine = self.state_dict()
        if set(state) != set(mine):
            refuse(function, "state", f"have the keys {sorted(mine)}", sorted(state))
        for name in ("gram", "sums"):
            require_dense(function, f"state[{name!r}]", state[name])
            if state[name].dtype != torch.float64 or state[name].shape != mine[name].shape:
                got = f"{state[name].dtype} of shape {list(state[name].shape)}"
                must = f"be float64 of shape {list(mine[name].shape)}"
                refuse(function, f"state[{name!r}]", must, got)
        count = state["count"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            refuse(function, "state['count']", "be an int of 0 or more", count)
        self._gram.copy_(state["gram"])
        self._sums.copy_(state["sums"])
        self._count, self._spectrum = count, None

    def _require_tokens(self, function: str) -> None:
        if self._count == 0:
            refuse(function, "count", "be at least 1 (call update first)", self._count)

    def _threshold(self, function: str, rtol: float | None) -> float:
        self._require_tokens(function)
        if rtol is None:
            return _C.gram_error(self._count, len(self._gram))
        return require_number(function, "rtol", rtol)


def least_squares(
    hidden: Tensor,
    tokens: Tensor,
    vocab_size: int,
    *,
    scale: float = 1.0,
    ridge: float = 0.0,
    rtol: float | None = None,
) -> Tensor:
    """Computes the weight that best maps hidden states to one-hot tokens, as `LeastSquares` does.

    The result is computed in float64 and rounded once. It is differentiable once in `hidden`, where
    the rank is constant; the gradient takes blocks of tokens.

    Args:
        hidden: [N, d] or [B, T, d], N at least 1; float32, float64, bfloat16 or float16.
        tokens: [N] or [B, T], int64, from 0 to V - 1: the token after each hidden state.
        vocab_size: Number V of tokens.
        scale: Value of the nonzero entry of each one-hot target, finite and not 0.
        ridge: A single ridge, 0 or more, in units of hiddenᵀ hidden, as in `LeastSquares.solve`.
        rtol: 0 or more: which eigenvalues count as zero, as in `LeastSquares.solve`.

    Returns:
        The weight [V, d], of hidden's dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `least_squares: <argument> must <property>, got <value>`.

    Example:
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> fusedstep.lm_head.least_squares(hidden, torch.tensor([0, 1, 2]), 3)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000],
                [0.5000, 0.0000]])

    Source: G. H. Golub and V. Pereyra 1973, "The differentiation of pseudo-inverses and nonlinear
    least squares problems whose variables separate", equation 4.12, for the gradient.
    """
    function = "least_squares"
    vocabulary = require_count(function, "vocab_size", vocab_size, 1)
    scale = require_scale(function, scale)
    ridge = require_number(function, "ridge", ridge)
    require_dense(function, "hidden", hidden)
    d = hidden.shape[-1] if hidden.dim() > 0 else 0
    rows, ids = require_batch(function, hidden, tokens, d, vocabulary, hidden.device)
    if rows.numel() == 0:
        refuse(function, "hidden", "have elements", list(hidden.shape))
    rtol = _C.gram_error(len(ids), d) if rtol is None else require_number(function, "rtol", rtol)
    rows = hidden.reshape(-1, d)  # not detached
    weight: Tensor = Solve.apply(rows, ids, vocabulary, scale, ridge, rtol)
    return weight
