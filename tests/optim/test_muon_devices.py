"""Muon on the CUDA path: its bits, run on the host; on a GPU nothing waits, a graph holds it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.on_host import step_on_cpu
from tests.support.optimizers import assert_same_run
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

MATRICES = [(70, 300), (16, 8), (16, 8), (0, 4), (33, 17)]
REST = [(33_000,), (), (0,), (40, 8)]


def muon_over(params: list[Tensor], **options: Any) -> fusedstep.Muon:
    """Two groups of Muon's and one of AdamW's."""
    n = len(MATRICES)
    groups = [
        {"params": params[:2]},
        {"params": params[2:n], "nesterov": False, "weight_decay": 0.5},
        {"params": params[n:], "use_muon": False, "lr": 0.01},
    ]
    return fusedstep.Muon(groups, **{"lr": 0.02} | options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_cuda_path_has_the_bits_of_the_cpu(on_simt: Any, dtype: torch.dtype) -> None:
    params = make_params(*MATRICES, *REST, dtype=dtype)
    twins = copies(params)
    ours = muon_over(params, max_norm=0.5, nonfinite="skip")
    twin = muon_over(twins, max_norm=0.5, nonfinite="skip")
    for seed in range(4):
        on_simt.seed(seed)
        for these in (params, twins):
            set_grads(these, seed=seed)
            if seed == 2:
                these[1].grad[0, 0] = math.nan
        ours.step()
        step_on_cpu(twin)
        assert_same_bits(ours.grad_norm, twin.grad_norm, "grad_norm")
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            assert_same_bits(p, q, f"params[{i}] after step {seed}")
    assert_same_run(ours, twin)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_in_a_parameter_have_the_bits_of_the_cpu(on_simt: Any, dtype: torch.dtype) -> None:
    """Blocks of rows with ratios of their own, some of them copies, next to whole parameters.

    The second moments of their rows advance on the device, too.
    """
    params = make_params((200, 30), (3, 200, 30), (20, 6), dtype=dtype)
    params[1] = params[1].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    twins = copies(params)
    master = "remainder" if dtype == torch.bfloat16 else None

    def divided(params: list[Tensor]) -> fusedstep.Muon:
        groups = [{"params": params[:2], "split_sizes": (120, 80)}, {"params": params[2:]}]
        return fusedstep.Muon(
            groups, lr=0.02, adjust_lr_fn="spectral_unclamped", nonfinite="skip", master=master,
            normuon_beta2=0.9,
        )  # fmt: skip

    ours, twin = divided(params), divided(twins)
    for seed in range(4):
        on_simt.seed(seed)
        for these in (params, twins):
            set_grads(these, seed=seed)
            if seed == 1:
                these[0].grad = None
            if seed == 2:
                these[1].grad[0, 0, 0] = math.nan
        ours.step()
        step_on_cpu(twin)
    assert_same_run(ours, twin)


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu() -> None:
    params = make_params(*MATRICES, *REST, device="cuda")
    optimizer = muon_over(params, max_norm=1.0, nonfinite="skip")
    optimizer.grad_scale = torch.tensor(2.0, device="cuda")
    optimizer.found_inf = torch.tensor(0.0, device="cuda")
    set_grads(params)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_every_replay_of_a_graph_is_a_step() -> None:
    params = make_params(*MATRICES, *REST, device="cuda")
    twins = copies(params)
    captured = muon_over(params, max_norm=1.0, nonfinite="skip")
    eager = muon_over(twins, max_norm=1.0, nonfinite="skip")
    for these, optimizer in ((params, captured), (twins, eager)):
        set_grads(these)
        optimizer.step()  # state and tables, and the libraries' workspaces
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for seed in range(4):
        set_grads(twins, seed=seed)
        if seed == 1:
            twins[0].grad[0, 0] = math.nan
        for param, twin in zip(params, twins, strict=True):
            param.grad.copy_(twin.grad)
        graph.replay()
        eager.step()
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            assert_same_bits(p, q, f"params[{i}] after step {seed}")
