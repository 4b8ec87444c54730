"""How fast the closed form is on a GPU: first our kernels beside their floors, then torch.

Torch takes larger matrices one after another, and refuses or slows down on large batches: it is
timed on a few matrices, and the rates are compared, matrices a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

import fusedstep
from bench.gpu.checks import Check, Reporter, Scale, options, run
from bench.least_squares import Problem as LastLayer
from bench.measure import Call, Stream, product_rate, timer_of
from bench.newton import PROBLEMS as NEWTON_PROBLEMS
from bench.newton import Problem as Newton
from bench.pinv import Problem
from fusedstep.lm_head import least_squares

DEVICE = torch.device("cuda", 0)
RATE_SIZE: dict[Scale, int] = {"full": 8192, "host": 128, "quick": 64}  # of a product's matrices
STREAMED: dict[Scale, int] = {
    "full": 1 << 27,
    "host": 1 << 16,
    "quick": 1 << 12,
}  # float64 elements
SECONDS: dict[Scale, float] = {"full": 0.4, "host": 0.05, "quick": 0.0}  # of timing one side
TINY, SMALL = 32, 256  # columns up to which a matrix is called so
FEW_TINY, FEW = 4096, 8  # matrices that torch is given
SAMPLE = 8  # matrices whose error is looked at
RECIPE = 1.5  # wanted ratio of our rate to the recipe's
# From a batch of tiny ones to one that fills the machine.
PINV_PROBLEMS = (
    Problem("tiny", (100_000, 16, 16)),
    Problem("tiny-32", (10_000, 32, 32)),
    Problem("small", (4096, 64, 64)),
    Problem("square", (1024, 128, 128)),
    Problem("sequences", (1024, 511, 128)),
    Problem("tall", (64, 4096, 256)),
    Problem("large", (16, 512, 512)),
    Problem("deficient", (1024, 511, 128), rank=100),
    Problem("float64", (1024, 511, 128), torch.float64),
)
# Wanted ratios of our rate to torch's.
PINV_TARGETS = {
    "tiny": 1.5,
    "tiny-32": 1.5,
    **dict.fromkeys(("small", "square", "sequences", "tall"), 20.0),
}
LAST_LAYER = LastLayer("words", 1 << 19, 50257, 768)
GRAM_SHARE, SUM_SHARE = 0.60, 0.70  # of the product's rate and of the copy's


def recipe(A: Tensor) -> Tensor:
    """What one would write in torch: a float64 Gram matrix, its eigh, the small ones cut off."""
    X = A.double() if A.shape[-2] >= A.shape[-1] else A.double().mT
    values, vectors = torch.linalg.eigh(X.mT @ X)
    rtol = torch.finfo(A.dtype).eps * max(A.shape[-2:])
    kept = values > rtol**2 * values[:, -1:]
    P = (vectors * torch.where(kept, 1 / values, 0.0)[:, None, :]) @ (X @ vectors).mT
    return (P if A.shape[-2] >= A.shape[-1] else P.mT).to(A.dtype)


def sized(case: Problem, scale: Scale) -> Problem:
    """The case, or a few matrices that an emulated GPU can do."""
    if scale == "full":
        return case
    side = 40 if scale == "host" else 12
    shape = (3, *(min(n, side) for n in case.shape[1:]))
    return replace(case, shape=shape, rank=case.rank and min(shape[1:]) - 2)


def title_of(case: Problem) -> str:
    name = f"pinv {'x'.join(map(str, case.shape))} {str(case.dtype).removeprefix('torch.')}"
    return name + (f", rank {case.rank}" if case.rank else "")


def error(solve: Callable[[Tensor], Tensor], truth: Tensor, A: Tensor) -> str:
    """The largest relative error of a matrix; "" for float64, for which there is no reference."""
    if A.dtype == torch.float64:
        return ""
    difference = solve(A).double() - truth
    relative = difference.flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    return f"{float(relative.max()):.1e}"


def few_of(A: Tensor) -> Tensor:
    """The part of a batch that torch is given."""
    return A[: FEW_TINY if min(A.shape[-2:]) <= TINY else FEW]


class ClosedForm:
    """The checks, and the rates that bound what they time."""

    def __init__(self, report: Reporter) -> None:
        self.report, self.scale = report, report.scale
        self._timer = timer_of(DEVICE)

    def seconds(self, call: Call) -> float:
        """The median, after one call to warm up; of one sample where a call takes that long."""
        samples, end = [self._timer(call, 1)], time.perf_counter() + SECONDS[self.scale]
        while len(samples) < 2 or time.perf_counter() < end:
            samples.append(self._timer(call, 1))
        return statistics.median(samples[1:])

    @cached_property
    def operations(self) -> float:
        """A second, of torch's float64 product."""
        return product_rate(DEVICE, RATE_SIZE[self.scale], torch.float64)

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that torch reads and writes at best."""
        return Stream(DEVICE, STREAMED[self.scale]).rate

    def bounds(self) -> None:
        result = f"{self.operations / 1e12:.3g} TFLOP/s, copy {self.bandwidth / 1e9:.0f} GB/s"
        figures = {"operations": self.operations, "bytes": self.bandwidth}
        self.report.row("torch's float64 product", result, **figures)

    def pinv(self, case: Problem) -> None:
        case = sized(case, self.scale)
        A = case.matrices(DEVICE)
        seconds = self.seconds(lambda: fusedstep.pinv(A))
        floor = max(case.operations / self.operations, 2 * A.nbytes / self.bandwidth)
        result = f"{1e3 * seconds:.4g} ms, {seconds / floor:.3g} times the floor"
        self.report.row(title_of(case), result, seconds=seconds, floor=floor)

    def pinv_beside_torch(self, case: Problem) -> None:
        """Torch's own function, the recipe, and the errors of ours and torch's."""
        wanted, case = PINV_TARGETS.get(case.name), sized(case, self.scale)
        A, title = case.matrices(DEVICE), title_of(case)
        few, columns = few_of(A), min(case.shape[-2:])
        rate = len(A) / self.seconds(lambda: fusedstep.pinv(A))

        def against(name: str, call: Call, aim: float | None) -> None:
            theirs = len(few) / self.seconds(call)
            result = f"{rate:.4g} matrices/s, {name} {theirs:.4g} (of {len(few)})"
            result += f": {rate / theirs:.3g}x"
            shown, reached = f"{aim:g}x" if aim else "", aim is None or rate >= aim * theirs
            self.report.fast(f"{title}: {name}", result, shown, reached, ours=rate, theirs=theirs)

        against("torch.linalg.pinv", lambda: torch.linalg.pinv(few), wanted)
        if case.dtype == torch.float32:
            aim = RECIPE if TINY < columns <= SMALL and case.rank is None else None
            against("Gram + eigh", lambda: recipe(few), aim)
            some = A[:SAMPLE]
            rtol = torch.finfo(A.dtype).eps * max(A.shape[-2:])
            truth = torch.linalg.pinv(some.double().cpu(), rtol=rtol).to(DEVICE)
            ours, theirs = (error(side, truth, some) for side in case.sides())
            good = float(ours) <= float(theirs)
            self.report.fast(f"{title}: error", f"{ours}, torch's {theirs}", "torch's", good)

    @cached_property
    def last_layer(self) -> tuple[LastLayer, Tensor, Tensor]:
        few = LastLayer("few", 400, 30, 8)
        case = LAST_LAYER if self.scale == "full" else few
        return case, *case.batch(DEVICE)

    def gram(self) -> None:
        case, hidden, _ = self.last_layer
        gram = torch.zeros(case.width, case.width, dtype=torch.float64, device=DEVICE)
        seconds = self.seconds(lambda: torch.ops.fusedstep.gram_(gram, hidden))
        share = case.tokens * case.width**2 / seconds / self.operations  # half, for symmetry
        result = f"{1e3 * seconds:.4g} ms, {share:.0%} of the product's rate"
        aim, good = f"{GRAM_SHARE:.0%}", share >= GRAM_SHARE
        self.report.fast("float64 Gram matrix", result, aim, good, seconds=seconds)

    def sums(self) -> None:
        case, hidden, tokens = self.last_layer
        sums = torch.zeros(case.vocabulary, case.width, dtype=torch.float64, device=DEVICE)
        order = torch.sort(tokens, stable=True).indices
        ids = tokens[order]
        seconds = self.seconds(lambda: torch.ops.fusedstep.segment_sum_(sums, hidden, order, ids))
        moved = hidden.nbytes + 16 * case.width * len(ids.unique()) + 16 * case.tokens
        share = moved / seconds / self.bandwidth
        result = f"{1e3 * seconds:.4g} ms, {share:.0%} of the copy's rate"
        aim, good = f"{SUM_SHARE:.0%}", share >= SUM_SHARE
        self.report.fast("sums by token", result, aim, good, seconds=seconds)

    def least_squares(self) -> None:
        case, hidden, tokens = self.last_layer
        ours = self.seconds(lambda: least_squares(hidden, tokens, case.vocabulary))
        self.report.row("least squares", f"{1e3 * ours:.4g} ms", seconds=ours)

    def least_squares_beside_torch(self) -> None:
        case, hidden, tokens = self.last_layer
        self._ratio(
            "least squares",
            lambda: least_squares(hidden, tokens, case.vocabulary),
            lambda: case.torch_solution(hidden, tokens),
        )

    def newton_beside_torch(self, case: Newton) -> None:
        if self.scale != "full":
            case = replace(case, tokens=4, vocabulary=30, width=5)
        problem = case.problem(DEVICE)
        ours, theirs = partial(case.ours, *problem), partial(case.theirs, *problem)
        self._ratio(f"newton {case.name}", ours, theirs)

    def _ratio(self, name: str, ours: Call, theirs: Call) -> None:
        mine, other = self.seconds(ours), self.seconds(theirs)
        result = f"{1e3 * mine:.4g} ms, torch {1e3 * other:.4g} ms: {other / mine:.3g}x"
        self.report.row(f"{name}: torch", result, ours=mine, theirs=other)

    def checks(self) -> list[Check]:
        """Ours, then those that torch may take long for."""
        cases = PINV_PROBLEMS[::4] if self.scale == "quick" else PINV_PROBLEMS
        return [
            ("torch's float64 product", self.bounds),
            *((f"pinv {case.name}", partial(self.pinv, case)) for case in cases),
            ("float64 Gram matrix", self.gram),
            ("sums by token", self.sums),
            ("least squares", self.least_squares),
            *(
                (f"newton {case.name}", partial(self.newton_beside_torch, case))
                for case in NEWTON_PROBLEMS
            ),
            ("least squares: torch", self.least_squares_beside_torch),
            *(
                (f"pinv {case.name}: torch", partial(self.pinv_beside_torch, case))
                for case in cases
            ),
        ]


def main() -> None:
    asked = options()
    run(ClosedForm(Reporter(asked.scale)).checks(), asked)


if __name__ == "__main__":
    main()
