"""Times clip + step: fusedstep's one call against torch's two, on the CPU and a GPU if any.

    python -m bench.step                          every optimizer, about three minutes
    python -m bench.step --device cpu --rule rmsprop --case mlp --seconds 2 --no-record
    python -m bench.step --mode int8 --rule sgd   smaller state against our own float32 state

Both sides take turns in one process; the table shows medians. Each run is appended to
bench/results/step.csv, from which bench.plot draws.

Smaller state saves memory everywhere, and time where memory bandwidth is the limit: a step of AdamW
moves 28 bytes a parameter with float32 state, 20 with bfloat16 state and 16 with 8-bit state. The
conversions take, in ns an element, for one thread of an AMD EPYC with AVX-512 (Zen 4) and all loops
in full vectors:

    16 random bits, for two states             0.07    a hash of 32 bits for two elements
    rounding to bfloat16, and back             0.07, 0.04
    8-bit code of either sign, and back        0.21, 0.12    with the largest of its block
    8-bit code, never negative, and back       0.20, 0.09

In total 0.3 for both bfloat16 states and 0.7 for both 8-bit ones, compared with 0.3 for AdamW
itself, and with 1.05 that one of two threads needs to move 28 bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench import step_memory
from bench.measure import Medians, compare, devices, facts, parser
from bench.record import RESULTS, Row, append_csv, text_table
from bench.step_cases import (
    ADAMW,
    CPU_CASES,
    FLOAT32,
    GPU_CASES,
    MODES,
    RULES,
    Case,
    Mode,
    Rule,
    cases_for,
    fused_step,
    make_params,
    torch_step,
)

CSV = RESULTS / "step.csv"
MEMORY_BOUND = ("gpt2", "billion")  # the cases in which smaller state can pay
SHORTER = 2  # optimizers other than AdamW, and modes, have this part of the seconds


@dataclass(frozen=True)
class Outcome:
    """What was timed and the medians of both sides.

    The other side is torch, or fusedstep's float32 step if the mode is another one.
    """

    case: Case
    medians: Medians
    rule: Rule = ADAMW
    mode: Mode = FLOAT32

    @property
    def target(self) -> float | None:
        """The ratio that is wanted."""
        name = self.rule.name if self.mode is FLOAT32 else self.mode.name
        return self.case.targets.get(name)

    @property
    def passed(self) -> bool:
        """Whether the ratio reaches its target, if there is one."""
        return self.target is None or self.medians.ratio >= self.target

    @property
    def against(self) -> str:
        """What the other side is, in words."""
        return self.rule.against if self.mode is FLOAT32 else "fusedstep, float32"

    @property
    def floor_bytes(self) -> int:
        """What no implementation can avoid moving."""
        return self.case.floor_bytes(self.rule.states, self.mode.bytes)

    @property
    def gigabytes_per_second(self) -> float:
        """The floor's bytes over our time: not all that is moved, only what must be."""
        return self.floor_bytes / self.medians.ours / 1e9

    def row(self, where: Row, extra_memory: float | None) -> Row:
        """One line of the CSV. `extra_memory`: beyond torch's, in percent of the parameters."""
        return {
            **where,
            "rule": self.rule.name,
            "mode": self.mode.name,
            "against": self.against,
            "case": self.case.name,
            "dtype": str(self.case.dtype).removeprefix("torch."),
            "tensors": len(self.case.shapes),
            "parameters": self.case.parameters,
            "samples": self.medians.samples,
            "our_ms": f"{1e3 * self.medians.ours:.5g}",
            "their_ms": f"{1e3 * self.medians.theirs:.5g}",
            "ratio": f"{self.medians.ratio:.4g}",
            "target": "" if self.target is None else self.target,
            "floor_bytes": self.floor_bytes,
            "gb_per_s": f"{self.gigabytes_per_second:.4g}",
            "extra_memory_percent": "" if extra_memory is None else f"{extra_memory:.3f}",
        }


def contest(
    case: Case, device: torch.device, seconds: float, rule: Rule = ADAMW, mode: Mode = FLOAT32
) -> Outcome:
    """Times both sides on their own copies of the same tensors for about `seconds`."""
    theirs = torch_step if mode is FLOAT32 else fused_step
    medians = compare(
        fused_step(make_params(case, device), rule, mode),
        theirs(make_params(case, device), rule),
        device,
        seconds,
    )
    return Outcome(case, medians, rule, mode)


def contests(
    options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[Case, Rule, Mode]]:
    """What the options select; modes only for AdamW, unless another rule is requested."""
    for case in cases_for(device):
        for rule in RULES.values():
            for mode in MODES.values():
                plain = mode is FLOAT32
                if (
                    (not options.case or case.name in options.case)
                    and (not options.rule or rule.name in options.rule)
                    and (not options.mode or mode.name in options.mode)
                    and (plain or case.name in MEMORY_BOUND)
                    and (plain or rule is ADAMW or options.rule)
                ):
                    yield case, rule, mode


def table(outcomes: list[tuple[Outcome, Row]]) -> str:
    """The outcomes and their rows for people."""
    texts = ("", "", "device", "against")
    figures = ("their ms", "our ms", "ratio", "target", "GB/s", "memory")
    lines = [[*texts, *figures]]
    for outcome, row in outcomes:
        state = "" if outcome.mode is FLOAT32 else f", {outcome.mode.name} state"
        extra = row["extra_memory_percent"]
        verdict = f"{outcome.target}x {'met' if outcome.passed else 'missed'}"
        lines.append(
            [
                *(outcome.case.title, outcome.rule.title + state),
                *(str(row[name]) for name in ("device", "against", "their_ms", "our_ms", "ratio")),
                "" if outcome.target is None else verdict,
                str(row["gb_per_s"]),
                f"{float(str(extra)):+.2f} %" if extra else "",
            ]
        )
    view = text_table(lines, right=range(len(texts), len(texts + figures)))
    caption = "GB/s: the bytes that no step can avoid moving, over fusedstep's time"
    return f"clip + step, medians\n{view}\n{caption}"


def arguments() -> argparse.Namespace:
    summary = str(__doc__).split("\n")[0]
    names = sorted({case.name for case in CPU_CASES + GPU_CASES})
    options = parser(summary, names, seconds=8, csv=CSV)
    for name, values in (("rule", list(RULES)), ("mode", list(MODES))):
        options.add_argument(
            f"--{name}", choices=values, action="append", help="repeatable; default: all"
        )
    return options.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    outcomes: list[tuple[Outcome, Row]] = []
    for device in devices(options.device, "step"):
        where = facts(device)
        for case, rule, mode in contests(options, device):
            print(f"{device}: {case.title}, {rule.title}, {mode.name} state ...", flush=True)
            main_contest = rule is ADAMW and mode is FLOAT32
            seconds = options.seconds / (1 if main_contest else SHORTER)
            outcome = contest(case, device, seconds, rule, mode)
            extra = step_memory.extra_percent(case, device) if main_contest else None
            outcomes.append((outcome, outcome.row(where, extra)))
    if not outcomes:
        raise SystemExit("bench.step: nothing of this kind is timed on this device")
    if not options.no_record:
        append_csv([row for _, row in outcomes], options.csv)
    print(f"\n{table(outcomes)}")


if __name__ == "__main__":
    main()
