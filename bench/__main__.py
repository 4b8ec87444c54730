"""Times everything that fusedstep does against what people could use instead.

    python -m bench                                  every case, an hour or two
    python -m bench --quick                          the small ones, a few minutes
    python -m bench --cases 'step/*/gpt2/*' 'norm/*' --peers torch optax --seconds 20
    python -m bench --list                           only print the cases' names

Every side of a case does the same work: it is checked against fusedstep's, then all are timed in
rounds in one process. A row for each side is appended to bench/results/bench.csv. Exit status 1 if
a side computes something else or fails, 2 if nothing matches.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

import fusedstep
from bench import host, least_squares, memory, newton, norm, pinv, share, softmax, step
from bench import map as bench_map
from bench.case import Case
from bench.command import InputError, Parser, count, exit_status, positive
from bench.measure import Quantiles, Stream, devices, facts, product_rate
from bench.peers import PEERS, Peer
from bench.record import RESULTS, Row, append_csv, check_columns
from bench.rounds import Effort, Outcome, measured
from bench.table import show

CSV = RESULTS / "bench.csv"
SECONDS = 5.0  # of a case
QUICK_SECONDS, QUICK_ELEMENTS, QUICK_TENSORS = 0.05, 1 << 20, 100
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product gives the rate
FREE_PART = 0.9  # of free memory that sides may take
EVERYTHING = ["*"]


def all_cases(peers: Sequence[Peer]) -> Iterator[Case]:
    """In the order in which they run."""
    yield from step.cases(peers)
    for group in (norm, pinv, least_squares, newton, softmax, bench_map, host, memory, share):
        yield from group.cases()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--device", choices=("all", "cpu", "cuda"), default="all", help="default: all")
    add("--cases", nargs="+", default=EVERYTHING, metavar="GLOB", help="of names; default: all")
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: those installed")
    add("--quick", action="store_true", help="small cases, few rounds")
    add("--seconds", type=positive, help=f"for each case (default: {SECONDS:g})")
    add("--threads", type=count, default=min(2, os.cpu_count() or 1), help="CPU threads")
    add("--out", type=Path, default=CSV, help="results file (default: bench/results/bench.csv)")
    add("--no-record", action="store_true", help="leave the results file alone")
    add("--list", action="store_true", help="print the names of the cases, time nothing")
    return parser.parse_args(argv)


# --- peers ---


def versions(peer: Peer) -> str:
    """Of its packages; raises PackageNotFoundError where one is missing."""
    return ", ".join(
        version(package) if len(peer.packages) == 1 else f"{package} {version(package)}"
        for package in peer.packages
    )


def installed(names: Sequence[str]) -> dict[Peer, str]:
    """Their versions; says which are missing."""
    found, missing = {}, []
    for name in names:
        try:
            found[PEERS[name]] = versions(PEERS[name])
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        print(f"not installed, so not timed: {', '.join(missing)}")
    return found


def version_of(provider: str, peers: dict[Peer, str]) -> str:
    """Of the package that provides a side: the peer with the longest name it begins with."""
    known = {peer.name: text for peer, text in peers.items()}
    known |= {"fusedstep": fusedstep.__version__, "torch": torch.__version__}
    names = [name for name in known if provider.lower().startswith(name)]
    return known[max(names, key=len)] if names else ""


# --- what a device can do ---


def free_bytes(device: torch.device) -> int:
    """Of memory that this process could take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def room_for(case: Case, device: torch.device) -> int:
    """How many sides fit into memory at a time, beside what the check keeps and compares."""
    if not case.side_bytes:
        return sys.maxsize
    kept = 2 * case.elements * getattr(torch, case.dtype).itemsize
    return max(0, int(FREE_PART * free_bytes(device) - kept)) // case.side_bytes


class Roof:
    """What bounds a case from below on a device: bytes, or products of matrices."""

    def __init__(self, device: torch.device) -> None:
        self.stream = Stream(device)
        self._products = cache(lambda dtype: product_rate(device, PRODUCT_SIZE[device.type], dtype))

    def seconds(self, case: Case, rates: Sequence[float]) -> float:
        """The least time; 0 where neither bytes nor products decide.

        rates: at which memory streamed while sides were timed.
        """
        products = case.operations / self._products(case.product) if case.operations else 0.0
        return max(case.least_bytes / (median(rates) if rates else self.stream.rate), products)


# --- rows ---


def where_of(device: torch.device) -> dict[str, object]:
    """The columns that say where and with what a line was measured."""
    found = facts(device)
    first = {name: found.pop(name) for name in ("date", "machine", "device", "threads")}
    first["machine"] = f"{first['machine']}, {os.cpu_count()} cores"
    return {**first, "load": "", "python": platform.python_version(), **found}


def row_of(case: Case, outcome: Outcome, where: Row, version: str, roof: float) -> Row:
    """A line of the results file. A side that was not timed has no figures of time."""
    row: dict[str, object] = {
        **where,
        "load": outcome.load,
        "group": case.group,
        "case": case.name,
        "provider": outcome.provider,
        "version": version,
        "dtype": case.dtype,
        "mode": case.mode,
        "tensors": case.tensors,
        "elements": case.elements,
        "rounds": len(outcome.times),
        **dict.fromkeys(("p10_us", "p50_us", "p90_us", "ratio", "ratio_low", "ratio_high"), ""),
        "least_bytes": case.least_bytes or "",
        "operations": case.operations or "",
        "state_bytes": outcome.state_bytes or "",
        "peak_bytes": outcome.peak_bytes or "",
        "roof_us": f"{1e6 * roof:.5g}" if roof else "",
        "gb_per_s": "",
        "roof_percent": "",
        "check": outcome.check,
    }
    if outcome.times:
        times = Quantiles.of(outcome.times)
        for name in ("p10", "p50", "p90"):
            row[f"{name}_us"] = f"{1e6 * getattr(times, name):.5g}"
        for name, ratio in zip(("ratio", "ratio_low", "ratio_high"), outcome.ratio, strict=True):
            row[name] = f"{ratio:.4g}"
        if case.least_bytes:
            row["gb_per_s"] = f"{case.least_bytes / times.p50 / 1e9:.4g}"
        if roof:
            row["roof_percent"] = f"{100 * roof / times.p50:.4g}"
    return row


def check_out(path: Path) -> None:
    """InputError if the results file cannot take our rows, before hours of timing."""
    case = next(all_cases([]))
    row = row_of(case, Outcome("", "", True), where_of(torch.device("cpu")), "", 0.0)
    try:
        check_columns(list(row), path)
    except (OSError, ValueError) as error:
        raise InputError(f"--out: {error}") from None


# --- the run ---


def chosen(options: argparse.Namespace, peers: Sequence[Peer]) -> list[Case]:
    """The cases that the command line asks for."""
    cases = [
        case
        for case in all_cases(peers)
        if any(fnmatchcase(case.name, glob) for glob in options.cases)
    ]
    if options.quick and options.cases == EVERYTHING:
        cases = [
            case
            for case in cases
            if case.elements <= QUICK_ELEMENTS and case.tensors <= QUICK_TENSORS
        ]
    if not cases:
        raise InputError(f"--cases must match names that --list prints, got {options.cases}")
    return cases


def timed_on(
    device: torch.device, cases: Sequence[Case], options: argparse.Namespace, peers: dict[Peer, str]
) -> Iterator[tuple[Outcome, Row]]:
    """Every side of every case; each case is recorded when it is done."""
    where, roof = where_of(device), Roof(device)
    print(f"{device}: {where['machine']}; memory streams {roof.stream.rate / 1e9:.3g} GB/s")
    effort = Effort(options.seconds or (QUICK_SECONDS if options.quick else SECONDS))
    for case in cases:
        if device.type not in case.devices:
            continue
        if (room := room_for(case, device)) < 2:
            needed = 2 * case.side_bytes / 1e9
            print(f"{case.name}: left out, two sides at a time need {needed:.3g} GB of memory")
            continue
        print(f"{case.name} ...", flush=True)
        outcomes = measured(case, device, effort, room, roof.stream)
        rows = [
            row_of(case, o, where, version_of(o.provider, peers), roof.seconds(case, o.rates))
            for o in outcomes
        ]
        if not options.no_record:
            append_csv(rows, options.out)
        yield from zip(outcomes, rows, strict=True)


def run(options: argparse.Namespace) -> int:
    peers = installed(options.peers)
    cases = chosen(options, list(peers))
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    torch.set_num_threads(options.threads)
    wanted = devices(options.device)
    if not options.no_record:
        check_out(options.out)
    found = [pair for device in wanted for pair in timed_on(device, cases, options, peers)]
    show([row for _, row in found])
    wrong = [(row["case"], outcome) for outcome, row in found if not outcome.passed]
    for case, outcome in wrong:
        print(f"{case}: {outcome.provider} {outcome.check}")
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status("bench", lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
