"""How much of the machine others use while something is timed, from /proc; Linux alone has it."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # a second
QUIET = 0.10  # of a core, that others may use
USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 0, 1, 2, 5, 6, 7  # columns of /proc/stat; 3, 4 are idle


def busy_seconds() -> float:
    """Of all cores since the machine started, with what the host took from a virtual one."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]))
    return sum(fields[i] for i in (USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL)) / TICKS


def own_seconds() -> float:
    """CPU time of this process and of all that it has started, ended or not."""
    own, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()  # the name may have blanks
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        own[pid] = sum(map(int, fields[11:15])) / TICKS  # and of its children that have ended

    def ours(pid: int) -> bool:
        while pid not in (0, os.getpid()):
            pid = parents.get(pid, 0)
        return pid != 0

    return sum(seconds for pid, seconds in own.items() if ours(pid))


class Load:
    """Begins to watch when it is made."""

    def __init__(self) -> None:
        self._begin = (time.perf_counter(), busy_seconds(), own_seconds())

    def others(self) -> float:
        """Cores that others have used since, on average."""
        wall, busy, own = self._begin
        wall, busy = time.perf_counter() - wall, busy_seconds() - busy
        return max(0.0, busy - (own_seconds() - own)) / max(wall, 1 / TICKS)

    def text(self) -> str:
        """For a results file: others' cores, the load average, and whether that is busy."""
        others = self.others()
        busy = ", busy" if others > QUIET else ""
        return f"others {others:.2f}, average {os.getloadavg()[0]:.2f}{busy}"
