"""Derivatives of pinv and lstsq by torch.func's transforms, nested in every order."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from fusedstep import lstsq, pinv
from fusedstep.linalg import _lstsq, _pinv
from tests.support.tensors import assert_same_bits

F64 = torch.float64
OURS, TORCHS = (pinv, lstsq), (torch.linalg.pinv, lambda A, B: torch.linalg.pinv(A) @ B)
NESTS = {
    "fwd fwd": (jacfwd, jacfwd),
    "fwd rev": (jacfwd, jacrev),
    "rev fwd": (jacrev, jacfwd),
    "rev rev": (jacrev, jacrev),
    "fwd fwd fwd": (jacfwd, jacfwd, jacfwd),
    "fwd fwd rev": (jacfwd, jacfwd, jacrev),
    "rev fwd fwd": (jacrev, jacfwd, jacfwd),
}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


A, B, C = (random(3, 2, seed=seed) for seed in range(3))
MANY = random(5, 2, 3, 1, seed=3)
FUNCTIONS = {
    "pinv": lambda pinv, lstsq: pinv,
    "lstsq": lambda pinv, lstsq: lambda A: lstsq(A, A.sin()),
    "of one rank": lambda pinv, lstsq: lambda A: pinv(A[:, :1] @ A[:1]),
    "of B": lambda pinv, lstsq: lambda B: lstsq(A, B) ** 3,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
@pytest.mark.parametrize("nest", NESTS.values(), ids=list(NESTS))
def test_derivatives_are_torchs(nest, function) -> None:
    ours, expected = function(*OURS), function(*TORCHS)
    for transform in nest:
        ours, expected = transform(ours), transform(expected)
    torch.testing.assert_close(ours(A), expected(A), rtol=1e-9, atol=1e-9)
    if len(nest) == 2:
        mapped = vmap(ours, in_dims=1)(torch.stack([A, B], 1))
        torch.testing.assert_close(mapped[1], expected(B), rtol=1e-9, atol=1e-9)


MIXED = {
    "two arguments": lambda pinv, lstsq: jacfwd(lambda a: jacfwd(lambda b: lstsq(a * b, b))(B))(A),
    "constant inside": lambda pinv, lstsq: jacfwd(lambda a: jacfwd(lambda b: b * pinv(a).mT)(B))(A),
    "over a map": lambda pinv, lstsq: jvp(
        lambda x: jvp(vmap(lambda a: lstsq(a, a)), (x,), (x.sin(),))[1],
        (torch.stack([A, B]),),
        (torch.stack([B, C]),),
    )[1],
    "a map that broadcasts": lambda pinv, lstsq: jacfwd(
        jacfwd(lambda a: vmap(lstsq, in_dims=(None, 1))(a, MANY))
    )(A),
    "hessian": lambda pinv, lstsq: hessian(lambda a: lstsq(a, a * a).sin().sum())(A),
}


@pytest.mark.parametrize("case", MIXED.values(), ids=list(MIXED))
def test_transforms_of_several_arguments_and_batches(case) -> None:
    torch.testing.assert_close(case(*OURS), case(*TORCHS), rtol=1e-9, atol=1e-9)


def tangent(function, A: torch.Tensor) -> torch.Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(A, C))).tangent


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "derivative", [lambda f: jvp(f, (A,), (C,))[1], lambda f: jacfwd(jacfwd(f))(A)]
)
def test_compiled_code_has_right_derivatives_or_none(derivative, whole) -> None:
    """torch.compile takes the tangents of a Function for 0."""

    def run():
        return derivative(pinv)

    torch._dynamo.reset()  # what broke a graph before stays uncompiled
    compiled = torch.compile(run, backend="aot_eager", fullgraph=whole)
    if whole:
        with pytest.raises(Exception, match=r"has no forward mode|Observed exception"):
            compiled()
    else:
        torch.testing.assert_close(compiled(), derivative(torch.linalg.pinv))


def test_compiled_code_under_dual_numbers_has_right_tangents() -> None:
    compiled = torch.compile(pinv, backend="aot_eager")
    torch.testing.assert_close(compiled(A), pinv(A))
    torch.testing.assert_close(tangent(compiled, A), tangent(torch.linalg.pinv, A))


@pytest.mark.parametrize("shape", [(4, 3), (2, 40, 3)], ids=str)
def test_only_what_watches_goes_through_the_opaque_ops(monkeypatch, shape) -> None:
    """Eager code, with or without a gradient, calls the same functions without torch's wrapper."""
    used = []

    def watch(module, name):
        honest = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: used.append(name) or honest(*given))

    watch(_pinv, "pinv_op")
    watch(_lstsq, "pinv_op")
    watch(_lstsq, "pinv_factors")
    A, B = random(*shape, seed=0), random(*shape[:-1], 2, seed=1)
    P, X = pinv(A), lstsq(A, B)
    A.requires_grad_()
    assert_same_bits(pinv(A), P)
    torch.testing.assert_close(lstsq(A, B), X)
    assert not used
    A = A.detach()
    tiny = max(shape) <= 32
    for compute, expected, name in (
        (lambda A: vmap(pinv)(A[None])[0], P, "pinv_op"),
        (lambda A: vmap(lstsq)(A[None], B[None])[0], X, "pinv_op" if tiny else "pinv_factors"),
    ):
        torch.testing.assert_close(compute(A), expected)
        assert used.pop() == name


@pytest.mark.parametrize("shape", [(4, 3), (40, 3)], ids=str)
def test_fakes_have_the_shapes_of_results(shape) -> None:
    with FakeTensorMode():
        A, B = torch.empty(2, *shape), torch.empty(2, shape[0], 5)
        assert pinv(A).shape == (2, 3, shape[0])
        assert lstsq(A, B).shape == (2, 3, 5)


@pytest.mark.filterwarnings("ignore:.*TracerWarning|.*trace.*")
@pytest.mark.parametrize("shape", [(10, 5), (60, 50), (200, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_trace_holds_no_choice_that_the_example_made(dtype, shape) -> None:
    m, n = shape
    low = (random(m, 2, seed=1) @ random(2, n, seed=2)).to(dtype)
    full, B = random(m, n, seed=3).to(dtype), random(m, 3, seed=4).to(dtype)
    for function, rest in ((pinv, ()), (lstsq, (B,))):
        traced = torch.jit.trace(function, (low, *rest), check_trace=False)
        torch.testing.assert_close(traced(full, *rest), function(full, *rest))
