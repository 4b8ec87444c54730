"""The speed on a GPU: copy bandwidth, every case against torch, the host's time a step."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from micro import record
from micro.cases import GPU_CASES, Case
from micro.contest import contest, cuda_seconds, fused_step, make_params

from .rows import Findings

DEVICE = torch.device("cuda", 0)
COPIED = 4 << 30  # bytes of each of the two buffers
SECONDS = 4.0  # of timing a case
LEAST_SHARE = 0.92  # of the copy bandwidth, for 1e9 parameters
HOST_TENSORS, HOST_LIMIT = 150, 60e-6
HOST_SAMPLES = 200  # of 20 steps


def copy_bandwidth() -> float:
    """Bytes a second, read and written both counted, of a device-to-device copy: the median."""
    source = torch.randn(COPIED // 4, device=DEVICE)
    target = torch.empty_like(source)
    samples = [cuda_seconds(lambda: target.copy_(source), 3) / 3 for _ in range(15)]
    return 2 * COPIED / statistics.median(samples[3:])


def host_seconds() -> float:
    """Of one call of step() with little for the GPU to do, the median: what the host spends."""
    case = Case("host", "150 tensors", ((64,),) * HOST_TENSORS)
    step = fused_step(make_params(case, DEVICE))
    samples = []
    for _ in range(HOST_SAMPLES):
        torch.cuda.synchronize()  # the queue is empty, so that no call waits for a place in it
        begin = time.perf_counter()
        for _ in range(20):
            step()
        samples.append((time.perf_counter() - begin) / 20)
    return statistics.median(samples[HOST_SAMPLES // 10 :])


def main() -> None:
    found = Findings(Path(sys.argv[1]))
    bandwidth = copy_bandwidth()
    found.row("copy bandwidth", f"{bandwidth / 1e9:.0f} GB/s")
    found.figure("copy_bytes_per_second", bandwidth)
    where, rows = record.facts(DEVICE), []
    for case in GPU_CASES:
        outcome = contest(case, DEVICE, SECONDS)
        rows.append(record.row(where, outcome, None))
        found.figure("timings", rows)
        ratio, share = outcome.ratio, 1e9 * outcome.gigabytes_per_second / bandwidth
        result = f"{outcome.ours_ms:.4g} ms, torch {outcome.their_ms:.4g} ms: {ratio:.2f}x"
        target = f"{outcome.target}x" if outcome.target else ""
        found.row(case.title, result, target, not outcome.target or ratio >= outcome.target)
        wanted = LEAST_SHARE if case.name == "billion" else 0.0
        result = f"{100 * share:.1f} % of the copy bandwidth"
        found.row(
            f"{case.title}: bytes", result, f"{wanted:.0%}" if wanted else "", share >= wanted
        )
        torch.cuda.empty_cache()
    host = host_seconds()
    result = f"{1e6 * host:.1f} us, {HOST_TENSORS} tensors"
    found.row("host time of step()", result, f"< {1e6 * HOST_LIMIT:.0f} us", host < HOST_LIMIT)
    record.append(rows)


if __name__ == "__main__":
    main()
