"""Models and optimizers that are copied, named, extended or averaged while they train."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.optimizers import Kind, assert_same_run, every_kind, params_of
from tests.support.tensors import assert_same_bits
from tests.support.training_loop import STEPS, batches, loss_of, network, plain_run, plain_step, run


def through_a_file(pair: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("steps_before", [0, 2])
@every_kind
def test_network_and_optimizer_copied_together(
    kind: Kind, steps_before: int, duplicate: Callable[[Any], Any]
) -> None:
    net = network()
    optimizer = kind.ours(net.parameters(), max_norm=1.0)
    for batch in batches(steps_before):
        plain_step(net, optimizer, batch)
    other_net, other = duplicate((net, optimizer))
    assert all(p is q for p, q in zip(params_of(other), other_net.parameters(), strict=True))
    untouched = [param.detach().clone() for param in net.parameters()]
    run(other_net, other)
    assert all(map(torch.equal, net.parameters(), untouched))
    assert_same_run(other, run(net, optimizer))


@every_kind
def test_named_parameters(kind: Kind) -> None:
    net = network()
    named = run(net, kind.ours(net.named_parameters(), max_norm=1.0))
    assert_same_run(named, plain_run(kind))
    saved = copy.deepcopy(named.state_dict())
    assert saved["param_groups"][0]["param_names"] == [name for name, _ in net.named_parameters()]
    other_net = copy.deepcopy(net)
    groups = [{"params": list(other_net.named_parameters()), "lr": 1.0}]
    other = kind.ours(groups, max_norm=1.0)
    other.load_state_dict(saved)
    run(other_net, other)
    assert_same_run(other, run(net, named))


@every_kind
def test_layer_thawed_later_by_add_param_group(kind: Kind) -> None:
    """Without a clip the groups know nothing of each other: so the oracle is two optimizers."""
    one, two = network(), network()
    for net in (one, two):
        net[0].requires_grad_(False)
    joined, last = kind.ours(one[2].parameters()), kind.ours(two[2].parameters())
    first = kind.ours(two[0].parameters(), lr=0.002)
    for i, batch in enumerate(batches(STEPS)):
        if i == 2:
            for net in (one, two):
                net[0].requires_grad_(True)
            joined.add_param_group({"params": one[0].parameters(), "lr": 0.002})
        plain_step(one, joined, batch)
        two.zero_grad()
        loss_of(two, batch).backward()
        last.step()
        first.step()
    for optimizer, layer in ((last, 2), (first, 0)):
        for p, q in zip(one[layer].parameters(), two[layer].parameters(), strict=True):
            assert_same_bits(p, q, f"parameter of layer {layer}")
            for name, value in joined.state[p].items():
                assert_same_bits(value, optimizer.state[q][name], name)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
@every_kind
def test_averaged_model(kind: Kind, average: Any) -> None:
    """It follows the parameters where they are: averages of copies of them are the same."""
    net = network()
    optimizer = kind.ours(net.parameters(), max_norm=1.0)
    averaged, expected = (AveragedModel(net, multi_avg_fn=average) for _ in range(2))
    for batch in batches(STEPS):
        plain_step(net, optimizer, batch)
        averaged.update_parameters(net)
        expected.update_parameters(copy.deepcopy(net))
    for p, q in zip(averaged.parameters(), expected.parameters(), strict=True):
        assert_same_bits(p, q, "average")
        assert p.grad is None
    assert not any(map(torch.equal, averaged.module.parameters(), net.parameters()))
    assert_same_run(optimizer, plain_run(kind))
