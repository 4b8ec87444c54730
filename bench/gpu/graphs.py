"""Graph capture and replay, side streams, and that a step launches two kernels and never waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedstep
from bench.gpu.checks import Reporter, options, run
from bench.gpu.forms import ROUNDED, Form
from bench.gpu.trials import grad_of

REPLAYS = 5
LAUNCHES = "kernels launched"
LONG = 200_000_000  # cycles, about 0.1 s: longer than any host needs for a step


def make(count: int = 40, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Parameters of 1 to about 40000 elements on the GPU, with gradients."""
    generator = torch.Generator("cuda").manual_seed(seed)
    params = []
    for at in range(count):
        size = 1 + at * 40_000 // count
        param = torch.randn(size, generator=generator, device="cuda").to(dtype).requires_grad_()
        param.grad = torch.randn(size, generator=generator, device="cuda").to(dtype)
        params.append(param)
    return params


def twins(params: list[Tensor]) -> list[Tensor]:
    copies = [param.detach().clone().requires_grad_() for param in params]
    for copy, param in zip(copies, params, strict=True):
        copy.grad = grad_of(param).clone()
    return copies


def optimizer(params: list[Tensor], **options: Any) -> fusedstep.AdamW:
    return fusedstep.AdamW(params, max_norm=1.0, capturable=True, **options)


def refill(lists: list[list[Tensor]], seed: int) -> None:
    """The same new gradients for every list, in place."""
    generator = torch.Generator("cuda").manual_seed(seed)
    for group in zip(*lists, strict=True):
        fresh = torch.randn(group[0].shape, generator=generator, device="cuda")
        for param in group:
            grad_of(param).copy_(fresh)


def differing(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> int:
    return sum(x is None or y is None or not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def replay_equals_eager(form: Form | None = None) -> int:
    """Tensors that differ between replays and eager steps, with other gradients and rates."""
    captured = make(dtype=form.dtype if form else torch.float32)
    eager = twins(captured)
    rates = [torch.tensor(0.01, device="cuda") for _ in range(2)]
    options = form.options if form else {}
    steps = [
        optimizer(params, lr=rate, **options)
        for params, rate in zip((captured, eager), rates, strict=True)
    ]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        steps[0].step()  # state and table must be there before the capture
    torch.cuda.current_stream().wait_stream(side)
    steps[1].step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps[0].step()
    for at in range(REPLAYS):
        refill([captured, eager], at)
        for rate in rates:
            rate.fill_(0.01 / (at + 1))
        graph.replay()
        steps[1].step()
    norms = [[step.grad_norm] for step in steps]
    return differing(captured, eager) + differing(*norms)


def replays_round_differently() -> int:
    """1 where replays with the same gradients draw the same random numbers.

    Zero gradients and a decay by less than a bfloat16 can hold: which elements it moves is random.
    """
    param = torch.ones(100_000, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    param.grad = torch.zeros_like(param)
    options = {**ROUNDED.options, "lr": 1e-3, "weight_decay": 1.0}
    step = fusedstep.AdamW([param], capturable=True, **options).step
    step()  # state and table must be there before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    moved = []
    for _ in range(2):
        with torch.no_grad():
            param.fill_(1.0)
        graph.replay()
        moved.append(param != 1)
    return int(torch.equal(*moved) or not moved[0].any())


def graph_survives_an_eager_step() -> int:
    """An eager step with gradients elsewhere rebuilds the table; the graph keeps its own."""
    captured = make(seed=1)
    eager = twins(captured)
    steps = [optimizer(captured), optimizer(eager)]
    for step in steps:
        step.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps[0].step()
    places = [param.grad for param in captured]
    for param in captured:
        param.grad = grad_of(param).clone()
    for step in steps:
        step.step()
    for param, place in zip(captured, places, strict=True):
        param.grad = place
    refill([captured, eager], 9)
    graph.replay()
    steps[1].step()
    return differing(captured, eager)


def side_stream_is_followed() -> int:
    """Gradients that a side stream writes late must be the ones that a step on it reads."""
    late, early = make(seed=2), make(seed=2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    steps = [optimizer(late), optimizer(early)]
    refill([early], 3)
    with torch.cuda.stream(stream):
        for _ in range(2):
            torch.cuda._sleep(LONG)
            refill([late], 3)
            steps[0].step()
    stream.synchronize()
    for _ in range(2):
        steps[1].step()
    return differing(late, early)


def step_returns_before_the_gpu_is_done() -> int:
    """1 where the host waited: behind a long kernel, a step's work must still be pending."""
    params = make(seed=4)
    step = optimizer(params, nonfinite="skip")
    step.step()
    done = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    step.step()
    done.record()
    waited = done.query()
    torch.cuda.synchronize()
    return int(waited)


def launches(params: list[Tensor]) -> int:
    """The kernels of one step, as the profiler sees them."""
    step = fusedstep.AdamW(params, max_norm=1.0)
    step.step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step.step()
        torch.cuda.synchronize()
    on_gpu = [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    print("launched:", *on_gpu, sep="\n  ")
    return len(on_gpu)


# What is counted, and how many there must be.
CHECKS: tuple[tuple[str, Callable[[], int], str, int], ...] = (
    ("graph replay equals eager", replay_equals_eager, "tensors differ", 0),
    ("so rounded stochastically", partial(replay_equals_eager, ROUNDED), "tensors differ", 0),
    ("replays round differently", replays_round_differently, "repeat", 0),
    ("graph survives an eager step", graph_survives_an_eager_step, "tensors differ", 0),
    ("side stream", side_stream_is_followed, "tensors differ", 0),
    ("no waiting for the GPU", step_returns_before_the_gpu_is_done, "waits", 0),
    ("2000 tensors", lambda: launches(make(2000)), LAUNCHES, 2),
    ("two dtypes", lambda: launches(make(300) + make(300, torch.bfloat16)), LAUNCHES, 3),
)


def main() -> None:
    asked = options()
    report = Reporter(asked.scale)

    def expect(name: str, count: Callable[[], int], what: str, wanted: int) -> None:
        found = count()
        report.right(name, f"{found} {what}", f"{wanted} {what}", found == wanted)

    # A CPU launches nothing.
    checks = [check for check in CHECKS if asked.scale == "full" or check[2] != LAUNCHES]
    run([(check[0], partial(expect, *check)) for check in checks], asked)


if __name__ == "__main__":
    main()
