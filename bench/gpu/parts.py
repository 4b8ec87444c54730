"""The list of parts, and how the output of the tools among them is read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from bench.gpu.runner import Part

SANITIZERS = ("memcheck", "racecheck", "initcheck")


def judge_build(status: int, log: str) -> tuple[str, bool]:
    """The last line says what went wrong."""
    last = log.strip().split("\n")[-1][:90]
    return ("built" if status == 0 else last), status == 0


def judge_pytest(status: int, log: str) -> tuple[str, bool]:
    """Its last line, such as "12 passed, 3 skipped"; a run in which nothing passed fails."""
    ends = re.findall(r"^=* ?((?:\d+ \w+,? ?)+)in [\d.]+s", log, re.MULTILINE)
    counts = ends[-1].strip() if ends else f"exit status {status}"
    return counts, status == 0 and " passed" in counts


def judge_sanitizer(status: int, log: str) -> tuple[str, bool]:
    """Its summary line, such as "ERROR SUMMARY: 0 errors"; without one nothing was checked."""
    summaries = re.findall(r"^=+ (.*SUMMARY: .*)$", log, re.MULTILINE)
    if not summaries:
        return f"no summary, exit status {status}", False
    clean = all(re.search(r"SUMMARY: 0 ", line) for line in summaries)
    return summaries[-1], status == 0 and clean


def find_sanitizer(toolkit: Path | None) -> str:
    """compute-sanitizer of PATH, else of the toolkit; its bare name where neither has it."""
    found = shutil.which("compute-sanitizer")
    inside = toolkit / "bin" / "compute-sanitizer" if toolkit else None
    return found or (str(inside) if inside and inside.exists() else "compute-sanitizer")


def parts(root: Path, toolkit: Path | None, capability: str) -> list[Part]:
    """Everything to be done, the most important first: the last may find no time left.

    `capability` of the GPU, such as "9.0": the only one that is built for.
    """
    python = sys.executable
    places = [str(root / "python"), str(root), os.environ.get("PYTHONPATH")]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(root / "tests")]
    spread = ["-n", "8"] if importlib.util.find_spec("xdist") else []

    def script(name: str, seconds: float) -> Part:
        return Part(name, seconds, [python, "-m", f"bench.gpu.{name}"], environment=path)

    def sanitizer(tool: str) -> Part:
        command = [find_sanitizer(toolkit), "--tool", tool, "--error-exitcode", "9"]
        # Every tensor in a separate allocation: an access past its end is then an error.
        environment = path | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command += [python, "-m", "bench.gpu.small"]
        return Part(tool, 60, command, judge_sanitizer, "0 errors", environment)

    build = {"FUSEDSTEP_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}
    command = [python, str(root / "setup.py"), "-q", "build_ext", "--inplace"]
    return [
        Part("build", 150, command, judge_build, "built", build, needed=True),
        Part("GPU tests", 170, [*pytest, "-m", "gpu"], judge_pytest, "none fails", path),
        script("bitwise", 90),
        script("graphs", 40),
        script("timings", 120),
        script("closed_form", 100),
        *[sanitizer(tool) for tool in SANITIZERS],
        Part(
            "other tests",
            120,
            [*pytest, *spread, "-m", "not gpu and not slow"],
            judge_pytest,
            "none fails",
            path | {"OMP_NUM_THREADS": "2"},  # several processes share the processors
        ),
    ]
