"""The closed form's speed on a GPU: pseudo-inverses, Gram matrix, sums by token, Newton's steps.

Each is compared with a bound measured in the same process: torch's float64 product, or a copy.
Where torch takes one matrix after another, it is timed on a few of the batch and the time of all is
computed from that; the result says so.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu.rows import Findings
from bench.least_squares import Case as LeastSquaresCase
from bench.measure import Call, Medians, compare, copy_rate, product_rate, timer_of
from bench.newton import CASES as NEWTON_CASES
from bench.pinv import Case, error
from fusedstep.lm_head import least_squares

DEVICE = torch.device("cuda", 0)
RATE_SIZE = 8192  # of the matrices whose product gives the rate
COPIED = 1 << 27  # float64 elements copied for the bandwidth
SECONDS = 1.0  # of timing each pair
FEW_COLUMNS = 1024  # of all matrices together that stand for a batch which torch takes one by one
SAMPLE = 32  # matrices whose error is looked at
TINY, SMALL = 32, 256  # columns up to which a matrix is called so
RECIPE = 1.5  # wanted ratio of the recipe's time to ours
# The bounds table of the design: from a batch of tiny ones to one that fills the machine.
PINV_CASES = (
    Case("tiny", (100_000, 16, 16), target=1.5),
    Case("tiny-32", (10_000, 32, 32), target=1.5),
    Case("small", (4096, 64, 64), target=20.0),
    Case("square", (1024, 128, 128), target=20.0),
    Case("sequences", (1024, 511, 128), target=20.0),
    Case("tall", (64, 4096, 256), target=20.0),
    Case("large", (16, 512, 512)),
    Case("deficient", (1024, 511, 128), rank=100),
    Case("float64", (1024, 511, 128), torch.float64),
)
LAST_LAYER = LeastSquaresCase("words", 1 << 19, 50257, 768)
GRAM_SHARE, SUM_SHARE = 0.60, 0.70  # of the product's rate and of the copy's


@dataclass(frozen=True)
class Bounds:
    """What this GPU does at best."""

    operations: float  # a second, of a float64 product
    bytes: float  # a second, read and written both counted


def recipe(A: Tensor) -> Tensor:
    """What one would write in torch: a float64 Gram matrix, its eigh, the small ones cut off."""
    X = A.double() if A.shape[-2] >= A.shape[-1] else A.double().mT
    values, vectors = torch.linalg.eigh(X.mT @ X)
    rtol = torch.finfo(A.dtype).eps * max(A.shape[-2:])
    kept = values > rtol**2 * values[:, -1:]
    P = (vectors * torch.where(kept, 1 / values, 0.0)[:, None, :]) @ (X @ vectors).mT
    return (P if A.shape[-2] >= A.shape[-1] else P.mT).to(A.dtype)


def medians(ours: Call, theirs: Call) -> Medians:
    """Of both in turns; torch's side may take seconds."""
    return compare(ours, theirs, DEVICE, SECONDS, least_samples=3)


def seconds_of(call: Call) -> float:
    """The median of fifteen after three."""
    timer = timer_of(DEVICE)
    return statistics.median([timer(call, 1) for _ in range(18)][3:])


def measure_bounds(found: Findings) -> Bounds:
    bounds = Bounds(product_rate(DEVICE, RATE_SIZE, torch.float64), copy_rate(DEVICE, COPIED))
    result = f"{bounds.operations / 1e12:.3g} TFLOP/s, copy {bounds.bytes / 1e9:.0f} GB/s"
    found.row("torch's float64 product", result)
    found.figure("bounds", vars(bounds))
    return bounds


def pinv_rows(case: Case, bounds: Bounds, found: Findings) -> None:
    """Against torch.linalg.pinv and against the recipe; the error of ours and torch's."""
    A, (ours, theirs) = case.matrices(DEVICE), case.sides()
    title = f"pinv {'x'.join(map(str, case.shape))} {str(case.dtype).removeprefix('torch.')}"
    title += f", rank {case.rank}" if case.rank else ""
    columns = min(A.shape[-2:])
    one_by_one = columns > TINY
    few = A[: max(2, FEW_COLUMNS // columns)] if one_by_one else A
    timed = medians(lambda: ours(A), lambda: theirs(few))
    our_seconds, their_seconds = timed.ours, timed.theirs * len(A) / len(few)
    ratio, target = their_seconds / our_seconds, f"{case.target:g}x" if case.target else ""
    times = f"{1e3 * our_seconds:.4g} ms, torch {1e3 * their_seconds:.4g} ms"
    times += f" (computed from {len(few)})" if one_by_one else ""
    passed = case.target is None or ratio >= case.target
    found.row(title, f"{times}: {ratio:.3g}x", target, passed)

    if case.dtype == torch.float32:
        timed = medians(lambda: ours(A), lambda: recipe(A))
        our_seconds, ratio = timed.ours, timed.ratio
        wanted = TINY < columns <= SMALL and case.rank is None
        result = f"float64 Gram + eigh {1e3 * timed.theirs:.4g} ms: {ratio:.3g}x"
        passed = not wanted or ratio >= RECIPE
        found.row(f"{title}: recipe", result, f"{RECIPE:g}x" if wanted else "", passed)
        some = A[:SAMPLE]
        rtol = torch.finfo(A.dtype).eps * max(A.shape[-2:])
        truth = torch.linalg.pinv(some.double().cpu(), rtol=rtol).to(DEVICE)
        errors = [error(side, truth, some) for side in (ours, theirs)]
        passed = float(errors[0]) <= float(errors[1])
        found.row(f"{title}: error", f"{errors[0]}, torch's {errors[1]}", "torch's", passed)
    bytes_moved = A.numel() * A.element_size() * 2
    floor = max(case.operations / bounds.operations, bytes_moved / bounds.bytes)
    found.row(f"{title}: floor", f"{1e3 * floor:.3g} ms, {our_seconds / floor:.3g} times that")


def last_layer_rows(case: LeastSquaresCase, bounds: Bounds, found: Findings) -> None:
    """The two sums of least squares by themselves, then all of it."""
    hidden, tokens = case.batch(DEVICE)
    width = case.width
    gram = torch.zeros(width, width, dtype=torch.float64, device=DEVICE)
    seconds = seconds_of(lambda: torch.ops.fusedstep.gram_(gram, hidden))
    share = case.tokens * width**2 / seconds / bounds.operations  # half of all, for symmetry
    result = f"{1e3 * seconds:.4g} ms, {share:.0%} of the product's rate"
    found.row("float64 Gram matrix", result, f"{GRAM_SHARE:.0%}", share >= GRAM_SHARE)

    sums = torch.zeros(case.vocabulary, width, dtype=torch.float64, device=DEVICE)
    order = torch.sort(tokens, stable=True).indices
    ids = tokens[order]
    seconds = seconds_of(lambda: torch.ops.fusedstep.segment_sum_(sums, hidden, order, ids))
    moved = 4 * hidden.numel() + 16 * width * len(ids.unique()) + 16 * case.tokens
    share = moved / seconds / bounds.bytes
    result = f"{1e3 * seconds:.4g} ms, {share:.0%} of the copy's rate"
    found.row("sums by token", result, f"{SUM_SHARE:.0%}", share >= SUM_SHARE)

    timed = medians(
        lambda: least_squares(hidden, tokens, case.vocabulary),
        lambda: case.torch_solution(hidden, tokens),
    )
    found.row("least squares", in_words(timed))


def in_words(timed: Medians) -> str:
    return f"{1e3 * timed.ours:.4g} ms, torch {1e3 * timed.theirs:.4g} ms: {timed.ratio:.3g}x"


def newton_rows(found: Findings) -> None:
    for case in NEWTON_CASES:
        problem = case.problem(DEVICE)
        timed = medians(partial(case.ours, *problem), partial(case.theirs, *problem))
        found.row(f"newton {case.name}", in_words(timed))


def main() -> None:
    found = Findings(Path(sys.argv[1]))
    found.figure("torch", torch.__version__)
    bounds = measure_bounds(found)
    for case in PINV_CASES:
        pinv_rows(case, bounds, found)
        torch.cuda.empty_cache()
    last_layer_rows(LAST_LAYER, bounds, found)
    torch.cuda.empty_cache()
    newton_rows(found)


if __name__ == "__main__":
    main()
