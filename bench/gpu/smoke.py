"""Whether each family of kernels runs at all and has the CPU's bits: a process for each.

Under compute-sanitizer, the same calls are watched.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.gpu.checks import Reporter, options, run
from bench.gpu.compare import differing
from bench.gpu.families import FAMILIES, Family

DEVICE = "cuda"


def far_apart(on_cpu: Tensor, on_gpu: Tensor, tolerance: float) -> bool:
    """Whether an element differs by more than `tolerance` of the largest; NaN never passes."""
    a, b = on_cpu.double(), on_gpu.cpu().double()
    size = a.abs().max().clamp(min=1e-300) if a.numel() else torch.ones(())
    return not bool(((a - b).abs() <= tolerance * size).all())


def compare(family: Family, report: Reporter) -> None:
    """Every result on both devices; the first differences go to the log."""
    sides = (family.make(device, report.scale) for device in ("cpu", DEVICE))
    results = wrong = 0
    for (name, on_cpu), (_, on_gpu) in zip(*sides, strict=True):
        results += 1
        if family.tolerance:
            bad = far_apart(on_cpu, on_gpu, family.tolerance)
        else:
            bad = bool(differing(on_cpu, on_gpu).any())
        wrong += bad
        if bad and wrong <= 5:
            print(f"{family.name}, {name} differs:", on_cpu.flatten()[:4], on_gpu.flatten()[:4])
    how = f"by more than {family.tolerance:g}" if family.tolerance else "in bits"
    result = f"{wrong} of {results} results differ {how}"
    report.right(family.name, result, "0 differ", wrong == 0 < results)


def main() -> None:
    asked = options()
    report = Reporter(asked.scale)
    run([(family.name, partial(compare, family, report)) for family in FAMILIES], asked)


if __name__ == "__main__":
    main()
