"""One regression test for each trap that other fused optimizers fell into; its name says which.

Not here: sizes of 2^31 elements (tests/simt/test_large_sizes.cpp), tables sent from memory that is
gone and hidden waits for the GPU (tests/test_cuda*.py), scalar loads (tests/cuda/report.py).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import fusedstep
from tests.support.optimizers import Kind, every_kind
from tests.support.shadow import Shadow
from tests.support.tensors import DTYPES, assert_same_bits, copies, make_params, name_of, set_grads

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("empties", [1, 5])
@every_kind
def test_trap_1_work_pending_before_an_empty_last_tensor_is_done(kind: Kind, empties: int) -> None:
    """apex and DeepSpeed launch inside the chunk loop, which an empty last tensor never enters."""
    params = make_params((70_000,), (3,), *[(0,)] * empties)
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    set_grads(params)
    before = [p.detach().clone() for p in params[:2]]
    shadow.step()
    assert not any(map(torch.equal, params[:2], before))
    assert all(float(shadow.optimizer.state[p].get("step", 1)) == 1 for p in params)


@pytest.mark.parametrize("first", DTYPES, ids=name_of)
@every_kind
def test_trap_2_dtype_of_the_first_tensor_is_not_taken_for_that_of_all(
    kind: Kind, first: torch.dtype
) -> None:
    """A mixed list crashed TransformerEngine."""
    order = sorted(DTYPES, key=lambda dtype: dtype != first)
    params = [p for dtype in order for p in make_params((300,), dtype=dtype)]
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    for step in range(2):
        set_grads(params, seed=step)
        shadow.step()


@every_kind
def test_trap_3_every_parameter_of_a_group_has_its_own_step_count(kind: Kind) -> None:
    """apex and DeepSpeed count once a group, or advance only the last parameter's count."""
    params = make_params((5,), (6,), (7,))
    shadow = Shadow(kind.ours(params, lr=0.1))
    for step in range(6):
        set_grads(params, seed=step)
        for i, param in enumerate(params):
            param.grad = param.grad if step % (i + 1) == 0 else None
        shadow.step()
    counts = [float(s["step"]) for s in map(shadow.optimizer.state.get, params) if "step" in s]
    assert counts == ([] if kind.name == "Lion" else [6.0, 3.0, 2.0])


@every_kind
def test_trap_4_gradients_are_not_rewritten_unasked(kind: Kind) -> None:
    """bitsandbytes and torch's own grad_scale hook write clipped or unscaled gradients back."""
    params = make_params((40_000,), (5,))
    set_grads(params)
    grads = [p.grad.clone() for p in params]
    versions = [p.grad._version for p in params]
    optimizer = kind.ours(params, max_norm=0.1)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    optimizer.step()
    for param, grad, version in zip(params, grads, versions, strict=True):
        assert_same_bits(param.grad, grad, "gradient")
        assert param.grad._version == version


def test_trap_5_rules_call_no_pow_and_norms_are_not_taken_in_half_precision() -> None:
    """torch's Adagrad calls pow for every element; a norm in bfloat16 is off by 0.2 %."""
    for path in (ROOT / "kernels").rglob("*"):
        if path.suffix in (".h", ".cpp", ".cuh", ".cu"):
            code = re.sub(r"//.*", "", path.read_text())
            assert not re.search(r"\b(std::)?powf?\(", code), path
    (param,) = make_params((1000,), dtype=torch.bfloat16)
    param.grad = torch.full_like(param, 1.0)
    norm = fusedstep.clip_grad_norm_([param], 1e9)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(math.sqrt(1000), rel=1e-7)


@pytest.mark.parametrize("at", [0, 100, 255, 256, 32_767, 32_768, 39_999])
def test_trap_5_inf_norm_does_not_lose_a_nan(at: int) -> None:
    """The fmaxf of apex and TransformerEngine prefers the number to the NaN."""
    grad = torch.randn(40_000)
    grad[at] = math.nan
    assert math.isnan(fusedstep.get_total_norm([torch.ones(5), grad, torch.ones(5)], math.inf))


@pytest.mark.parametrize("offset", [1, 2, 3])
@every_kind
def test_trap_5_misaligned_tensors_are_read_and_written_whole(kind: Kind, offset: int) -> None:
    """A head and a tail beside 16-byte loads are where elements get lost."""
    (base,) = make_params((2_000 + offset,))
    param = base.detach()[offset:].requires_grad_()
    aligned = param.detach().clone().requires_grad_()
    for one in (param, aligned):
        set_grads([one])
        kind.ours([one], max_norm=1.0).step()
    assert_same_bits(param, aligned, "misaligned")


def test_trap_7_ids_of_gradients_come_again() -> None:
    """A cache keyed on id() takes a new tensor for an old one."""
    (param,) = make_params((64,))
    shadow = Shadow(fusedstep.AdamW([param], max_norm=1.0))
    seen: set[int] = set()
    for step in range(500):
        param.grad = None
        set_grads([param], seed=step, dtype=DTYPES[step % 4])
        shadow.step()
        if id(param.grad) in seen and step >= 10:
            return
        seen.add(id(param.grad))
    raise AssertionError("no id came again: this test has tested nothing")


def test_trap_8_finite_gradients_whose_squares_overflow_are_not_zeroed() -> None:
    """torch's norm becomes inf, its coefficient 0: the step is lost in silence."""
    ours = make_params((1000,))
    theirs = copies(ours)
    optimizer = fusedstep.AdamW(ours, lr=0.1, max_norm=1.0, weight_decay=0.0)
    for params in (ours, theirs):
        params[0].grad = torch.full_like(params[0], 1e25)
    optimizer.step()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert math.isinf(norm)
    assert torch.count_nonzero(theirs[0].grad) == 0
    assert float(optimizer.grad_norm) == pytest.approx(1e25 * math.sqrt(1000), rel=1e-6)
    torch.testing.assert_close(ours[0], theirs[0] - 0.1)  # Adam's first step is lr * sign


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
@every_kind
def test_trap_9_step_counts_go_beyond_256(kind: Kind, dtype: torch.dtype) -> None:
    """A bfloat16 count stays at 256, since 257 has no bfloat16."""
    params = make_params((3,), dtype=dtype)
    shadow = Shadow(kind.ours(params))
    set_grads(params)
    for _ in range(260):
        shadow.step()
    assert float(shadow.optimizer.state[params[0]].get("step", 260)) == 260
