"""pinv and lstsq of complex matrices: torch's results, its derivatives, and our information."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fusedstep import lstsq, pinv
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits, name_of

C128 = torch.complex128
each_dtype = pytest.mark.parametrize("dtype", [torch.complex64, C128], ids=name_of)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = C128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=C128, generator=generator).to(dtype)


@each_dtype
def test_results_are_torchs(dtype) -> None:
    A, B = random(4, 5, 3, dtype=dtype), random(4, 5, 2, seed=1, dtype=dtype)
    square = A @ A.mH
    for ours, theirs in (
        (pinv(A), torch.linalg.pinv(A)),
        (pinv(A.mH), torch.linalg.pinv(A.mH)),
        (pinv(A, rtol=0.8), torch.linalg.pinv(A, rtol=0.8)),
        (pinv(square, 1e-4, True), torch.linalg.pinv(square, 1e-4, True)),
        (lstsq(A, B), torch.linalg.lstsq(A, B).solution),
        (lstsq(A, B[..., 0]), torch.linalg.lstsq(A, B[..., 0]).solution),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@each_dtype
@pytest.mark.parametrize("hermitian", [False, True])
def test_information_about_each_matrix(dtype, hermitian) -> None:
    values = torch.tensor([[1.0, 0.5, 0.25], [1.0, 1e-20, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    Q, _ = torch.linalg.qr(random(3, 3))
    A = ((Q * values[:, None, :]) @ Q.mH).to(dtype)
    A[3, 0, 0] = torch.nan
    rtol = torch.tensor([0.3, 1e-3, 1e-3, 1e-3])
    P, info = pinv(A, rtol=rtol, hermitian=hermitian, return_info=True)
    assert info.rank.tolist() == [2, 1, 0, 0]
    assert info.code.tolist() == [0, 0, 0, 1]
    real = pinv(torch.diag_embed(values), rtol=rtol, return_info=True)[1]
    for ours, expected in zip(info[:2], real[:2], strict=True):
        assert_same_bits(ours[:3], expected[:3])
    torch.testing.assert_close(info.rcond[:3], real.rcond[:3], rtol=1e-5, atol=0)
    assert info.rcond[3].isnan()
    assert P[3].isnan().all()
    assert P[:3].isfinite().all()
    assert lstsq(A, A)[3].isnan().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 4), (2, 0, 3)], ids=str)
def test_empty_matrices(shape) -> None:
    A = torch.zeros(shape, dtype=C128)
    P, info = pinv(A, return_info=True)
    assert P.shape == A.mT.shape
    assert not info.rank.any()
    assert not info.rcond.any()
    assert not lstsq(A, torch.zeros(*shape[:-1], 2, dtype=C128)).any()


def test_derivatives() -> None:
    A, B = random(4, 3).requires_grad_(), random(4, 2, seed=1).requires_grad_()
    assert gradcheck(pinv, A, check_forward_ad=True)
    assert gradgradcheck(pinv, A)
    assert gradcheck(lstsq, (A, B), check_forward_ad=True)
    square = random(3, 3).requires_grad_()
    assert gradcheck(lambda A: pinv(A, hermitian=True), square)
    (grad,) = torch.autograd.grad(pinv(square, hermitian=True).abs().sum(), square)
    assert not grad.triu(1).any()
    torch.testing.assert_close(torch.vmap(pinv)(A.detach()[None])[0], pinv(A.detach()))


@pytest.mark.abi
def test_compiled_code_is_left_for_it() -> None:
    """torch.compile's linalg.pinv of complex matrices is wrong."""
    A = random(5, 3)

    def double(A):
        return 2 * pinv(A)

    torch.testing.assert_close(torch.compile(double, backend="aot_eager")(A), double(A))
    torch._dynamo.reset()  # what broke a graph before stays uncompiled
    with pytest.raises(Exception, match=r"be real in torch\.compile|Observed exception"):
        torch.compile(double, backend="aot_eager", fullgraph=True)(A)


def test_refused_options() -> None:
    A = random(5, 3)
    with refuses("pinv", "driver", "be auto where A is complex", "'eigh'", ValueError):
        pinv(A, driver="eigh")
    with refuses("lstsq", "synchronize", "be True where A is complex", "False", ValueError):
        lstsq(A, A, synchronize=False)
    dtypes = "be float32, float64, bfloat16, float16, complex64 or complex128"
    with refuses("pinv", "A", dtypes, "torch.complex32", TypeError):
        pinv(torch.empty(3, 3, dtype=torch.complex32))
    with refuses("lstsq", "B", "have A's dtype torch.complex128", "torch.float64", TypeError):
        lstsq(A, A.real)
