"""compute-sanitizer and ncu: how they are called and how their output is read."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from contextlib import suppress

from bench.gpu.rows import Row

SANITIZER = ("--error-exitcode", "9", "--tool")
# Every tensor (not every tensor table) in an allocation of its own: an access past its end is then
# an error.
NO_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

SECONDS, BYTES = "gpu__time_duration.sum", "dram__bytes.sum"
SHARE = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
INSTRUCTIONS, WARPS = "smsp__inst_executed.sum", "sm__warps_active.avg.pct_of_peak_sustained_active"
REGISTERS, WRITTEN = "launch__registers_per_thread", "lts__t_sectors_op_write.sum"
METRICS = (SECONDS, BYTES, SHARE, INSTRUCTIONS, WARPS, REGISTERS, WRITTEN)
# The clocks stay as they are; only what a program asks for is profiled.
NCU = (
    *("--clock-control", "none", "--profile-from-start", "off"),
    *("--csv", "--print-units", "base", "--metrics", ",".join(METRICS)),
)


def judge_sanitizer(name: str, status: int, log: str) -> list[Row]:
    """Its summary, such as "ERROR SUMMARY: 0 errors"; without one nothing was checked."""
    refused = re.search(r"^=+ .*(Device not supported.*)$", log, re.MULTILINE)
    if refused:
        return [Row(name, f"left out: {refused[1]}")]
    summaries = re.findall(r"^=+ (.*SUMMARY: .*)$", log, re.MULTILINE)
    if not summaries:
        return [Row(name, f"no summary, exit status {status}", "0 errors", False)]
    clean = status == 0 and all(re.search(r"SUMMARY: 0 ", line) for line in summaries)
    return [Row(name, summaries[-1], "0 errors", clean)]


def judge_calls(status: int, log: str) -> list[Row]:
    """Of a rehearsal without the tool."""
    return [Row("calls", f"exit status {status}", "exit status 0", status == 0)]


def judge_ncu(status: int, log: str) -> list[Row]:
    """A row for each kernel that was profiled. The CSV has a line for each metric of each."""
    lines = [line for line in log.split("\n") if line.startswith('"')]
    kernels: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for line in csv.DictReader(lines):
        metrics = kernels[line["ID"], line["Kernel Name"]]
        with suppress(ValueError):  # "n/a" and the like, where the GPU has no such counter
            value = float(line["Metric Value"].replace(",", ""))
            if math.isfinite(value):  # JSON has no other number
                metrics[line["Metric Name"]] = value
    if not kernels:
        refused = re.search(r"^==ERROR== (.*)$", log, re.MULTILINE)
        return [Row("ncu", f"left out: {refused[1] if refused else f'exit status {status}'}")]
    return [profile(name.split("(")[0], metrics) for (_, name), metrics in kernels.items()]


def profile(name: str, metrics: dict[str, float]) -> Row:
    """What one launch did; nan is a figure that ncu lacks."""
    known = defaultdict(lambda: math.nan, metrics)
    seconds = known[SECONDS] / 1e9
    told = [
        f"{1e3 * seconds:.4g} ms",
        f"{known[BYTES] / seconds / 1e9:.0f} GB/s ({known[SHARE]:.0f} % of the peak)",
        f"{known[INSTRUCTIONS]:.4g} instructions of a warp",
        f"{known[REGISTERS]:.0f} registers",
        f"{known[WARPS]:.0f} % of the warps",
    ]
    return Row(name[-60:], ", ".join(told), figures=metrics)
