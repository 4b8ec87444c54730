"""What pinv and lstsq refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fusedstep import build, lstsq, pinv
from tests.support.refusals import refuses

A = torch.eye(3)
DTYPES = "float32, float64, bfloat16 or float16"


@pytest.mark.parametrize(
    ("argument", "must", "got", "kind", "value"),
    [
        ("A", "be a tensor", "list", TypeError, [[1.0]]),
        ("A", f"be {DTYPES}", "torch.complex64", TypeError, A.to(torch.complex64)),
        ("A", f"be {DTYPES}", "torch.int64", TypeError, A.long()),
        ("A", "be dense", "torch.sparse_coo", TypeError, A.to_sparse()),
        ("A", "have two or more dimensions", r"\(3,\)", ValueError, A[0]),
        ("A", "be on a CPU or a CUDA device", "meta", ValueError, A.to("meta")),
    ],
)
def test_refused_matrices(argument, must, got, kind, value) -> None:
    with refuses("pinv", argument, must, got, kind):
        pinv(value)
    with refuses("lstsq", argument, must, got, kind):
        lstsq(value, A)
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
    ],
)
def test_refused_options(argument, must, got, kind, options) -> None:
    with refuses("pinv", argument, must, got, kind):
        pinv(A.expand(2, 3, 3), **options)


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
        ("have A's 3 rows", r"\(2, 3\)", ValueError, A[:2]),
        (r"broadcast with A's batch \(2,\)", r"\(4, 3, 3\)", ValueError, A.expand(4, 3, 3)),
    ],
)
def test_a_right_hand_side_that_does_not_fit(must, got, kind, B) -> None:
    with refuses("lstsq", "B", must, got, kind):
        lstsq(A.expand(2, 3, 3), B)


def test_a_negative_tolerance_of_lstsq() -> None:
    with refuses("lstsq", "rtol", "be 0 or more", "-1.0", ValueError):
        lstsq(A, A, rtol=-1)
