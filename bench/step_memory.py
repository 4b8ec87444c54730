"""How much more memory one step takes than torch's, each measured in a process of its own.

python -m bench.step_memory torch gpt2 cpu      prints the bytes in use after one step
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from bench.record import ROOT
from bench.step_cases import Case, cases_for, fused_step, make_params, torch_step

SIDES = {"torch": torch_step, "fusedstep": fused_step}
# Below this size the difference is smaller than what two runs of the same process differ by.
LEAST_BYTES = 100 << 20


def used_bytes(case: Case, side: str, device: torch.device) -> int:
    """The peak of resident memory, or what the GPU has allocated, after the first step."""
    free = 0
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context and torch's own first allocation
        free = torch.cuda.mem_get_info(device)[0]
    params = make_params(case, device)
    step = SIDES[side](params)
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        return free - torch.cuda.mem_get_info(device)[0]
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Of this program; getrusage would count the parent's, from before this program was loaded."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, "Linux writes VmHWM"
    return 1024 * int(found[1])


def extra_percent(case: Case, device: torch.device) -> float | None:
    """fusedstep's bytes minus torch's, in percent of the parameters'; None for a small case.

    None for narrow parameters too: torch keeps their moments narrow and fusedstep in float32, so
    the difference is not overhead.
    """
    if case.parameter_bytes < LEAST_BYTES or case.dtype != torch.float32:
        return None
    used = {}
    for side in SIDES:
        command = [sys.executable, "-m", "bench.step_memory", side, case.name, device.type]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        used[side] = int(result.stdout)
    return 100 * (used["fusedstep"] - used["torch"]) / case.parameter_bytes


def main() -> None:
    side, name, device_type = sys.argv[1:]
    device = torch.device(device_type)
    case = next(case for case in cases_for(device) if case.name == name)
    print(used_bytes(case, side, device))


if __name__ == "__main__":
    main()
