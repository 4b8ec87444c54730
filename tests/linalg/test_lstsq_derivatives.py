"""Derivatives of lstsq in both arguments: both modes, any order and rank, vmap, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fusedstep import lstsq, pinv
from fusedstep.linalg import drivers
from tests.support.tensors import name_of

F64 = torch.float64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=F64, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 4, 2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"driver": "jacobi"}, {"synchronize": False}], ids=str)
def test_full_rank(shape, options) -> None:
    inputs = random(*shape), random(*shape[:-1], 2, seed=1)

    def solve(A, B):
        return lstsq(A, B, **options)

    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(solve, inputs, **modes, check_batched_forward_grad=True)
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True)


def test_along_matrices_of_one_deficient_rank() -> None:
    inputs = random(5, 2), random(2, 4, seed=1), random(5, 3, seed=2)

    def solve(L, R, B):
        return lstsq(L @ R, B)

    assert gradcheck(solve, inputs, check_forward_ad=True)
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["of A", "of B"])
def test_of_one_argument_alone(wanted) -> None:
    A, B = random(5, 3).detach(), random(5, 2, seed=1).detach()
    inputs = tuple(t.requires_grad_(w) for t, w in zip((A, B), wanted, strict=True))
    assert gradcheck(lstsq, inputs, check_forward_ad=True)
    assert gradgradcheck(lstsq, inputs)


def test_broadcast_batches_sum_their_gradients() -> None:
    assert gradcheck(lstsq, (random(4, 2), random(3, 4, 1, seed=1)), check_forward_ad=True)
    assert gradcheck(lstsq, (random(3, 1, 4, 2), random(2, 4, 1, seed=1)))


def test_gradients_are_those_through_the_pseudo_inverse() -> None:
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-4)):
        A = random(2, 30, 5).detach().to(dtype).requires_grad_()
        B = random(2, 30, 3, seed=1).detach().to(dtype).requires_grad_()
        ours = torch.autograd.grad(lstsq(A, B).sin().sum(), (A, B))
        theirs = torch.autograd.grad((pinv(A) @ B).sin().sum(), (A, B))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_derivatives_use_the_factors_of_the_solution(monkeypatch) -> None:
    calls = []
    honest = drivers.cholesky_twice
    monkeypatch.setattr(drivers, "cholesky_twice", lambda *a: calls.append(1) or honest(*a))
    A, B = random(5, 3), random(5, 2, seed=1)
    grads = torch.autograd.grad(lstsq(A, B).sin().sum(), (A, B), create_graph=True)
    torch.autograd.grad(sum(g.square().sum() for g in grads), (A, B))
    assert len(calls) == 1


def test_function_transforms() -> None:
    A, B = random(3, 5, 2).detach(), random(3, 5, 4, seed=1).detach()
    torch.testing.assert_close(torch.vmap(lstsq)(A, B), lstsq(A, B))
    torch.testing.assert_close(torch.vmap(lstsq, in_dims=(None, 0))(A[0], B), lstsq(A[0], B))
    torch.testing.assert_close(torch.vmap(lstsq, in_dims=(0, None))(A, B[0]), lstsq(A, B[0]))
    both = torch.func.jacrev(lstsq, argnums=(0, 1)), torch.func.jacfwd(lstsq, argnums=(0, 1))
    torch.testing.assert_close(*(jacobian(A[0], B[0]) for jacobian in both))
    per_sample = torch.vmap(torch.func.grad(lambda a, b: lstsq(a, b).sin().sum()))(A, B)
    whole = torch.func.grad(lambda a: lstsq(a, B).sin().sum())(A)
    torch.testing.assert_close(per_sample, whole)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
def test_compiled_whole_with_its_gradients(dtype) -> None:
    def loss(A, B):
        return lstsq(A, B).sin().sum()

    inputs = random(2, 4, 3, dtype=dtype), random(2, 4, 2, seed=1, dtype=dtype)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))
    ours, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss))
    torch.testing.assert_close(ours, expected)
