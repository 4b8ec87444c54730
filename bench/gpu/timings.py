"""The speed on a GPU: copy bandwidth, cases and rules against torch, forms, the host's time."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import fusedstep
from bench.gpu.forms import FORMS, Form
from bench.gpu.rows import Findings
from bench.measure import cuda_seconds, facts
from bench.record import Row, append_csv
from bench.step import CSV, Outcome, contest
from bench.step_cases import (
    ADAMW,
    BILLION,
    GPU_CASES,
    MAX_NORM,
    RULES,
    Case,
    fused_step,
    make_params,
)

DEVICE = torch.device("cuda", 0)
COPIED = 4 << 30  # bytes of each of the two buffers
SECONDS = 4.0  # of timing a case with AdamW
SHORTER = 2.0  # of timing another rule
QUARTER = Case("quarter", "2.5e8 parameters", BILLION[: len(BILLION) // 4])
FORM_SAMPLES = 20  # of 3 steps
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


def form_seconds(form: Form) -> float:
    """Of one clip + AdamW step on the parameters of QUARTER stored in this form: the median."""
    case = replace(QUARTER, dtype=form.dtype)
    optimizer = fusedstep.AdamW(make_params(case, DEVICE), max_norm=MAX_NORM, **form.options)
    samples = [cuda_seconds(optimizer.step, 3) / 3 for _ in range(FORM_SAMPLES)]
    return statistics.median(samples[FORM_SAMPLES // 5 :])


class Report:
    """Rows and figures of what is timed, each with its share of the copy bandwidth."""

    def __init__(self, found: Findings, bandwidth: float) -> None:
        self.found, self.bandwidth = found, bandwidth
        self.rows: list[Row] = []
        self._where = facts(DEVICE)

    def take(self, outcome: Outcome, title: str, wanted: float = 0.0) -> None:
        """A contest; `wanted`: the least share, 0 where it is only reported."""
        self.rows.append(outcome.row(self._where, None))
        self.found.figure("timings", self.rows)
        timed, target = outcome.medians, f"{outcome.target}x" if outcome.target else ""
        times = f"{1e3 * timed.ours:.4g} ms, {outcome.against} {1e3 * timed.theirs:.4g} ms"
        self.found.row(title, f"{times}: {timed.ratio:.2f}x", target, outcome.passed)
        per_parameter = outcome.floor_bytes / outcome.case.parameters
        self.share(title, timed.ours, outcome.case.parameters, per_parameter, wanted)

    def share(
        self, title: str, seconds: float, parameters: int, bytes_each: float, wanted: float = 0.0
    ) -> None:
        """How fast the bytes were moved that no implementation can avoid moving."""
        share = bytes_each * parameters / seconds / self.bandwidth
        result = f"{bytes_each:.4g} a parameter, {100 * share:.1f} % of the copy bandwidth"
        target = f"{wanted:.0%}" if wanted else ""
        self.found.row(f"{title}: bytes", result, target, share >= wanted)


def main() -> None:
    found = Findings(Path(sys.argv[1]))
    bandwidth = copy_bandwidth()
    found.row("copy bandwidth", f"{bandwidth / 1e9:.0f} GB/s")
    found.figure("copy_bytes_per_second", bandwidth)
    report = Report(found, bandwidth)
    for case in GPU_CASES:
        wanted = LEAST_SHARE if case.name == "billion" else 0.0
        report.take(contest(case, DEVICE, SECONDS), case.title, wanted)
        torch.cuda.empty_cache()
    host = host_seconds()
    result = f"{1e6 * host:.1f} us, {HOST_TENSORS} tensors"
    found.row("host time of step()", result, f"< {1e6 * HOST_LIMIT:.0f} us", host < HOST_LIMIT)
    for rule in RULES.values():
        if rule is not ADAMW:  # which every case above is about
            report.take(contest(QUARTER, DEVICE, SHORTER, rule), rule.title)
            torch.cuda.empty_cache()
    for form in FORMS:
        seconds = form_seconds(form)
        found.row(f"AdamW, {form.name}", f"{1e3 * seconds:.4g} ms, {QUARTER.title}")
        report.share(f"AdamW, {form.name}", seconds, QUARTER.parameters, form.bytes())
        torch.cuda.empty_cache()
    append_csv(report.rows, CSV)


if __name__ == "__main__":
    main()
