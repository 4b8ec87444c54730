"""CUDA against the CPU, bit for bit: every trial of trials.py at odd sizes and misalignments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

import fusedstep
from bench.gpu.checks import Reporter, Scale, options, run
from bench.gpu.compare import differing
from bench.gpu.trials import ALIKE, TRIALS, Pairs, Trial, grad_of
from fusedstep import _C

# Around the norm's rows of 256, a pack, and a chunk; 0 and 1.
SIZES: dict[Scale, tuple[int, ...]] = {
    "full": (0, 1, 7, 255, 256, 257, 4099, _C.CHUNK_SIZE, _C.CHUNK_SIZE + 1),
    "host": (0, 1, 7, 257, _C.CHUNK_SIZE + 1),
    "quick": (0, 1, 257),
}
# Elements by which parameter and gradient lie after an address that is aligned to 16 bytes.
OFFSETS = ((0, 0), (1, 1), (0, 1), (3, 2))
STEPS = 3
DEVICES = ("cpu", "cuda")
Twins = list[tuple[Tensor, Tensor]]  # the same parameter on each of DEVICES


def misaligned(values: Tensor, offset: int, device: str) -> Tensor:
    """A copy of `values` that begins `offset` elements after an aligned address."""
    room = torch.zeros(values.numel() + offset, dtype=values.dtype, device=device)
    return room[offset:].copy_(values)


def values(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normally distributed, times powers of two from 2^-12 to 2^4."""
    exponents = torch.randint(-12, 5, (count,), generator=generator)
    normal = torch.randn(count, dtype=torch.float64, generator=generator)
    return torch.ldexp(normal, exponents).to(dtype)


def make(
    sizes: tuple[int, ...],
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Twins with a gradient for each size and offset."""
    for size, (param_offset, grad_offset) in product(sizes, OFFSETS):
        param = values(size, param_dtype, generator)
        grad = values(size, grad_dtype, generator)
        twins = [misaligned(param, param_offset, device).requires_grad_() for device in DEVICES]
        for twin, device in zip(twins, DEVICES, strict=True):
            twin.grad_dtype = None  # any may be assigned
            twin.grad = misaligned(grad, grad_offset, device)
        yield twins[0], twins[1]


def refill(twins: Twins, generator: torch.Generator, infinite: bool) -> None:
    """Other gradients in the same places; with `infinite`, one element is."""
    for pair in twins:
        grad = values(pair[0].numel(), grad_of(pair[0]).dtype, generator)
        for param in pair:
            grad_of(param).copy_(grad)
    if infinite:
        for param in twins[-1]:
            grad_of(param)[-1] = math.inf


@contextmanager
def without_gradients(twins: Twins) -> Iterator[None]:
    """Context manager: these parameters have no gradients."""
    with ExitStack() as on_exit:
        for param in chain.from_iterable(twins):
            on_exit.callback(setattr, param, "grad", param.grad)
            param.grad = None
        yield


class Comparison:
    """Counts what was compared and describes the first differences."""

    def __init__(self) -> None:
        self.tensors = self.elements = self.wrong = 0

    def same(self, what: str, on_cpu: Tensor, on_cuda: Tensor) -> None:
        """Every bit; a NaN equals any NaN."""
        differ = differing(on_cpu, on_cuda)
        self.tensors += 1
        self.elements += differ.numel()
        if differ.any():
            self.wrong += 1
            at = tuple(differ.nonzero()[0].tolist())
            if self.wrong <= 20:
                print(
                    f"{what}: {int(differ.sum())} differ, first {at}: {on_cpu[at]}, {on_cuda[at]}"
                )


def steps(twins: Twins, trial: Trial, label: str, seen: Comparison) -> None:
    """A few steps on both devices; then parameters, states and norm."""
    generator = torch.Generator().manual_seed(len(label))
    lists = list(zip(*twins, strict=True))
    optimizers: list[Any] = [trial.optimizer(params, **trial.options) for params in lists]
    for at in range(STEPS):
        refill(twins, generator, infinite=trial.meets_infinity and at == 1)
        with without_gradients(twins[::2] if trial.rests and at == 2 else []):
            for device, optimizer in zip(DEVICES, optimizers, strict=True):
                if trial.loss_scale:
                    optimizer.grad_scale = torch.full((), 1024.0, device=device)
                    optimizer.found_inf = torch.full((), float(at == 1), device=device)
                optimizer.step()
        norms = [optimizer.grad_norm for optimizer in optimizers]
        if norms[0] is not None:
            seen.same(f"{label}, step {at}: norm", *norms)
    for i, pair in enumerate(twins):
        seen.same(f"{label}: params[{i}]", *pair)
        states = [optimizer.state[param] for optimizer, param in zip(optimizers, pair, strict=True)]
        for key in states[0]:
            seen.same(f"{label}: {key} of params[{i}]", states[0][key], states[1][key])


def clips(twins: Twins, label: str, seen: Comparison) -> None:
    """The stand-alone norm and clip, for each type of norm."""
    for norm_type in (2.0, 1.0, math.inf):
        refill(twins, torch.Generator().manual_seed(5), infinite=False)
        norms = [
            fusedstep.clip_grad_norm_(params, 1.0, norm_type) for params in zip(*twins, strict=True)
        ]
        seen.same(f"{label}, clip: norm of type {norm_type}", *norms)
        for i, (first, second) in enumerate(twins):
            seen.same(f"{label}, clip: grad of params[{i}]", grad_of(first), grad_of(second))


def compare(trial: Trial | None, pairs: Pairs, report: Reporter, name: str) -> None:
    """One trial, or (None) the stand-alone clip: each pair of dtypes, then all of them at once."""
    generator = torch.Generator().manual_seed(0)
    seen = Comparison()
    everything: Twins = []
    for dtypes in pairs if report.scale == "full" else pairs[:5]:
        twins = list(make(SIZES[report.scale], *dtypes, generator))
        everything += twins[:: len(OFFSETS) + 1]  # each size and offset comes up
        label = f"{name}, {dtypes[0]} with {dtypes[1]}"
        clips(twins, label, seen) if trial is None else steps(twins, trial, label, seen)
    label = f"{name}, all dtypes at once"
    clips(everything, label, seen) if trial is None else steps(everything, trial, label, seen)
    result = f"{seen.wrong} of {seen.tensors} tensors differ, {seen.elements} elements"
    report.right(name, result, "0 differ", seen.wrong == 0 < seen.tensors)


def main() -> None:
    asked = options()
    report = Reporter(asked.scale)
    trials = TRIALS[::5] if asked.scale == "quick" else TRIALS
    checks = [(t.name, partial(compare, t, t.pairs, report, t.name)) for t in trials]
    clip = "clip_grad_norm_"
    run([*checks, (clip, partial(compare, None, ALIKE, report, clip))], asked)


if __name__ == "__main__":
    main()
