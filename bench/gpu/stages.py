"""The stages of both calls, in the order of their worth, each with the seconds that it may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.gpu import suite, tools
from bench.gpu.probe import find_tool
from bench.gpu.runner import Stage, Task

# Seconds of each call, which the limits of its stages add up to.
LIMITS = {1: 480, 2: 270}
FAMILIES, OURS = 10, 9  # as bench/gpu/families.py counts them, which imports torch
SLOWER = 20  # times the seconds, for a rehearsal: an emulated GPU is slow
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Plan:
    """Where the tree is, and whether this is a rehearsal, and a quick one."""

    root: Path
    rehearse: bool = False
    quick: bool = False

    @property
    def scale(self) -> str:
        """How large the checks are, as bench/gpu/checks.py has it."""
        return "quick" if self.quick else "host" if self.rehearse else "full"

    def seconds(self, limit: float) -> float:
        return SLOWER * limit if self.rehearse else limit

    def command(self, module: str, *arguments: str) -> list[str]:
        """`python -m module arguments`, on this machine's GPU or in its rehearsal."""
        stand_in = ["bench.gpu.rehearsal"] if self.rehearse else []
        return [sys.executable, "-m", *stand_in, module, *arguments]

    def environment(self, processes: int) -> Mapping[str, str]:
        """Of each of so many processes, which share the processors."""
        places = [str(self.root / "python"), str(self.root), os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, places))
        threads = max(1, CORES // min(processes, CORES))
        return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def script(
    plan: Plan, name: str, limit: float, each: float, processes: int = 1, needs: str = ""
) -> Stage:
    """The checks of bench/gpu/<name>.py, which take up to `each` seconds, shared by processes."""
    if plan.quick:
        processes = min(processes, CORES)
    tasks = []
    for i in range(processes):
        share = ["--scale", plan.scale, "--share", f"{i}/{processes}"]
        command = plan.command(f"bench.gpu.{name}", *share)
        environment = plan.environment(processes)
        title = f"{name} {i}" if processes > 1 else name
        tasks.append(Task(title, command, plan.seconds(each), environment))
    return Stage(name, plan.seconds(limit), tasks, CORES, needs)


def tests(plan: Plan, limit: float) -> Stage:
    """A process for each file: an error that a CUDA context does not survive stays in it."""
    files = [plan.root / name for name in suite.BRIEF] if plan.quick else suite.files(plan.root)
    environment = plan.environment(len(files))
    tasks = []
    for path in files:
        name = str(path.relative_to(plan.root / "tests"))
        command, judge = plan.command("pytest", *suite.arguments(path)), partial(suite.judge, name)
        tasks.append(Task(name, command, plan.seconds(limit), environment, judge))
    return Stage("GPU tests", plan.seconds(limit), tasks, CORES)


def sanitizer(plan: Plan, tool: str, limit: float) -> Stage:
    """compute-sanitizer over each family of our own kernels; a rehearsal only makes the calls."""
    program = find_tool("compute-sanitizer")
    if not (program or plan.rehearse):
        return Stage(tool, limit, [], left_out="compute-sanitizer is absent")
    before = [] if plan.rehearse else [program, *tools.SANITIZER, tool]
    tasks = []
    for i in range(1 if plan.quick else OURS):
        command = plan.command(
            "bench.gpu.smoke", "--scale", plan.scale, "--share", f"{i}/{FAMILIES}"
        )
        environment = {**plan.environment(OURS), **tools.NO_CACHE}
        name, seconds = f"{tool} {i}", plan.seconds(limit or 60)
        judge = None if plan.rehearse else partial(tools.judge_sanitizer, name)
        tasks.append(Task(name, [*before, *command], seconds, environment, judge))
    return Stage(tool, plan.seconds(limit), tasks, CORES)


def ncu(plan: Plan, limit: float) -> Stage:
    """The hardware's counters; a rehearsal only makes the calls."""
    program = find_tool("ncu")
    if not (program or plan.rehearse):
        return Stage("ncu", limit, [], left_out="ncu is absent")
    before = [] if plan.rehearse else [program, *tools.NCU]
    command = [*before, *plan.command("bench.gpu.profiled", "--scale", plan.scale)]
    judge = tools.judge_calls if plan.rehearse else tools.judge_ncu
    task = Task("ncu", command, plan.seconds(limit), plan.environment(1), judge)
    return Stage("ncu", plan.seconds(limit), [task])


def calls(plan: Plan, built: bool) -> dict[int, list[Stage]]:
    """What each call does. `built`: the modules are there; else the second makes them."""
    first = [
        script(plan, "probe", 20, each=20, needs="GPU"),
        script(plan, "build", 290, each=290, needs="build"),
    ]
    return {
        1: [
            # The build of a rehearsal makes the GPU that its probe finds.
            *(first[::-1] if plan.rehearse else first),
            script(plan, "smoke", 20, each=20, processes=FAMILIES),
            script(plan, "timings", 45, each=20),
            script(plan, "bitwise", 40, each=20, processes=4),
            script(plan, "graphs", 25, each=15),
            script(plan, "closed_form", 40, each=20),
        ],
        2: [
            script(plan, "build", 20 if built else 150, each=150, needs="build"),
            tests(plan, 100),
            sanitizer(plan, "memcheck", 70),
            sanitizer(plan, "racecheck", 50),
            ncu(plan, 30),
            *([] if plan.rehearse else [sanitizer(plan, "initcheck", 0)]),
        ],
    }
