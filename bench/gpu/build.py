"""Builds both modules for this machine's GPU alone, unless what is there was built from this tree.

A rehearsal takes the modules that bench.gpu.rehearsal has made.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from bench.gpu.checks import options
from bench.gpu.rows import Row
from bench.record import ROOT
from python.buildtools.facts import fingerprint

LOAD = "from fusedstep import build; print(build.CUDA_REASON, build.FACTS['sources'], sep='|')"
SHOWN = 5  # sources that took longest
MODULES = ("_C", "_C_cuda")


def are_there(root: Path) -> bool:
    """Whether both modules are there for this Python, built from the sources of this tree.

    Their bytes tell, without an import that takes seconds: each holds its sources' fingerprint.
    """
    suffix, sources = sysconfig.get_config_var("EXT_SUFFIX"), fingerprint(root).encode()
    paths = [root / "python" / "fusedstep" / f"{name}{suffix}" for name in MODULES]
    return all(path.exists() and sources in path.read_bytes() for path in paths)


def lack() -> str:
    """Why the modules that are there cannot be used; "" where they can."""
    result = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True)
    if result.returncode:
        return result.stderr.strip().split("\n")[-1]
    reason, sources = result.stdout.strip().split("\n")[-1].split("|")
    return reason or ("" if sources == fingerprint(ROOT) else "built from other sources")


def slowest(logs: list[Path]) -> str:
    """The sources that took longest, as ninja kept it: begin and end in ms, time, output, hash."""
    lines = [
        line.split("\t") for log in logs if log.exists() for line in log.open() if "\t" in line
    ]
    seconds = {Path(name).stem: (int(end) - int(begin)) / 1e3 for begin, end, _, name, *_ in lines}
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN]
    return ", ".join(f"{name} {taken:.0f} s" for name, taken in longest)


def main() -> None:
    rehearsed = options().scale != "full"
    reason = "" if rehearsed else lack()
    if not reason:
        Row("build", "those that were there", "built", True).show()
        return
    print(f"no modules that can be used: {reason}", flush=True)
    import torch

    architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    wanted = {"FUSEDSTEP_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
    command = [sys.executable, str(ROOT / "setup.py"), "-q", "build_ext", "--inplace"]
    begin = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, env=os.environ | wanted).returncode
    taken = f"for {architecture} in {time.monotonic() - begin:.0f} s"
    logs = [ROOT / "build" / "objects" / f"fusedstep.{m}" / ".ninja_log" for m in MODULES]
    Row("slowest sources", slowest(logs)).show()
    reason = f"setup.py: exit status {status}" if status else lack()
    Row("build", reason or f"built {taken}", "built", not reason).show()


if __name__ == "__main__":
    main()
