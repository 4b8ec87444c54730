"""The global norm and clip_grad_norm_: the bits of their reference, torch's numbers, refusals."""

from __future__ import annotations

import math
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fusedstep
from tests.reference.clip import clip_coefficient
from tests.reference.norm import total_norm
from tests.reference.storage import round_to
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import (
    DTYPES,
    assert_same_bits,
    bounded,
    copies,
    in_memory_order,
    make_params,
    name_of,
    set_grads,
    threads,
)

NORM_TYPES = (2.0, 1.0, math.inf)
SIZES = (0, 1, 2, 255, 256, 257, 2047, 2048, 2049, 32767, 32768, 32769, 100_000)
SHAPES = [(70_000,), (), (3, 5), (0,), (257,)]


# --- the norm -------------------------------------------------------------------------------------


def randn(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype) for n in sizes]


def assert_norm_of_reference(tensors: list[Tensor], norm_type: float, scale: float = 1.0) -> None:
    expected = total_norm([in_memory_order(t) for t in tensors], norm_type, scale)
    grad_scale = None if scale == 1 else torch.tensor(scale, device=tensors[0].device)
    actual = torch.ops.fusedstep.total_norm(tensors, norm_type, grad_scale)
    assert_same_bits(actual.cpu(), torch.tensor(expected, dtype=torch.float64), "total_norm")
    if scale == 1:
        with np.errstate(over="ignore"):
            published = torch.tensor(np.float32(expected))
        actual = fusedstep.get_total_norm(tensors, norm_type)
        assert_same_bits(actual.cpu(), published, "get_total_norm")


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_norm_bits_of_one_tensor(size: int, norm_type: float, device: torch.device) -> None:
    assert_norm_of_reference([randn(size)[0].to(device)], norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_norm_bits_of_every_dtype(
    dtype: torch.dtype, norm_type: float, device: torch.device
) -> None:
    tensors = [t.to(device) for t in randn(5, 0, 70_000, 300, dtype=dtype)]
    assert_norm_of_reference(tensors, norm_type)
    assert_norm_of_reference(tensors, norm_type, 1024.0)
    assert_norm_of_reference(tensors, norm_type, 3.0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_norm_bits_of_mixed_dtypes_in_the_order_listed(
    norm_type: float, device: torch.device
) -> None:
    tensors = [t.to(device, DTYPES[i % 4]) for i, t in enumerate(randn(*SIZES, 40_000, 3, 9))]
    assert_norm_of_reference(tensors, norm_type)
    assert_norm_of_reference(tensors[::-1], norm_type)


def test_norm_bits_of_more_chunks_than_lanes(device: torch.device) -> None:
    assert_norm_of_reference([t.to(device) for t in randn(*range(300), 70_000, 2)], 2.0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_norm_has_the_same_bits_for_any_number_of_threads(count: int, norm_type: float) -> None:
    tensors = randn(100_000, 1, 33_000, 32_768, 7)
    with threads(count):
        assert_norm_of_reference(tensors, norm_type)


@bounded
@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
    norm_type=st.sampled_from(NORM_TYPES),
    exponent=st.integers(-40, 38),
    seed=st.integers(0, 1000),
)
def test_norm_bits_of_any_list(
    sizes: list[int], dtypes: list[torch.dtype], norm_type: float, exponent: int, seed: int
) -> None:
    tensors = [
        (t * 10.0**exponent).to(d) for t, d in zip(randn(*sizes, seed=seed), dtypes, strict=False)
    ]
    assert_norm_of_reference(tensors, norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_norm_is_close_to_that_in_float64(dtype: torch.dtype, norm_type: float) -> None:
    tensors = randn(200_000, 1000, 1, dtype=dtype)
    truth = torch.linalg.vector_norm(torch.cat(tensors).double(), norm_type)
    norm = torch.ops.fusedstep.total_norm(tensors, norm_type)
    rtol = 1e-13 if dtype == torch.float64 else 2e-7
    torch.testing.assert_close(norm, truth, rtol=rtol, atol=0)
    assert fusedstep.get_total_norm(tensors, norm_type).dtype == torch.float32


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_norm_is_close_to_torch(norm_type: float) -> None:
    tensors = randn(20_000, 1000, 1)
    ours = fusedstep.get_total_norm(tensors, norm_type)
    theirs = torch.nn.utils.get_total_norm(tensors, norm_type)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("size", [1, 1000, 40_000])
def test_norm_of_finite_gradients_whose_sum_overflows_is_finite(
    size: int, norm_type: float, device: torch.device
) -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.full((size,), largest, device=device)
    x[0] = 1.0
    x[-1] = -largest / 3
    truth = torch.linalg.vector_norm(x.double(), norm_type)
    norm = torch.ops.fusedstep.total_norm([x], norm_type)
    torch.testing.assert_close(norm, truth, rtol=1e-6, atol=0)
    assert_norm_of_reference([x], norm_type)


def test_norm_at_the_edge_of_float32_is_published_where_float32_holds_it() -> None:
    x = torch.tensor([3e38, 1e38])
    assert float(fusedstep.get_total_norm([x])) == pytest.approx(math.hypot(3e38, 1e38), rel=1e-6)
    x = torch.tensor([3e38, 3e38])
    assert float(fusedstep.get_total_norm([x])) == math.inf


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("at", [0, 255, 256, 32_767, 32_768, 39_999])
def test_norm_shows_nan_and_infinity_wherever_they_are(
    at: int, dtype: torch.dtype, norm_type: float, device: torch.device
) -> None:
    for value in (math.nan, math.inf, -math.inf):
        tensors = [t.to(device) for t in randn(1000, 40_000, 3, dtype=dtype)]
        tensors[1][at] = value
        norm = float(fusedstep.get_total_norm(tensors, norm_type))
        assert math.isnan(norm) if math.isnan(value) else norm == math.inf
        assert_norm_of_reference(tensors, norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_norm_of_nothing_and_zeros_is_zero(norm_type: float) -> None:
    for tensors in ([], [torch.zeros(0)], [torch.zeros(3, 0), torch.zeros(5)], torch.zeros(4)):
        norm = fusedstep.get_total_norm(tensors, norm_type)
        assert_same_bits(norm, torch.tensor(0.0), "the norm of nothing")


@bounded
@given(present=st.lists(st.booleans(), min_size=8, max_size=8).filter(any), seed=st.integers(0, 99))
def test_norm_leaves_missing_gradients_out(present: list[bool], seed: int) -> None:
    params = make_params((3, 3), (40_000,), (), (0,), (700,), (5,), (256, 3), (33_000,))
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    set_grads(params, seed=seed)
    optimizer.step()
    for param, has_grad in zip(params, present, strict=True):
        param.grad = param.grad if has_grad else None
    optimizer.step()
    expected = fusedstep.get_total_norm([p.grad for p in params if p.grad is not None])
    assert_same_bits(optimizer.grad_norm, expected, "grad_norm")
    assert_same_bits(fusedstep.clip_grad_norm_(params, 1.0), expected, "clip_grad_norm_")


# Those that the kernels do not compute.
OTHER_ORDERS = (0.5, 1.5, 3, 4, 0, -1, -2.5, "-inf")
LARGE = (1 << 20) + 3  # more than torch is given at a time


@pytest.mark.parametrize("norm_type", OTHER_ORDERS)
@pytest.mark.parametrize("zeros", [False, True])
def test_norm_of_any_order_is_torchs(
    norm_type: float | str, zeros: bool, device: torch.device
) -> None:
    tensors = [t.to(device, dtype) for t, dtype in zip(randn(5, LARGE, 6, 30), DTYPES, strict=True)]
    tensors[3] = tensors[3].reshape(5, 6)[:, ::2].t()
    if zeros:
        tensors[0].zero_()
        tensors[1][7] = 0
    truth = torch.nn.utils.get_total_norm([t.double() for t in tensors], norm_type)
    norm = fusedstep.get_total_norm(tensors, norm_type)
    assert norm.dtype == torch.float32
    assert norm.device == tensors[0].device
    torch.testing.assert_close(norm.double(), truth, rtol=2e-7, atol=0)


@pytest.mark.parametrize("norm_type", OTHER_ORDERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norm_of_any_order_of_nonfinite_values_is_torchs(
    norm_type: float | str, value: float
) -> None:
    tensors = [torch.tensor([1.0, value, -2.0]), torch.tensor([3.0])]
    truth = torch.nn.utils.get_total_norm(tensors, norm_type)
    norm = fusedstep.get_total_norm(tensors, norm_type)
    torch.testing.assert_close(norm, truth, equal_nan=True)


def test_norm_of_any_order_is_finite_where_powers_exceed_float32() -> None:
    norm = fusedstep.get_total_norm([torch.full((4,), 1e20)], 4)
    assert float(norm) == pytest.approx(4**0.25 * 1e20, rel=1e-6)


def test_norm_of_order_below_zero_needs_elements() -> None:
    """torch raises, too: the smallest of no magnitudes does not exist."""
    tensors = [torch.ones(2), torch.ones(3, 0)]
    must, got = "have elements where norm_type is -1.0", r"shape \(3, 0\)"
    with refuses("get_total_norm", "tensors[1]", must, got, ValueError):
        fusedstep.get_total_norm(tensors, -1)
    assert float(fusedstep.get_total_norm(tensors, 0)) == 1
    assert float(fusedstep.get_total_norm(tensors, 3)) == pytest.approx(2 ** (1 / 3))


def test_norm_raises_where_it_is_not_finite() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(RuntimeError, match="must be finite where error_if_nonfinite=True, got"):
            fusedstep.get_total_norm([torch.tensor([1.0, value])], error_if_nonfinite=True)
    fusedstep.get_total_norm([torch.tensor([3e38, 1.0])], error_if_nonfinite=True)


# --- the clip -------------------------------------------------------------------------------------


def assert_clips_like_the_reference(
    params: list[Tensor], max_norm: float, norm_type: float
) -> None:
    grads = [in_memory_order(p.grad) for p in params if p.grad is not None]
    norm = total_norm(grads, norm_type)
    coefficient = clip_coefficient(norm, max_norm)
    with np.errstate(all="ignore"):
        expected = [grad * grad.dtype.type(coefficient) for grad in grads]
        published = torch.tensor(np.float32(norm))
    actual = fusedstep.clip_grad_norm_(params, max_norm, norm_type)
    assert_same_bits(actual.cpu(), published, "norm")
    for i, param in enumerate(p for p in params if p.grad is not None):
        rounded = round_to(expected[i], name_of(param.grad.dtype))
        actual = torch.from_numpy(in_memory_order(param.grad))
        assert_same_bits(actual, torch.from_numpy(rounded), f"grads[{i}]")


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e9, math.inf])
def test_clip_has_the_bits_of_the_reference(
    max_norm: float, norm_type: float, device: torch.device
) -> None:
    params = make_params(*SHAPES, device=device)
    set_grads(params)
    params[2].grad = None
    assert_clips_like_the_reference(params, max_norm, norm_type)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_clip_bits_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    params = make_params(*SHAPES, dtype=dtype, device=device)
    set_grads(params)
    assert_clips_like_the_reference(params, 1.0, 2.0)
    for i, param in enumerate(params):
        set_grads([param], dtype=DTYPES[i % 4])
    assert_clips_like_the_reference(params, 1.0, 2.0)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_clip_has_the_same_bits_for_any_number_of_threads(count: int) -> None:
    params = make_params(*SHAPES, (40_000,))
    set_grads(params)
    with threads(count):
        assert_clips_like_the_reference(params, 1.0, 2.0)


@bounded
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
    max_norm=st.floats(0, 1e30),
    norm_type=st.sampled_from(NORM_TYPES),
    scale=st.sampled_from([1e-30, 1e-5, 1.0, 1e5, 1e30]),
)
def test_clip_bits_of_any_list(
    sizes: list[int], dtypes: list[torch.dtype], max_norm: float, norm_type: float, scale: float
) -> None:
    params = make_params(*[(size,) for size in sizes])
    for i, param in enumerate(params):
        set_grads([param], seed=i, dtype=dtypes[i], scale=scale)
    assert_clips_like_the_reference(params, max_norm, norm_type)


@pytest.mark.parametrize("norm_type", [*NORM_TYPES, *OTHER_ORDERS])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e9])
def test_clip_is_close_to_torch(max_norm: float, norm_type: float | str) -> None:
    ours = make_params((5000,), (), (3, 5))
    set_grads(ours)
    theirs = copies(ours)
    norms = [
        clip(params, max_norm, norm_type)
        for clip, params in (
            (fusedstep.clip_grad_norm_, ours),
            (torch.nn.utils.clip_grad_norm_, theirs),
        )
    ]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clip_makes_of_nonfinite_gradients_what_torch_does(value: float) -> None:
    ours = make_params((50,), (3,))
    set_grads(ours)
    ours[0].grad[7] = value
    theirs = copies(ours)
    fusedstep.clip_grad_norm_(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p.grad.isnan(), q.grad.isnan())
        assert torch.equal(p.grad.nan_to_num(), q.grad.nan_to_num())


def test_clip_takes_what_torch_takes() -> None:
    (param,) = make_params((5,))
    for given_as in (param, [param], (param,), iter([param])):
        set_grads([param])
        norm = fusedstep.clip_grad_norm_(given_as, torch.tensor(0.5), "inf")
        assert float(norm) == pytest.approx(
            float(param.grad.abs().max()) * float(norm) / 0.5, rel=1e-5
        )
    norm = fusedstep.clip_grad_norm_([], 1.0)
    assert_same_bits(norm, torch.tensor(0.0), "the norm of nothing")
    param.grad = None
    assert_same_bits(fusedstep.clip_grad_norm_(param, 1.0), torch.tensor(0.0), "no gradient")


def test_clip_has_the_norm_of_the_step() -> None:
    params = make_params(*SHAPES)
    set_grads(params)
    optimizer = fusedstep.AdamW(params, max_norm=0.5)
    optimizer.step()
    assert_same_bits(optimizer.grad_norm, fusedstep.clip_grad_norm_(params, 0.5), "norm")


def test_clip_then_step_is_close_to_the_step_that_clips() -> None:
    apart, together = (make_params(*SHAPES) for _ in range(2))
    optimizers = fusedstep.AdamW(apart), fusedstep.AdamW(together, max_norm=0.1)
    for step in range(3):
        set_grads(apart, seed=step)
        set_grads(together, seed=step)
        fusedstep.clip_grad_norm_(apart, 0.1)
        for optimizer in optimizers:
            optimizer.step()
    # Not the same bits: a gradient that is written is rounded once more.
    torch.testing.assert_close(apart, together)


# --- what is refused ------------------------------------------------------------------------------

CLIP = [
    ({"max_norm": -1.0}, "max_norm", "be 0 or more", "-1.0", ValueError),
    ({"max_norm": nan}, "max_norm", "be 0 or more", "nan", ValueError),
    ({"max_norm": None}, "max_norm", "be a number", "NoneType", TypeError),
    ({"max_norm": torch.ones(2)}, "max_norm", "have one element", r"\(2,\)", ValueError),
    ({"max_norm": 1.0, "norm_type": nan}, "norm_type", "be a number", "nan", ValueError),
    ({"max_norm": 1.0, "norm_type": None}, "norm_type", "be a number", "None", TypeError),
    ({"max_norm": 1.0, "norm_type": "two"}, "norm_type", "be a number", "'two'", TypeError),
]


@pytest.mark.parametrize(("options", "argument", "must", "got", "kind"), CLIP)
def test_clip_refuses(
    options: dict[str, Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    params = make_params((3,), (4,))
    set_grads(params)
    snapshot = Snapshot(params)
    with refuses("clip_grad_norm_", argument, must, got, kind):
        fusedstep.clip_grad_norm_(params, **options)
    snapshot.check()


def test_clip_of_sparse_and_overlapping_gradients() -> None:
    params = make_params((4,), (4,), (4,))
    set_grads(params)
    params[1].grad = torch.zeros(4).to_sparse()
    snapshot = Snapshot(params)
    with refuses("clip_grad_norm_", "parameters[1].grad", "be dense", ".*coo", TypeError):
        fusedstep.clip_grad_norm_(params, 1.0)
    snapshot.check()
    params[1].grad = params[0].grad
    snapshot = Snapshot(params)
    must = r"not overlap parameters\[0\].grad"
    with refuses("clip_grad_norm_", "parameters[1].grad", must, "shared memory", ValueError):
        fusedstep.clip_grad_norm_(params, 1.0)
    snapshot.check()
    params[1].grad = torch.ones(1).expand(4)
    with refuses("clip_grad_norm_", "parameters[1].grad", "not overlap itself", ".*", ValueError):
        fusedstep.clip_grad_norm_(params, 1.0)
    params[1].grad = torch._efficientzerotensor(4)
    snapshot = Snapshot(params[::2])
    must = "hold its values in memory"
    with refuses("clip_grad_norm_", "parameters[1].grad", must, "a lazy zero", ValueError):
        fusedstep.clip_grad_norm_(params, 1.0)
    snapshot.check()


def test_clip_that_raises_for_a_nonfinite_norm_scales_nothing() -> None:
    params = make_params((4,), (4,))
    set_grads(params)
    params[1].grad[2] = nan
    snapshot = Snapshot(params)
    with pytest.raises(RuntimeError, match="must be finite where error_if_nonfinite=True, got nan"):
        fusedstep.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    snapshot.check()


@pytest.mark.parametrize(
    ("tensors", "argument", "must", "got", "kind"),
    [
        ([torch.ones(2), 3.0], "tensors[1]", "be a tensor", "float", TypeError),
        ([torch.ones(2, dtype=torch.int64)], "tensors[0]", "be float32, .*", ".*int64", TypeError),
        ([torch.ones(2, dtype=torch.cfloat)], "tensors[0]", "be float32, .*", ".*64", TypeError),
        ([torch.eye(2).to_sparse()], "tensors[0]", "be dense", "torch.sparse_coo", TypeError),
        ([torch.ones(2, device="meta")], "tensors[0]", "be on a CPU or a .*", "meta", ValueError),
    ],
)
def test_norm_refuses(
    tensors: list[Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    with refuses("get_total_norm", argument, must, got, kind):
        fusedstep.get_total_norm(tensors)


@pytest.mark.parametrize("groups", [None, 3, False])
def test_groups_that_are_no_sequence_are_refused_whatever_else_is_given(groups: Any) -> None:
    """Where the check depended on the gradients, one rank would be refused and another wait."""
    must, got = "be a sequence of process groups", type(groups).__name__
    params = make_params((3,), (4,))
    with_grads, sparse = make_params((3,)), torch.eye(2).to_sparse()
    set_grads(with_grads)
    for parameters in (params, with_grads, [], [3], [sparse]):
        with refuses("clip_grad_norm_", "groups", must, got, TypeError):
            fusedstep.clip_grad_norm_(parameters, -1.0, groups=groups)
    for tensors in (params, [], [3], [sparse]):
        with refuses("get_total_norm", "groups", must, got, TypeError):
            fusedstep.get_total_norm(tensors, "two", groups=groups)


@pytest.mark.parametrize("groups", [(), [], iter(())])
def test_an_empty_sequence_of_groups_is_none(groups: Any) -> None:
    (param,) = make_params((3,))
    param.grad = torch.full_like(param, 2.0)
    assert fusedstep.get_total_norm([param.grad], 1.0, groups=groups) == 6
    assert fusedstep.clip_grad_norm_([param], 9.0, 1.0, groups=groups) == 6


def test_clip_refuses_what_is_no_tensor() -> None:
    with refuses("clip_grad_norm_", "parameters[0]", "be a tensor", "str", TypeError):
        fusedstep.clip_grad_norm_(["weight"], 1.0)


def test_clip_refuses_gradients_given_as_parameters() -> None:
    """Their own gradients are None: it would return 0 and clip nothing."""
    params = make_params((3,), (2, 2))
    set_grads(params)
    grads = [param.grad for param in params]
    must = r"be parameters with their gradients \(get_total_norm takes gradients themselves\)"
    got = "tensors that are no parameters and have no gradients"
    unchanged = Snapshot(params)
    for mistaken in (grads, iter(grads), grads[0], [torch.zeros(0)]):
        with refuses("clip_grad_norm_", "parameters", must, got, ValueError):
            fusedstep.clip_grad_norm_(mistaken, 0.1)
    unchanged.check()
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    for taken in ([frozen], [*grads, frozen], [*grads, torch.ones(2, requires_grad=True)], []):
        assert fusedstep.clip_grad_norm_(taken, 0.1) == 0
    assert fusedstep.clip_grad_norm_([*grads, params[0]], 0.1) > 0
