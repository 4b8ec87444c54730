"""What all tests share: their marks, the device fixture, and the count of skips by reason."""

from __future__ import annotations

import os
from collections import Counter

# libgomp reads it when torch loads it. Where processors are shared, waiting threads that spin take
# them from those that work: the suite then runs several times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings

from fusedstep import build
from tests.support.marks import marks_of

pytest_plugins = [
    "tests.support.on_host",
]  # fixtures that several files use

# A busy machine is slow, not wrong: no example may fail for the time it took. CI repeats itself.
settings.register_profile(
    "fusedstep", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("fusedstep")


def gpu_lack() -> str:
    """Why tests marked `gpu` cannot run here; "" where they can."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, torch sees none"
    if build.CUDA_REASON:
        return f"needs the CUDA module, which is {build.CUDA_REASON}"
    return ""


@pytest.hookimpl(tryfirst=True)  # before pytest's own selects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their place and fixtures; skips those marked `gpu` where they cannot run."""
    reason = gpu_lack()
    for item in items:
        for mark in marks_of(item):
            item.add_marker(mark)
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn: a test that takes it runs on the CPU and, if there is one, the GPU."""
    return torch.device(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Ends the report with the number of skipped tests for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    terminalreporter.section(f"skipped: {len(skipped)}, torch {torch.__version__}")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5d}  {reason}")
