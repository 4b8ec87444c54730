"""One regression test for each trap that other fused optimizers fell into; its name says which.

Tested elsewhere: step counts of a whole group (3: test_optimizer.py), NaN lost by the inf-norm and
elements lost next to 16-byte loads (5: test_clip.py, test_memory.py), sizes of 2^31 elements
(tests/simt/test_large_sizes.cpp), tables sent from memory that is gone and hidden waits for the GPU
(test_cuda*.py), scalar loads (tests/cuda/report.py).
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
    params = make_params((33_000,), (3,), *[(0,)] * empties)
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    set_grads(params)
    before = [p.detach().clone() for p in params[:2]]
    shadow.step()
    assert not any(map(torch.equal, params[:2], before))
    assert all(float(shadow.optimizer.state[p].get("step", 1)) == 1 for p in params)


@pytest.mark.parametrize("first", DTYPES, ids=name_of)
def test_trap_2_dtype_of_the_first_tensor_is_not_taken_for_that_of_all(first: torch.dtype) -> None:
    """A mixed list crashed TransformerEngine."""
    order = sorted(DTYPES, key=lambda dtype: dtype != first)
    params = [p for dtype in order for p in make_params((300,), dtype=dtype)]
    shadow = Shadow(fusedstep.AdamW(params, max_norm=1.0))
    for step in range(2):
        set_grads(params, seed=step)
        shadow.step()


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
    optimizer = kind.ours(params)
    set_grads(params)
    for _ in range(254):
        optimizer.step()
    shadow = Shadow(optimizer)
    for _ in range(6):
        shadow.step()
    assert float(optimizer.state[params[0]].get("step", 260)) == 260
