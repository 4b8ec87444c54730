"""Muon: the bits of its reference around the products, torch's numbers, the orthogonalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as zeropower

import fusedstep
from fusedstep.optim.muon import orthogonalize_
from tests.reference.clip import decide
from tests.reference.muon import MuonGroup, muon_descent, muon_direction
from tests.reference.norm import total_norm
from tests.reference.storage import round_to
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    copies,
    from_memory_order,
    in_memory_order,
    laid_out,
    make_params,
    name_of,
    set_grads,
)

# Several of one shape, tall, wide, square, odd, vectors and a single number; not in order.
SHAPES = [(8, 16), (64, 64), (16, 8), (8, 16), (33, 17), (1, 5), (5, 1), (64, 64), (1, 1), (150, 3)]
RATIOS = {
    None: lambda m, n: max(1, m / n) ** 0.5,
    "original": lambda m, n: max(1, m / n) ** 0.5,
    "match_rms_adamw": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "spectral_unclamped": lambda m, n: (m / n) ** 0.5,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decay": {"lr": 0.05, "weight_decay": 0.5},
    "no momentum": {"momentum": 0.0, "lr": 0.02},
    "little momentum": {"momentum": 0.3, "lr": 0.02},
    "no nesterov": {"nesterov": False, "lr": 0.02},
    "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw", "lr": 0.02},
    "spectral_unclamped": {"adjust_lr_fn": "spectral_unclamped", "lr": 0.02},
    "original": {"adjust_lr_fn": "original", "lr": 0.02},
    "iteration": {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "lr": 0.02},
    "no iteration": {"ns_steps": 0, "lr": 0.02},
    "tensor lr": {"lr": torch.tensor(0.02, dtype=torch.float64)},
}
CLIPS: dict[str, dict[str, Any]] = {
    "clip": {"max_norm": 1.0, "lr": 0.02},
    "clip, 1-norm": {"max_norm": 3.0, "norm_type": 1.0, "lr": 0.02},
}
OURS = OPTIONS | CLIPS | {"maximize": {"maximize": True, "lr": 0.02}}


def shadow_step(optimizer: fusedstep.Muon, states: dict[Tensor, Tensor]) -> None:
    """One step of the optimizer and of the reference, in which only the products are ours."""
    (options,) = optimizer.param_groups
    group = MuonGroup(**{f.name: float(options[f.name]) for f in fields(MuonGroup)})
    params = [param for param in options["params"] if param.grad is not None]
    grads = [in_memory_order(param.grad, param) for param in params]
    norm = total_norm(grads, optimizer.norm_type, 1.0) if optimizer.max_norm is not None else None
    multiplier = decide(norm, optimizer.max_norm, None, None, False).multiplier
    directions, buffers, values = [], [], []
    for param, grad in zip(params, grads, strict=True):
        value = in_memory_order(param)
        buffer = in_memory_order(states[param], param) if param in states else 0 * value
        grad = grad.astype(value.dtype)
        direction, buffer = muon_direction(grad, buffer, group, multiplier)
        if param.dtype != torch.float64:
            direction = round_to(direction, "bfloat16")
        directions.append(from_memory_order(direction, param).to(param.device))
        buffers.append(buffer)
        values.append(value)
    iteration = (options[key] for key in ("ns_coefficients", "ns_steps", "eps"))
    orthogonalize_(directions, *iteration)
    optimizer.step()
    for i, param in enumerate(params):
        ratio = RATIOS[options["adjust_lr_fn"]](*param.shape)
        value = muon_descent(values[i], in_memory_order(directions[i], param), ratio, group)
        expected = from_memory_order(round_to(value, name_of(param.dtype)), param)
        assert_same_bits(param.detach().cpu().to(expected.dtype), expected, f"params[{i}]")
        assert optimizer.state[param].keys() == {"momentum_buffer"}
        states[param] = optimizer.state[param]["momentum_buffer"].clone()
        assert_same_bits(states[param].cpu(), from_memory_order(buffers[i], param), f"buffer {i}")
    if norm is not None:
        assert float(optimizer.grad_norm) == float(torch.tensor(norm, dtype=torch.float32))


@pytest.mark.parametrize("options", OURS.values(), ids=OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_equals_the_reference_bit_for_bit(
    dtype: torch.dtype, options: dict[str, Any], device: torch.device
) -> None:
    params = make_params(*SHAPES, dtype=dtype, device=device)
    optimizer, states = fusedstep.Muon(params, **options), {}
    for step in range(3):
        set_grads(params, seed=step)
        shadow_step(optimizer, states)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gradients_of_any_dtype_and_state_in_float32(dtype: torch.dtype) -> None:
    params = make_params(*SHAPES, dtype=dtype)
    optimizer, states = fusedstep.Muon(params, lr=0.05, max_norm=1.0), {}
    for step in range(4):
        for i, param in enumerate(params):
            set_grads([param], seed=10 * step + i, dtype=DTYPES[(i + step) % 4])
        shadow_step(optimizer, states)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {state["momentum_buffer"].dtype for state in optimizer.state.values()} == {kept}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layouts(layout: str) -> None:
    params = [laid_out(p.detach(), layout).requires_grad_() for p in make_params(*SHAPES)]
    optimizer, states = fusedstep.Muon(params, lr=0.05), {}
    for step in range(4):
        set_grads(params, seed=step)
        for i, param in enumerate(params):
            param.grad = laid_out(param.grad, LAYOUTS[(i + step) % 4])
        shadow_step(optimizer, states)


def follow(
    ours: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    theirs: Sequence[Tensor],
    reference: torch.optim.Optimizer,
    steps: range = range(5),
    clip: dict[str, float] | None = None,
) -> None:
    """The same gradients for both; at step 2 the first parameter has none."""
    for step in steps:
        set_grads(ours, seed=step)
        set_grads(theirs, seed=step)
        if step == 2:
            ours[0].grad = theirs[0].grad = None
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, **clip)
        optimizer.step()
        reference.step()


def torchs(params: Sequence[Tensor], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.Muon, where this torch has what the options ask for."""
    try:
        return torch.optim.Muon(params, **options)
    except ValueError as error:
        pytest.skip(f"torch {torch.__version__}: {error}")


@pytest.mark.parametrize("name", OPTIONS)
def test_is_torch_in_float64(name: str) -> None:
    ours = make_params(*SHAPES, dtype=torch.float64)
    theirs = copies(ours)
    options = OPTIONS[name]
    optimizer, reference = fusedstep.Muon(ours, **options), torchs(theirs, **options)
    follow(ours, optimizer, theirs, reference)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
        buffer, expected = (
            one["momentum_buffer"] for one in (optimizer.state[p], reference.state[q])
        )
        torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPTIONS | CLIPS)
def test_is_close_to_torch_in_float32(name: str) -> None:
    """A last digit of float32 can decide how a direction is rounded to bfloat16."""
    options = (OPTIONS | CLIPS)[name]
    clip = {key: value for key, value in options.items() if "norm" in key}
    ours = make_params(*SHAPES)
    theirs, before = copies(ours), copies(ours)
    optimizer = fusedstep.Muon(ours, **options)
    reference = torchs(theirs, **{k: v for k, v in options.items() if k not in clip})
    follow(ours, optimizer, theirs, reference, clip=clip)
    for p, q, start in zip(ours, theirs, before, strict=True):
        assert (p - q).norm() <= 0.03 * (q - start).norm()
        buffer, expected = (
            one["momentum_buffer"] for one in (optimizer.state[p], reference.state[q])
        )
        torch.testing.assert_close(buffer, expected)


def test_maximize_goes_where_the_opposite_gradient_does() -> None:
    up = make_params(*SHAPES)
    down = copies(up)
    optimizers = fusedstep.Muon(up, maximize=True), fusedstep.Muon(down)
    for step in range(3):
        set_grads(up, seed=step)
        set_grads(down, seed=step, scale=-1.0)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(up, down, strict=True):
        assert_same_bits(p, q)


def test_gradients_are_left_as_they_were() -> None:
    params = make_params(*SHAPES)
    set_grads(params)
    before = [param.grad.clone() for param in params]
    fusedstep.Muon(params, max_norm=0.1).step()
    for param, grad in zip(params, before, strict=True):
        assert_same_bits(param.grad, grad)


# --- the orthogonalization ------------------------------------------------------------------------

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
BATCH = [(8, 16), (64, 64), (16, 8), (8, 16), (33, 17), (1, 5), (5, 1), (64, 64), (1, 1), (8, 16)]


def matrices(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [param.detach() for param in make_params(*BATCH, dtype=dtype)]


def orthogonal(of: list[Tensor], steps: int = 5, **options: int) -> list[Tensor]:
    """New matrices in place of `of`."""
    result = [torch.empty_like(matrix).copy_(matrix) for matrix in of]
    orthogonalize_(result, COEFFICIENTS, steps, EPS, **options)
    return result


def exact(matrix: Tensor, steps: int) -> Tensor:
    """The iteration of Jordan's post in float64, the same for tall and wide matrices."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """As far apart as `tolerance` says, in the Frobenius norm and relatively."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_orthogonalize_is_close_to_torchs(dtype: torch.dtype, steps: int) -> None:
    of = matrices(dtype)
    for matrix, actual in zip(of, orthogonal(of, steps), strict=True):
        assert actual.dtype == dtype
        assert_near(actual, zeropower(matrix.clone(), COEFFICIENTS, steps, EPS), 0.02)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_orthogonalize_is_close_to_exact_arithmetic(steps: int, device: torch.device) -> None:
    of = [matrix.to(device) for matrix in matrices()]
    for matrix, actual in zip(of, orthogonal(of, steps), strict=True):
        assert_near(actual, exact(matrix, steps), 0.05)


def test_orthogonalize_makes_well_conditioned_matrices_nearly_orthogonal() -> None:
    values = torch.linalg.svdvals(torch.stack(orthogonal([torch.eye(6) + 0.1 * torch.ones(6, 6)])))
    assert (values > 0.6).all()
    assert (values < 1.3).all()


def test_a_batch_is_its_matrices_one_by_one() -> None:
    of = matrices()
    alone = [orthogonal([matrix])[0] for matrix in of]
    for max_elements in (2**26, 300, 1):  # batches of any size, of a few matrices, of one each
        for i, actual in enumerate(orthogonal(of, max_elements=max_elements)):
            assert_near(actual, alone[i], 0.02)


def test_a_batch_is_of_one_shape_and_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    stack = torch.stack

    def counted(tensors: list[Tensor]) -> Tensor:
        result = stack(tensors)
        seen.append(tuple(result.shape))
        return result

    monkeypatch.setattr(torch, "stack", counted)
    orthogonal(matrices(), max_elements=256)
    assert seen[:3] == [(2, 8, 16), (1, 8, 16), (1, 64, 64)]
    assert sum(count for count, _, _ in seen) == len(BATCH)
    seen.clear()
    orthogonal(matrices())
    assert len(seen) == len(set(BATCH))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orthogonalize_takes_any_layout(layout: str) -> None:
    of = matrices()
    expected = orthogonal(of)
    actual = [laid_out(matrix.clone(), layout) for matrix in of]
    orthogonalize_(actual, COEFFICIENTS, 5, EPS)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


def test_nothing_and_zeros_stay_what_they_are() -> None:
    of = [torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(3, 3), torch.zeros(0, 0)]
    for actual, matrix in zip(orthogonal(of), of, strict=True):
        assert_same_bits(actual, matrix)
    orthogonalize_([], COEFFICIENTS, 5, EPS)


def test_the_rest_of_a_batch_is_unaffected_by_a_matrix_that_is_not_finite() -> None:
    of = matrices()
    expected = orthogonal(of)
    of[0][0, 0] = torch.nan
    actual = orthogonal(of)
    assert actual[0].isnan().all()
    for a, b in zip(actual[1:], expected[1:], strict=True):
        assert_near(a, b, 0.02)


def test_eps_is_the_smallest_norm_divided_by() -> None:
    (tiny,) = matrix = [torch.full((2, 2), 2.0**-30)]
    orthogonalize_(matrix, COEFFICIENTS, 0, 2.0**-20)
    assert_same_bits(tiny, torch.full((2, 2), 2.0**-10))
