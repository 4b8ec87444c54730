"""What a training loop does around the step: closures, hooks, compilation, copies, averages.

The oracle is a plain loop with the same optimizer; where torch has the class, torch's as well.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import fusedstep
from tests.support.optimizers import Kind, assert_same_run, every_kind, every_namesake, params_of
from tests.support.tensors import assert_same_bits
from tests.support.training_loop import (
    STEPS,
    Batch,
    batches,
    loss_of,
    network,
    plain_run,
    plain_step,
    run,
)


@every_namesake
def test_plain_loop_is_close_to_torch(kind: Kind) -> None:
    nets = network(), network()
    ours = run(nets[0], kind.ours(nets[0].parameters()))
    theirs = run(nets[1], kind.torchs(nets[1].parameters()))
    torch.testing.assert_close(params_of(ours), params_of(theirs))


@pytest.mark.parametrize("set_to_none", [True, False])
@every_kind
def test_zero_grad_in_both_modes(kind: Kind, set_to_none: bool) -> None:
    def step(net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        loss_of(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        assert all((p.grad is None) == set_to_none for p in params_of(optimizer))
        assert set_to_none or not any(p.grad.any() for p in params_of(optimizer))

    net = network()
    optimizer = run(net, kind.ours(net.parameters(), max_norm=1.0), step)
    assert_same_run(optimizer, plain_run(kind))


@pytest.mark.parametrize("keyword", [False, True])
@every_kind
def test_closure_is_run_with_gradients_enabled_and_its_loss_returned(
    kind: Kind, keyword: bool
) -> None:
    def step(net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        losses = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            losses.append(loss_of(net, batch))
            losses[0].backward()
            return losses[0]

        with torch.no_grad():
            loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert loss is losses[0]
        assert len(losses) == 1

    net = network()
    optimizer = run(net, kind.ours(net.parameters(), max_norm=1.0), step)
    assert_same_run(optimizer, plain_run(kind))


HOOKS: dict[str, Callable[[Optimizer, Callable[..., None]], Any]] = {
    "pre": Optimizer.register_step_pre_hook,
    "post": Optimizer.register_step_post_hook,
    "pre of all optimizers": lambda _, hook: register_optimizer_step_pre_hook(hook),
    "post of all optimizers": lambda _, hook: register_optimizer_step_post_hook(hook),
}
every_hook = pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())


def assert_called_once_a_step(optimizer: Optimizer, net: nn.Module, register: Any) -> None:
    calls = []
    hook = register(optimizer, lambda *arguments: calls.append(arguments))
    try:
        run(net, optimizer)
    finally:
        hook.remove()
    assert calls == [(optimizer, (optimizer,), {})] * STEPS  # as torch calls them


@every_hook
@every_kind
def test_each_hook_runs_once_a_step(kind: Kind, register: Any) -> None:
    net = network()
    optimizer = kind.ours(net.parameters(), max_norm=1.0)
    assert_called_once_a_step(optimizer, net, register)
    assert_same_run(optimizer, plain_run(kind))


@every_hook
@every_namesake
def test_each_hook_runs_once_around_torch_own_step(kind: Kind, register: Any) -> None:
    net = network()
    assert_called_once_a_step(kind.ours(net.parameters(), foreach=True), net, register)


@every_kind
def test_hook_changes_gradients(kind: Kind) -> None:
    def halved_step(net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        optimizer.zero_grad()
        (loss_of(net, batch) / 2).backward()  # halving rounds nothing here
        optimizer.step()

    def halve(optimizer: Optimizer, *_: Any) -> None:
        for param in params_of(optimizer):
            param.grad /= 2

    nets = network(), network()
    hooked, plain = (kind.ours(net.parameters(), max_norm=1.0) for net in nets)
    hooked.register_step_pre_hook(halve)
    assert_same_run(run(nets[0], hooked), run(nets[1], plain, halved_step))


@every_kind
def test_step_inside_backward(kind: Kind) -> None:
    """One optimizer a parameter, run by autograd's thread as soon as the gradient is there."""
    nets = network(), network()
    inside, after = ({p: kind.ours([p], max_norm=1.0) for p in net.parameters()} for net in nets)

    def step(param: Tensor) -> None:
        inside[param].step()
        param.grad = None

    for param in inside:
        param.register_post_accumulate_grad_hook(step)
    for batch in batches(STEPS):
        loss_of(nets[0], batch).backward()
        loss_of(nets[1], batch).backward()
        for param, optimizer in after.items():
            optimizer.step()
            param.grad = None
    for actual, expected in zip(inside.values(), after.values(), strict=True):
        assert_same_run(actual, expected)


@every_kind
def test_one_optimizer_a_parameter_is_one_for_all(kind: Kind) -> None:
    """Without a norm, parameters have nothing to do with each other."""
    nets = network(), network()
    each = {param: kind.ours([param]) for param in nets[0].parameters()}
    every = kind.ours(nets[1].parameters())

    def step(param: Tensor) -> None:
        each[param].step()
        param.grad = None

    for param in each:
        param.register_post_accumulate_grad_hook(step)
    for batch in batches(STEPS):
        loss_of(nets[0], batch).backward()
        plain_step(nets[1], every, batch)
    for (param, optimizer), other in zip(each.items(), nets[1].parameters(), strict=True):
        assert_same_bits(param, other)
        assert every.state[other]
        for name, value in every.state[other].items():
            assert_same_bits(optimizer.state[param][name], value, name)


@every_kind
def test_each_clips_by_the_norm_of_its_own_gradient(kind: Kind) -> None:
    """Not by the model's, which nobody knows inside the backward pass."""
    net = network()
    each = {param: kind.ours([param], max_norm=0.01) for param in net.parameters()}
    norms: dict[Tensor, Tensor] = {}

    def step(param: Tensor) -> None:
        norms[param] = fusedstep.get_total_norm([param.grad])
        each[param].step()
        param.grad = None

    for param in each:
        param.register_post_accumulate_grad_hook(step)
    for batch in batches(STEPS):
        loss_of(net, batch).backward()
        for param, optimizer in each.items():
            assert_same_bits(optimizer.grad_norm, norms[param], "its own norm")
        assert len({float(norm) for norm in norms.values()}) == len(each)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["optimizer.step", "the loop's body"])
@every_kind
def test_compiled_step_is_the_eager_one(kind: Kind, whole: bool) -> None:
    torch._dynamo.reset()
    net = network()
    optimizer = kind.ours(net.parameters(), max_norm=1.0)
    compiled = torch.compile(plain_step if whole else optimizer.step, backend="eager")

    def step(net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        if whole:
            return compiled(net, optimizer, batch)
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        compiled()

    run(net, optimizer, step)
    assert_same_run(optimizer, plain_run(kind))


@pytest.mark.parametrize("use_reentrant", [False, True])
@every_kind
def test_recomputed_activations(kind: Kind, use_reentrant: bool) -> None:
    net = network()
    recomputed = nn.Module()
    recomputed.forward = lambda x: checkpoint(net, x, use_reentrant=use_reentrant)

    def step(_: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        plain_step(recomputed, optimizer, [batch[0].clone().requires_grad_(), batch[1]])

    optimizer = run(net, kind.ours(net.parameters(), max_norm=1.0), step)
    assert_same_run(optimizer, plain_run(kind))


@pytest.mark.parametrize(("name", "value"), [("max_norm", 0.25), ("norm_type", 1.0)])
def test_options_are_set_through_a_wrapper_that_inherits_the_class(name: str, value: float) -> None:
    """Lightning and Fabric wrap an optimizer in a class of both, with attributes of its own."""

    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def __getattr__(self, attribute: str) -> object:
            return getattr(self.optimizer, attribute)

    optimizer = fusedstep.AdamW([torch.nn.Parameter(torch.ones(3))], max_norm=1.0)
    wrapped = type("Wrapped", (Wrapper, fusedstep.AdamW), {})(optimizer)
    setattr(wrapped, name, value)
    assert getattr(optimizer, name) == value


def test_hooks_see_the_arguments_as_they_were_given() -> None:
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    seen: list[list[object]] = []
    for optimizer in (fusedstep.AdamW(params[:1]), torch.optim.AdamW(params[1:])):
        calls: list[object] = []
        optimizer.register_step_pre_hook(
            lambda _, args, kwargs, calls=calls: calls.append((args[1:], kwargs))
        )
        closure = params[0].sum
        for args, kwargs in (((), {}), ((None,), {}), ((closure,), {}), ((), {"closure": closure})):
            optimizer.step(*args, **kwargs)
        seen.append(calls)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4


# --- models and optimizers that are copied, named, extended or averaged while they train ----------


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
