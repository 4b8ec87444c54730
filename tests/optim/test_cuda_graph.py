"""Steps and clips captured in a CUDA graph: each replay is one more step, with the CPU's bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.cpu_and_gpu import CpuAndGpu
from tests.support.optimizers import Kind, every_kind
from tests.support.reads import warm_up
from tests.support.tensors import assert_same_bits, make_params, set_grads

pytestmark = pytest.mark.gpu

SHAPES = [(70_001,), (3, 5), (), (0,), (257,)]


def refill(grads: list[Tensor], seed: int) -> None:
    """New values in the memory that the graph reads."""
    sources = make_params(*[tuple(g.shape) for g in grads], seed=1000 + seed)
    for grad, source in zip(grads, sources, strict=True):
        grad.copy_(source.detach())


class Captured(CpuAndGpu):
    """The GPU half has its step in a graph, after two steps of both halves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(*SHAPES, capturable=True, **options)
        self.set_grads(0)
        warm_up(self.optimizers[1].step)
        for _ in range(2):
            self.optimizers[0].step()
        self.capture()

    def capture(self) -> None:
        self.grads = [p.grad for p in self.cuda]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.optimizers[1].step()
            self.norm = self.optimizers[1].grad_norm
        self.check(norm=False)  # the capture itself does nothing

    def replay(self, seed: int, nan: bool = False) -> None:
        """One step of both halves with new gradients; `nan`: one of them is NaN."""
        for grads in ([p.grad for p in self.cpu], self.grads):
            refill(grads, seed)
            if nan:
                grads[0][5] = math.nan
        self.optimizers[0].step()
        self.graph.replay()
        self.check(norm=False)
        if self.norm is not None:
            assert_same_bits(self.norm, self.optimizers[0].grad_norm, "grad_norm")


@pytest.mark.parametrize(
    "options",
    [{}, {"max_norm": 1.0}, {"amsgrad": True, "max_norm": 0.5, "norm_type": math.inf}],
    ids=str,
)
def test_every_replay_is_a_step(options: dict[str, Any]) -> None:
    captured = Captured(**options)
    for seed in range(4):
        captured.replay(seed)
    (count,) = {float(s["step"]) for s in captured.optimizers[1].state.values()}
    assert count == 6


@every_kind
def test_every_optimizer_is_captured(kind: Kind) -> None:
    captured = Captured(optimizer=kind.ours, max_norm=1.0)
    for seed in range(3):
        captured.replay(seed)


def test_every_replay_draws_new_random_numbers() -> None:
    """Among the keys of its random numbers is the step, which is read on the device."""
    bfloat16 = torch.bfloat16
    captured = Captured(dtype=bfloat16, state_dtype=bfloat16, stochastic_rounding=True)
    for seed in range(3):
        captured.replay(seed)


def test_lr_is_read_at_every_replay() -> None:
    rates = [torch.tensor(0.1, device=device) for device in ("cpu", "cuda")]
    captured = Captured(max_norm=1.0)
    # Captured again with a rate in memory, from the state that the first capture left.
    for rate, optimizer in zip(rates, captured.optimizers, strict=True):
        optimizer.param_groups[0]["lr"] = rate
    captured.capture()
    for seed in range(4):
        for rate in rates:
            rate.fill_(0.1 / (seed + 1))
        captured.replay(seed)


def test_replay_skips_what_is_not_finite() -> None:
    captured = Captured(max_norm=1.0, nonfinite="skip")
    for seed in range(4):
        captured.replay(seed, nan=seed == 1)
    (count,) = {float(s["step"]) for s in captured.optimizers[1].state.values()}
    assert count == 5


def test_eager_steps_between_replays() -> None:
    captured = Captured(max_norm=1.0)
    captured.replay(1)
    captured.set_grads(2)  # elsewhere: the eager step sends its own table
    captured.step()
    captured.check()
    for optimizer in captured.optimizers:
        optimizer.param_groups[0]["lr"] = 0.5
    captured.step()
    captured.check()
    # The graph still reads the gradients and the rate that it was captured with.
    captured.optimizers[0].param_groups[0]["lr"] = 1e-3
    captured.replay(3)


def test_two_graphs_of_one_optimizer() -> None:
    captured = Captured(max_norm=1.0)
    graphs = [(captured.grads, captured.graph, captured.norm)]
    captured.set_grads(5)
    captured.capture()
    graphs.append((captured.grads, captured.graph, captured.norm))
    for seed in range(4):
        captured.grads, captured.graph, captured.norm = graphs[seed % 2]
        captured.replay(seed)


def test_capture_needs_capturable() -> None:
    both = CpuAndGpu((300,), (5,))
    both.set_grads(0)
    both.step()
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="capturable must be True in every group"),
        torch.cuda.graph(graph),
    ):
        both.optimizers[1].step()
    both.step()
    both.check()


def test_captured_clip_and_norm() -> None:
    params = make_params(*SHAPES, device="cuda")
    set_grads(params)
    grads = [p.grad for p in params]
    warm_up(lambda: fusedstep.clip_grad_norm_(params, 1e9))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        before = fusedstep.clip_grad_norm_(params, 1.0)
        after = fusedstep.get_total_norm(grads)
    for seed in range(3):
        refill(grads, seed)
        twins = make_params(*SHAPES)
        for twin, grad in zip(twins, grads, strict=True):
            twin.grad = grad.cpu()
        expected = fusedstep.clip_grad_norm_(twins, 1.0)
        # Other work of the same ops between the replays must not touch the graph's tables.
        fusedstep.get_total_norm([torch.randn(100_000, device="cuda")])
        graph.replay()
        assert_same_bits(before, expected, "norm")
        assert_same_bits(after, fusedstep.get_total_norm([t.grad for t in twins]), "norm after")
        for grad, twin in zip(grads, twins, strict=True):
            assert_same_bits(grad, twin.grad, "gradient")
