"""Parameters, gradients and state that a step refuses, and that it changes nothing before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.optimizers import Kind, every_kind
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import make_params, set_grads


def test_parameter_listed_twice_in_one_group() -> None:
    (param,) = make_params((3,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = fusedstep.AdamW([param, param])
    set_grads([param])
    snapshot = Snapshot([param], optimizer)
    must = r"not overlap params\[0\]"
    with refuses("AdamW", "params[1]", must, "shared memory", ValueError):
        optimizer.step()
    snapshot.check()


def sparse_gradient(param: Tensor) -> None:
    param.grad = torch.zeros_like(param).to_sparse()


def smaller_data(param: Tensor) -> None:
    param.data = param.detach()[:2].clone()


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    ("damage", "argument", "must", "got", "error"),
    [
        (sparse_gradient, "params[1].grad", "be dense", "torch.sparse_coo", TypeError),
        (smaller_data, "params[1].grad", "have its parameter's shape .*", r"\(5,\)", ValueError),
    ],
    ids=["sparse", "other shape"],
)
@every_kind
def test_gradients_that_do_not_fit(
    kind: Kind,
    damage: Callable[[Tensor], None],
    argument: str,
    must: str,
    got: str,
    error: type[Exception],
    stepped: bool,
) -> None:
    params = make_params((4,), (5,), (6,))
    optimizer = kind.ours(params, max_norm=1.0)
    set_grads(params)
    if stepped:
        optimizer.step()
    damage(params[1])
    snapshot = Snapshot(params, optimizer)
    with refuses(kind.name, argument, must, got, error):
        optimizer.step()
    snapshot.check()


def test_state_of_another_shape_is_refused_until_it_is_mended() -> None:
    (param,) = make_params((3,))
    optimizer = fusedstep.AdamW([param])
    set_grads([param])
    optimizer.step()
    mended = optimizer.state[param]["exp_avg"]
    optimizer.state[param]["exp_avg"] = torch.ones(1)
    before = param.detach().clone()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"^AdamW: state of params\[0\]\['exp_avg'\] must have"
        ):
            optimizer.step()
    assert torch.equal(param, before)
    optimizer.state[param]["exp_avg"] = mended
    optimizer.step()
    assert float(optimizer.state[param]["step"]) == 2


def test_parameter_with_a_lazy_negation() -> None:
    param = torch._neg_view(torch.ones(3)).requires_grad_()
    optimizer = fusedstep.AdamW([param])
    param.grad = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"^AdamW: params\[0\] must hold its values in memory, got"
    ):
        optimizer.step()


def test_a_dtype_that_changed_is_refused_by_the_step() -> None:
    params = make_params((3,), (4,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master="float32")
    params[1].data = params[1].data.float()
    set_grads(params)
    before = [p.detach().clone() for p in params]
    with refuses("AdamW", "params[1]", "be bfloat16 where .*", "torch.float32", ValueError):
        optimizer.step()
    assert not optimizer.state
    assert all(map(torch.equal, params, before))


# --- what messages call a tensor -----------------------------------------------------------------


def test_a_gradient_is_refused_by_its_parameters_name() -> None:
    params = make_params((4, 4), (4,))
    optimizer = fusedstep.AdamW(zip(("weight", "bias"), params, strict=True))
    set_grads(params)
    params[1].grad = params[1].grad.to_sparse()
    before = Snapshot(params, optimizer)
    with refuses("AdamW", "params['bias'].grad", "be dense", "torch.sparse_coo", TypeError):
        optimizer.step()
    before.check()


def test_state_is_refused_by_its_parameters_name() -> None:
    params = make_params((4, 4), (4,))
    optimizer = fusedstep.AdamW(
        [{"params": [("weight", params[0])]}, {"params": [("bias", params[1])]}]
    )
    set_grads(params)
    optimizer.step()
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(5)
    before = Snapshot(params, optimizer)
    where = "state of params['bias']['exp_avg']"
    with refuses("AdamW", where, r"have its parameter's shape \(4,\)", r"\(5,\)", ValueError):
        optimizer.step()
    before.check()


def test_a_new_group_is_refused_by_its_parameters_name() -> None:
    optimizer = fusedstep.AdamW([("weight", make_params((4,))[0])])
    sparse = torch.eye(3).to_sparse().requires_grad_()
    where = "param_groups[1]['params']['embedding']"
    with refuses("AdamW", where, "be dense", "torch.sparse_coo", TypeError):
        optimizer.add_param_group({"params": [("embedding", sparse)]})
    assert len(optimizer.param_groups) == 1


def test_without_names_it_is_the_place_in_all_groups_that_counts() -> None:
    params = make_params((2,), (3,), (4,))
    optimizer = fusedstep.AdamW([{"params": params[:1]}, {"params": params[1:]}])
    set_grads(params)
    params[2].grad = params[2].grad.to_sparse()
    with refuses("AdamW", "params[2].grad", "be dense", "torch.sparse_coo", TypeError):
        optimizer.step()


def test_a_refused_step_makes_no_state() -> None:
    params = make_params((5,), (6,))
    optimizer = fusedstep.AdamW(params, state_dtype="int8")
    set_grads(params)
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(6, dtype=torch.int8)  # and no scales
    before = Snapshot(params, optimizer)
    with pytest.raises(
        ValueError, match=r"state of params\[1\]\['exp_avg_scale'\] must be present"
    ):
        optimizer.step()
    before.check()
