"""Messages call a parameter by its name where the optimizer was given one."""

from __future__ import annotations

import torch

import fusedstep
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import make_params, set_grads


def test_a_gradient_is_refused_by_its_parameter_s_name() -> None:
    params = make_params((4, 4), (4,))
    optimizer = fusedstep.AdamW(zip(("weight", "bias"), params, strict=True))
    set_grads(params)
    params[1].grad = params[1].grad.to_sparse()
    before = Snapshot(params, optimizer)
    with refuses("AdamW", "params['bias'].grad", "be dense", "torch.sparse_coo", TypeError):
        optimizer.step()
    before.check()


def test_state_is_refused_by_its_parameter_s_name() -> None:
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


def test_a_new_group_is_refused_by_its_parameter_s_name() -> None:
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
