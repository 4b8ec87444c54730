"""What pinv and lstsq take as torch's namesakes do, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from fusedstep import build, lstsq, pinv
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits

A = torch.eye(3)
OUT = torch.zeros(2, 3, 3)
BOTH = {"rcond": 0.1, "rtol": 0.1}
DTYPES = "float32, float64, bfloat16, float16, complex64 or complex128"


@pytest.mark.parametrize(
    ("argument", "must", "got", "kind", "value"),
    [
        ("A", "be a tensor", "list", TypeError, [[1.0]]),
        ("A", f"be {DTYPES}", "torch.bool", TypeError, A > 0),
        ("A", f"be {DTYPES}", "torch.int64", TypeError, A.long()),
        ("A", "be dense", "torch.sparse_coo", TypeError, A.to_sparse()),
        ("A", "have two or more dimensions", r"\(\)", ValueError, A[0, 0]),
        ("A", "be on a CPU or a CUDA device", "meta", ValueError, A.to("meta")),
    ],
)
def test_refused_matrices(argument, must, got, kind, value) -> None:
    with refuses("pinv", argument, must, got, kind):
        pinv(value)
    with refuses("lstsq", argument, must, got, kind):
        lstsq(value, A)
    if value is not A[0]:  # a right side may be a vector
        with refuses("lstsq", "B", must, got, kind):
            lstsq(A, value)


@pytest.mark.parametrize(
    ("argument", "must", "got", "kind", "options"),
    [
        ("rtol", "be 0 or more", "-1.0", ValueError, {"rtol": -1}),
        ("atol", "be 0 or more", "nan", ValueError, {"atol": math.nan}),
        ("atol", "be a number", "str", TypeError, {"atol": "1"}),
        ("rtol", "be real", "torch.complex64", TypeError, {"rtol": torch.zeros(1) * 1j}),
        (
            "rtol",
            r"broadcast with the batch \(2,\)",
            r"\(3,\)",
            ValueError,
            {"rtol": torch.ones(3)},
        ),
        (
            *("driver", "be one of auto, cholesky, eigh, qr_svd, jacobi", "'svd'", ValueError),
            {"driver": "svd"},
        ),
        (
            *("driver", "be one of auto, eigh where hermitian=True", "'jacobi'", ValueError),
            {"driver": "jacobi", "hermitian": True},
        ),
        ("rcond", "be 0 or more", "-1.0", ValueError, {"rcond": -1}),
        ("rcond", "be None where atol or rtol is given", "0.1", ValueError, BOTH),
        ("hermitian", "be True or False", "'no'", TypeError, {"hermitian": "no"}),
        ("return_info", "be True or False", "1", TypeError, {"return_info": 1}),
        ("synchronize", "be True or False", "None", TypeError, {"synchronize": None}),
        ("out", "be a tensor", "list", TypeError, {"out": []}),
        ("out", "be on A's device cpu", "meta", ValueError, {"out": OUT.to("meta")}),
        (
            *("out", "have a dtype that torch.float32 casts to", "torch.int64", TypeError),
            {"out": OUT.long()},
        ),
        (
            *("out", r"be empty or have the shape \(2, 3, 3\)", r"\(1, 3, 3\)", ValueError),
            {"out": OUT[:1]},
        ),
        (
            *("out", "be None where a gradient is required", "a tensor", ValueError),
            {"out": OUT.clone().requires_grad_()},
        ),
    ],
)
def test_refused_options(argument, must, got, kind, options) -> None:
    with refuses("pinv", argument, must, got, kind):
        pinv(A.expand(2, 3, 3), **options)
    assert not OUT.any()


def test_one_dimension_is_no_matrix() -> None:
    with refuses("pinv", "A", "have two or more dimensions", r"\(3,\)", ValueError):
        pinv(A[0])


def test_a_device_without_kernels(monkeypatch) -> None:
    monkeypatch.setattr(build, "CUDA_REASON", "left out of this build: FUSEDSTEP_CUDA=0")
    with FakeTensorMode():
        on_gpu = torch.empty(2, 3, 3, device="cuda")
        sentence = r"^fusedstep: no CUDA kernels \(left out of this build: FUSEDSTEP_CUDA=0\); move"
        with pytest.raises(RuntimeError, match=sentence):
            pinv(on_gpu)
        with pytest.raises(RuntimeError, match=sentence):
            lstsq(on_gpu, on_gpu)


def test_hermitian_needs_square_matrices() -> None:
    must = "be square where hermitian=True"
    with refuses("pinv", "A", must, r"\(3, 2\)", ValueError):
        pinv(A[:, :2], hermitian=True)


@pytest.mark.parametrize(
    ("must", "got", "kind", "B"),
    [
        ("have A's dtype torch.float32", "torch.float64", TypeError, A.double()),
        ("have A's 3 rows", r"\(4, 3\)", ValueError, torch.ones(4, 3)),
        (r"broadcast with A's batch \(2,\)", r"\(4, 3, 3\)", ValueError, A.expand(4, 3, 3)),
        ("have A's 3 rows", r"\(4,\)", ValueError, torch.ones(4)),
        ("have A's 3 rows", r"\(2, 4\)", ValueError, torch.ones(2, 4)),
    ],
)
def test_a_right_hand_side_that_does_not_fit(must, got, kind, B) -> None:
    with refuses("lstsq", "B", must, got, kind):
        lstsq(A.expand(2, 3, 3), B)


def test_a_negative_tolerance_of_lstsq() -> None:
    with refuses("lstsq", "rtol", "be 0 or more", "-1.0", ValueError):
        lstsq(A, A, rtol=-1)


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3), (3, 3, 3)], ids=str)
def test_a_right_hand_side_of_two_meanings_is_refused(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(*shape, 2, dtype=torch.float64, generator=generator)
    B = torch.randn(shape, dtype=torch.float64, generator=generator)
    must = rf"be {[*shape, 1]} for vectors or {[1, *shape]} for a matrix"
    must, got = (text.replace("[", r"\[").replace("]", r"\]") for text in (must, f"{[*shape]}"))
    with refuses("lstsq", "B", must, got, ValueError):
        lstsq(matrices, B)
    vectors = lstsq(matrices, B[..., None])[..., 0]
    torch.testing.assert_close(vectors, torch.linalg.lstsq(matrices, B).solution)
    assert lstsq(matrices, B[None]).shape[-2:] == (2, 3)


@pytest.mark.parametrize(
    ("batch", "of_right"), [((), ()), ((4,), (4,)), ((2, 4), (2, 4)), ((2, 5), (2, 5))], ids=str
)
def test_right_hand_sides_that_are_vectors(batch, of_right) -> None:
    """As in torch; (2, 5) of 5 rows could not be matrices."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(*batch, 5, 3, dtype=torch.float64, generator=generator)
    vectors = torch.randn(*of_right, 5, dtype=torch.float64, generator=generator)
    expected = torch.linalg.lstsq(matrices, vectors).solution
    torch.testing.assert_close(lstsq(matrices, vectors), expected)
    one = vectors.flatten()[:5]  # for a whole batch, which torch does not take
    assert_same_bits(lstsq(matrices, one), lstsq(matrices, one[:, None])[..., 0])
    assert gradcheck(lstsq, (matrices.requires_grad_(), vectors.requires_grad_()))


def test_one_vector_of_one_element_has_no_two_meanings() -> None:
    A, b = torch.tensor([[[2.0, 0.0, 0.0]]]), torch.tensor([[6.0]])
    assert torch.equal(lstsq(A, b), torch.tensor([[3.0, 0.0, 0.0]]))


def test_calls_of_torchs_namesakes() -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    square = A @ A.T
    for ours, theirs in (
        (pinv(A, 0.7), torch.linalg.pinv(A, 0.7)),
        (pinv(A, 0.7), torch.pinverse(A, 0.7)),
        (pinv(A, torch.tensor(0.7)), torch.linalg.pinv(A, torch.tensor(0.7))),
        (pinv(square, 1e-4, True), torch.linalg.pinv(square, 1e-4, True)),
        (lstsq(A, B, 0.7), torch.linalg.lstsq(A, B, 0.7, driver="gelsd").solution),
        (lstsq(A, B, rcond=0.7, driver=None), lstsq(A, B, rtol=0.7)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_results_go_into_out() -> None:
    A = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = pinv(A)
    for out in (
        torch.empty(0),
        torch.empty(3, 5),
        torch.empty(5, 3).mT,
        torch.empty(3, 5).double(),
    ):
        assert pinv(A, out=out) is out
        assert_same_bits(out, expected.to(out.dtype))
    square = A[:3].clone()
    expected = pinv(square)
    P, info = pinv(square, out=square, return_info=True)
    assert P is square
    assert_same_bits(P, expected)
    assert int(info.rank) == 3
    with torch.no_grad():
        pinv(A.requires_grad_(), out=torch.empty(0))
