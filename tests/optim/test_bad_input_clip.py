"""Every refusal of the clip and the norm: type, wording, and that nothing was changed before it."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import make_params, set_grads

CLIP = [
    ({"max_norm": -1.0}, "max_norm", "be 0 or more", "-1.0", ValueError),
    ({"max_norm": nan}, "max_norm", "be 0 or more", "nan", ValueError),
    ({"max_norm": None}, "max_norm", "be a number", "NoneType", TypeError),
    ({"max_norm": torch.ones(2)}, "max_norm", "have one element", r"\(2,\)", ValueError),
    ({"max_norm": 1.0, "norm_type": 3}, "norm_type", "be 2, 1 or inf", "3.0", ValueError),
    ({"max_norm": 1.0, "norm_type": None}, "norm_type", "be 2, 1 or inf", "None", TypeError),
]


@pytest.mark.parametrize(("options", "argument", "must", "got", "kind"), CLIP)
def test_clip_options(
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
def test_norm_of_what_has_none(
    tensors: list[Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    with refuses("get_total_norm", argument, must, got, kind):
        fusedstep.get_total_norm(tensors)


def test_clip_of_no_tensors() -> None:
    with refuses("clip_grad_norm_", "parameters[0]", "be a tensor", "str", TypeError):
        fusedstep.clip_grad_norm_(["weight"], 1.0)
