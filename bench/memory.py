"""The group "memory": the peak of a process that takes steps and does nothing else, and its state.

python -m bench.memory fusedstep adamw gpt2 float32 cpu 3    is such a process: it prints JSON
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Side, Work
from bench.peers.steps import optimizer_side
from bench.record import ROOT
from bench.step import work_of
from bench.step_cases import MODES, RULES, SETS, held_bytes, our_side

# Rules, sets of tensors, forms of state. torch is a side where it has this form.
CASES = (
    *[(rule, "gpt2", "float32") for rule in ("adamw", "rmsprop")],
    *[("adamw", "gpt2", mode) for mode in MODES if mode != "float32"],
)


def torch_side(work: Work, device: torch.device) -> Iterator[Side]:
    """The best documented step."""
    make = partial(RULES[work.rule].theirs, **work.arguments)
    yield optimizer_side("torch", work, device, make)


SIDES = {"fusedstep": our_side, "torch": torch_side}


def peak_resident_bytes() -> int:
    """Of this program; getrusage would count the parent's, from before this program was loaded."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, "Linux writes VmHWM"
    return 1024 * int(found[1])


def run(provider: str, work: Work, steps: int, device: torch.device) -> dict[str, object]:
    """Takes the steps; the peak of resident memory, or what the GPU has allocated, comes first."""
    free = 0
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context and torch's own first allocation
        free = torch.cuda.mem_get_info(device)[0]
    side = next(SIDES[provider](work, device))
    side.sample(steps)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        peak = free - torch.cuda.mem_get_info(device)[0]
    else:
        peak = peak_resident_bytes()
    moved = zip(side.result(), work.params(device), strict=True)
    norms = [float((after - before).detach().norm()) for after, before in moved]
    return {"peak": peak, "state": side.state_bytes(), "moved": norms}


class Process:
    """A process of its own for the steps of one side; its result is how far each tensor moved."""

    def __init__(self, provider: str, case: tuple[str, str, str], device: torch.device) -> None:
        self._command = [sys.executable, "-m", "bench.memory", provider, *case, device.type]
        self._said: dict[str, Any] = {"peak": 0, "state": 0, "moved": []}

    def sample(self, steps: int) -> float:
        begin = time.perf_counter()
        command = [*self._command, str(steps)]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        self._said = json.loads(ran.stdout)
        return time.perf_counter() - begin

    def result(self) -> list[Tensor]:
        return [torch.tensor(norm, dtype=torch.float64) for norm in self._said["moved"]]

    def side(self, provider: str) -> Side:
        return Side(
            provider,
            self.sample,
            self.result,
            lambda: int(self._said["state"]),
            lambda: int(self._said["peak"]),
        )


def sides_of(case: tuple[str, str, str], device: torch.device) -> Iterator[Side]:
    for provider in SIDES:
        if provider == "fusedstep" or case[-1] == "float32":
            yield Process(provider, case, device).side(provider)


def cases() -> Iterator[Case]:
    for case in CASES:
        variant, of, mode = case
        work = work_of(variant, SETS[of](), mode)
        yield Case(
            name=f"memory/{variant}/{of}/{mode}",
            tensors=len(work.shapes),
            elements=work.elements,
            dtype=str(work.dtype).removeprefix("torch."),
            mode=mode,
            least_bytes=0,
            operations=0,
            sides=partial(sides_of, case),
            tolerance=1e-3,
            side_bytes=held_bytes(work),
            timed=False,
        )


def main() -> None:
    provider, variant, of, mode, device, steps = sys.argv[1:]
    work = work_of(variant, SETS[of](), mode)
    print(json.dumps(run(provider, work, int(steps), torch.device(device))))


if __name__ == "__main__":
    main()
