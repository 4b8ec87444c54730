"""How fast the step is on a GPU: the copy, 1e9 parameters in every form, models, the host's part.

What matters most comes first: the stage may run out of time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

import fusedstep
from bench.case import MAX_NORM, Shape, Work, random_params
from bench.gpu.checks import Check, Reporter, Scale, options, run
from bench.gpu.forms import FORMS, Form
from bench.measure import compare, timer_of
from bench.step_cases import (
    ADAMW,
    BILLION,
    MLP,
    MUON,
    RULES,
    SMALL,
    Rule,
    fused_step,
    gpt2_shapes,
    least_bytes,
    torch_step,
)

DEVICE = torch.device("cuda", 0)
COPIED: dict[Scale, int] = {"full": 1 << 30, "host": 1 << 16, "quick": 1 << 12}  # float32 elements
SECONDS: dict[Scale, float] = {"full": 2.0, "host": 0.1, "quick": 0.0}  # of timing two sides
LEAST_SHARE = 0.92  # of the copy's rate, for 1e9 float32 parameters
HOST_TENSORS, HOST_LIMIT = 150, 60e-6


@dataclass(frozen=True)
class Case:
    """Tensors of these shapes, with gradients of the same dtype."""

    name: str
    title: str
    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.float32
    # Wanted ratios of torch's time to ours, by rule.
    targets: Mapping[str, float] = field(default_factory=dict)

    def work(self, rule: Rule = ADAMW) -> Work:
        """Clip and step with float32 state."""
        return Work(rule.name, rule.arguments, "float32", True, self.shapes, self.dtype)


CASES = (
    Case("billion", "1e9 parameters", BILLION, targets={"adamw": 1.2}),
    Case("gpt2", "GPT-2 124M, 148 tensors", gpt2_shapes()),
    Case("many", "2000 tensors of 4096", ((4096,),) * 2000, targets={"adamw": 5.0}),
    # Not like for like: torch keeps the moments of these in bfloat16, fusedstep in float32.
    Case("billion-bf16", "1e9 bfloat16 parameters", BILLION, torch.bfloat16),
    Case("small", "400 small tensors", SMALL),
    Case("mlp", "MLP, 6 tensors", MLP),
)
QUARTER = Case("quarter", "2.5e8 parameters", BILLION[: len(BILLION) // 4])


def sized(case: Case, scale: Scale) -> Case:
    """The case, or its first tensors cut to what an emulated GPU can do."""
    if scale == "full":
        return case
    most, side = (12, 32) if scale == "host" else (3, 16)
    shapes = (tuple(min(n, side) for n in shape) for shape in case.shapes[:most])
    return replace(case, shapes=tuple(shapes))


class Timings:
    """The checks; each reports its share of the copy's rate."""

    def __init__(self, report: Reporter) -> None:
        self.report, self.scale = report, report.scale
        self._timer = timer_of(DEVICE)
        self._brief = 1 if self.scale == "full" else 5  # divides what is repeated

    def median(self, call: Callable[[], object], samples: int, repeats: int) -> float:
        """Seconds of one call, after a fifth of the samples to warm up."""
        samples = max(2, samples // self._brief)
        taken = [self._timer(call, repeats) / repeats for _ in range(samples)]
        return statistics.median(taken[samples // 5 :])

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that a copy from device to device reads and writes."""
        source = torch.randn(COPIED[self.scale], device=DEVICE)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.median(lambda: target.copy_(source), 15, 3)

    def copy(self) -> None:
        rate = self.bandwidth
        self.report.row("copy", f"{rate / 1e9:.0f} GB/s", bytes_per_second=rate)

    def share(self, name: str, seconds: float, least_bytes: float, wanted: float = 0.0) -> None:
        """How fast the bytes were moved that no implementation can avoid moving."""
        share = least_bytes / seconds / self.bandwidth
        floor = 1e3 * least_bytes / self.bandwidth
        result = f"{1e3 * seconds:.4g} ms, {share:.1%} of the copy's rate, floor {floor:.4g} ms"
        aim = f"{wanted:.0%}" if wanted else ""
        self.report.fast(name, result, aim, share >= wanted, seconds=seconds, share=share)

    def against_torch(self, case: Case, rule: Rule = ADAMW) -> None:
        work = sized(case, self.scale).work(rule)
        timed = compare(
            fused_step(work.params(DEVICE), rule),
            torch_step(work.params(DEVICE), rule),
            DEVICE,
            SECONDS[self.scale],
        )
        title = case.title if rule is ADAMW else rule.title
        wanted = LEAST_SHARE if case.name == "billion" else 0.0
        self.share(title, timed.ours, least_bytes(work), wanted)
        target = case.targets.get(rule.name)
        result = f"{rule.against} {1e3 * timed.theirs:.4g} ms: {timed.ratio:.2f}x"
        aim, reached = f"{target}x" if target else "", timed.ratio >= (target or 0)
        figures = {"ours": timed.ours, "theirs": timed.theirs, "samples": timed.samples}
        self.report.fast(f"{title}, ratio", result, aim, reached, **figures)

    def form(self, form: Form) -> None:
        """Clip + AdamW on 1e9 parameters stored so."""
        work = sized(Case("billion", "1e9 parameters", BILLION, form.dtype), self.scale).work()
        optimizer = fusedstep.AdamW(work.params(DEVICE), max_norm=MAX_NORM, **form.options)
        seconds = self.median(optimizer.step, 15, 3)
        self.share(form.name, seconds, form.bytes() * work.elements)

    def host(self) -> None:
        """Of one call of step() with little for the GPU to do: what the host spends."""
        step = fused_step(random_params(((64,),) * HOST_TENSORS, torch.float32, DEVICE))
        samples = []
        for _ in range(200 // self._brief**2):
            torch.cuda.synchronize()  # the queue is empty: no call waits for a place in it
            begin = time.perf_counter()
            for _ in range(20 // self._brief):
                step()
            samples.append((time.perf_counter() - begin) / (20 // self._brief))
        host = statistics.median(samples[len(samples) // 5 :])
        result, aim = f"{1e6 * host:.1f} us, {HOST_TENSORS} tensors", f"< {1e6 * HOST_LIMIT:.0f} us"
        self.report.fast("host time of step()", result, aim, host < HOST_LIMIT, seconds=host)

    def checks(self) -> list[Check]:
        """In the order of their worth."""
        cases = {case.name: case for case in CASES}
        against = {name: partial(self.against_torch, case) for name, case in cases.items()}
        first, then = ("billion",), ("billion-bf16", "gpt2", "many")
        forms: list[Check] = [(form.name, partial(self.form, form)) for form in FORMS]
        return [
            ("copy", self.copy),
            *((cases[name].title, against[name]) for name in first),
            *(forms[::4] if self.scale == "quick" else forms),
            *((cases[name].title, against[name]) for name in then),
            ("host time of step()", self.host),
            *((cases[n].title, call) for n, call in against.items() if n not in (*first, *then)),
            *(
                (rule.title, partial(self.against_torch, QUARTER, rule))
                for rule in RULES.values()
                if rule not in (ADAMW, MUON)  # all above are about AdamW; Muon's time is products
            ),
        ]


def main() -> None:
    asked = options()
    run(Timings(Reporter(asked.scale)).checks(), asked)


if __name__ == "__main__":
    main()
