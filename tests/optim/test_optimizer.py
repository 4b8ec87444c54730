"""What every optimizer does alike, whatever its rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, getdoc, signature

import pytest
import torch
from torch import Tensor

import fusedstep
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import Options
from tests.support.documented import explanations
from tests.support.optimizers import OPTIMIZERS, Kind, every_kind, every_namesake
from tests.support.refusals import refuses
from tests.support.shadow import Shadow
from tests.support.tensors import DTYPES, copies, make_params, set_grads, threads


def test_every_optimizer_is_in_the_list() -> None:
    found = [one for one in vars(fusedstep).values() if isinstance(one, type)]
    fused = {one.__name__ for one in found if issubclass(one, FusedOptimizer)}
    # Muon takes matrices; its own test files ask the same of it.
    assert fused - {"Muon"} == {kind.name for kind in OPTIMIZERS}


@every_namesake
def test_arguments_and_defaults_are_those_of_torch(kind: Kind) -> None:
    """All of torch's in their places; everything else by keyword only."""
    ours, theirs = (
        list(signature(getattr(module, kind.name)).parameters.values())
        for module in (fusedstep, torch.optim)
    )
    (options,) = (p for p in ours if p.kind == Parameter.VAR_KEYWORD)
    ours.remove(options)
    shared = [p for p in ours if any(p.name == q.name for q in theirs)]
    assert [(p.name, p.kind, p.default) for p in shared] == [
        (q.name, q.kind, q.default) for q in theirs
    ]
    assert all(p.kind == Parameter.KEYWORD_ONLY for p in ours if p not in shared)


@pytest.mark.parametrize("name", [*(kind.name for kind in OPTIMIZERS), "Muon", "Options"])
def test_every_argument_is_explained(name: str) -> None:
    """Args has each parameter of the signature, then each option, and nothing else."""
    documented = Options if name == "Options" else getattr(fusedstep, name)
    explained = explanations(getdoc(documented))
    named = [p.name for p in signature(documented).parameters.values() if p.kind != p.VAR_KEYWORD]
    options = [] if name == "Options" else [field.name for field in fields(Options)]
    assert list(explained) == named + options
    assert all(len(text) > 15 for text in explained.values())


@every_kind
def test_unknown_arguments_are_refused(kind: Kind) -> None:
    message = f"^{kind.name}: got an unexpected keyword argument 'max_nrom'$"
    with pytest.raises(TypeError, match=message):
        kind.ours(make_params((3,)), max_nrom=1.0)


@pytest.mark.parametrize("count", [1, 3])
@every_kind
def test_the_number_of_threads_changes_no_bit(kind: Kind, count: int) -> None:
    params = make_params((40_000,), (5, 7), (65_536,))
    with threads(count):
        shadow = Shadow(kind.ours(params, max_norm=1.0))
        for step in range(2):
            set_grads(params, seed=step)
            shadow.step()


@every_kind
def test_every_combination_of_dtypes_in_one_step(kind: Kind, device: torch.device) -> None:
    params = [p for dtype in DTYPES for p in make_params(*[(50,)] * 4, dtype=dtype, device=device)]
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    for step in range(3):
        for i, param in enumerate(params):
            set_grads([param], seed=step * 100 + i, dtype=DTYPES[(i + step) % 4])
        shadow.step()


@every_kind
def test_gradients_come_and_go(kind: Kind, device: torch.device) -> None:
    """Every parameter has its own step count (trap 3: apex and DeepSpeed count once a group)."""
    params = make_params((40,), (0,), (3, 4), (), (33_000,), device=device)
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    shadow.step()  # no gradient at all
    for step in range(6):
        set_grads(params, seed=step)
        for i, param in enumerate(params):
            param.grad = param.grad if step % (i + 1) == 0 else None
        shadow.step()
    counts = [float(s["step"]) for s in map(shadow.optimizer.state.get, params) if "step" in s]
    assert counts == ([] if kind.name == "Lion" else [6.0, 3.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_kind
def test_gradients_that_are_not_finite(
    kind: Kind, bad: float, nonfinite: str, device: torch.device
) -> None:
    params = make_params((40,), (3, 4), device=device)
    shadow = Shadow(kind.ours(params, max_norm=1.0, nonfinite=nonfinite))
    for step in range(4):
        set_grads(params, seed=step)
        if step in (0, 2):
            params[1].grad[1, 2] = bad
        shadow.step()
    assert all(p.isfinite().all() for p in params) == (nonfinite == "skip")


@every_kind
def test_groups_of_their_own_and_added_later(kind: Kind) -> None:
    a, b, c = params = make_params((40,), (3, 4), (500,))
    groups = [{"params": [a], "lr": 0.1}, {"params": [b], "maximize": True, "weight_decay": 0.5}]
    shadow = Shadow(kind.ours(groups, max_norm=1.0))
    for step in range(4):
        if step == 2:
            shadow.optimizer.add_param_group({"params": [c], "lr": 0.3})
        set_grads(params, seed=step)
        shadow.step()


@every_namesake
def test_groups_that_a_class_of_torch_has_filled(kind: Kind) -> None:
    """torch's constructor writes its defaults into the caller's groups: `fused: None` is one."""
    params = make_params((3,), (4,))
    groups = [{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(params)]
    kind.torchs(groups)
    shadow = Shadow(kind.ours(groups))
    set_grads(params)
    shadow.step()


@every_kind
def test_a_rate_that_is_a_tensor_is_read_at_every_step(kind: Kind) -> None:
    params = make_params((40,), (3, 4))
    lr = torch.tensor(0.1)
    shadow = Shadow(kind.ours(params, lr=lr))
    for step in range(3):
        set_grads(params, seed=step)
        shadow.step()
        lr.mul_(0.5)


@every_namesake
def test_torch_own_step_runs_where_it_is_asked_for(kind: Kind) -> None:
    for chosen in ({"fused": False}, {"foreach": True}, {"fused": False, "foreach": False}):
        ours = make_params((9,), (2, 3))
        theirs = copies(ours)
        known = signature(getattr(torch.optim, kind.name)).parameters
        optimizer = kind.ours(ours, **chosen)
        reference = kind.torchs(theirs, **{k: v for k, v in chosen.items() if k in known})
        for step in range(3):
            for params, one in ((ours, optimizer), (theirs, reference)):
                set_grads(params, seed=step)
                one.step()
        assert all(map(torch.equal, ours, theirs))
        assert optimizer.grad_norm is None


@pytest.mark.parametrize("capturable", [False, True])
@every_kind
def test_capturable_is_an_argument_of_all(kind: Kind, capturable: bool) -> None:
    optimizer = kind.ours(make_params((3,)), capturable=capturable)
    optimizer.add_param_group({"params": make_params((2,))})
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["capturable"] for group in optimizer.param_groups] == [capturable] * 2


@pytest.mark.parametrize("name", ["Adagrad", "Lion", "SGD"])
def test_where_torch_asks_for_no_capturable_neither_do_we(name: str) -> None:
    params = make_params((3,), (4,))
    groups = [{"params": params[:1], "capturable": False}, {"params": params[1:]}]
    optimizer = getattr(fusedstep, name)(groups)
    assert [group["capturable"] for group in optimizer.param_groups] == [False, True]
    state_dict = optimizer.state_dict()
    for group in state_dict["param_groups"]:  # as torch's checkpoints are
        del group["capturable"]
    optimizer.load_state_dict(state_dict)
    assert [group["capturable"] for group in optimizer.param_groups] == [True, True]


@every_kind
def test_gradients_that_have_a_graph_of_their_own(kind: Kind) -> None:
    ours, theirs = make_params((4, 4)), make_params((4, 4))
    optimizers = kind.ours(ours, max_norm=1.0), kind.ours(theirs, max_norm=1.0)
    for (param,), graph in ((ours, True), (theirs, False)):
        (param.grad,) = torch.autograd.grad((param**3).sum(), param, create_graph=graph)
    assert ours[0].grad.requires_grad
    for params, optimizer in zip((ours, theirs), optimizers, strict=True):
        norm = fusedstep.clip_grad_norm_(params, 10.0)
        assert not norm.requires_grad
        optimizer.step()
    assert torch.equal(ours[0], theirs[0])


@every_kind
def test_max_norm_can_be_changed_between_steps(kind: Kind) -> None:
    params = make_params((50,))
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    for step, max_norm in enumerate([1.0, 0.1, None, 5.0]):
        set_grads(params, seed=step)
        shadow.optimizer.max_norm = max_norm
        shadow.norm = None
        shadow.step()
        assert (shadow.optimizer.grad_norm is None) == (max_norm is None)


@every_kind
def test_grad_norm_is_none_until_it_is_asked_for(kind: Kind) -> None:
    params = make_params((5,))
    optimizer = kind.ours(params)
    set_grads(params)
    optimizer.step()
    assert optimizer.grad_norm is None
    optimizer = kind.ours(params, max_norm=1.0)
    assert optimizer.grad_norm is None
    optimizer.step()
    assert optimizer.grad_norm.dtype == torch.float32
    assert optimizer.grad_norm.shape == ()


@every_kind
def test_a_profiler_sees_the_step(kind: Kind) -> None:
    params = make_params((3,))
    optimizer = kind.ours(params)
    set_grads(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert f"Optimizer.step#{kind.name}.step" in {event.name for event in profile.events()}


# --- what is refused ------------------------------------------------------------------------------

PARAMETERS: dict[str, tuple[Callable[[], Tensor], str, str, type[Exception]]] = {
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "be float32, .*", ".*64", TypeError),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "be float32, .*", ".*", TypeError),
    "sparse": (lambda: torch.eye(3).to_sparse(), "be dense", "torch.sparse_coo", TypeError),
}


@pytest.mark.parametrize("name", PARAMETERS)
@every_kind
def test_parameters_without_kernels(kind: Kind, name: str) -> None:
    make, must, got, error = PARAMETERS[name]
    params = make_params((3,))
    label = "param_groups[0]['params'][1]"
    with refuses(kind.name, label, must, got, error):
        kind.ours([*params, make().requires_grad_()])
    optimizer = kind.ours(params)
    with refuses(kind.name, "param_groups[1]['params'][0]", must, got, error):
        optimizer.add_param_group({"params": [make().requires_grad_()]})
    assert len(optimizer.param_groups) == 1
    set_grads(params)
    optimizer.step()


def test_parameter_listed_twice() -> None:
    (param,) = make_params((3,))
    with pytest.raises(ValueError, match="more than one parameter group"):
        fusedstep.AdamW([{"params": [param]}, {"params": [param]}])


@pytest.mark.parametrize("asked", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
@every_kind
def test_a_group_that_asks_for_another_implementation(kind: Kind, asked: dict[str, bool]) -> None:
    optimizer = kind.ours(make_params((3,)))
    must = "select fusedstep's step .*, as the whole optimizer does"
    argument, got = "param_groups[1]", f"fused={asked.get('fused')}, foreach={asked.get('foreach')}"
    if "differentiable" in asked:
        argument, must, got = f"{argument}['differentiable']", "be False without .*", "True"
    with refuses(kind.name, argument, must, got, ValueError):
        optimizer.add_param_group({"params": make_params((2,)), **asked})
    assert len(optimizer.param_groups) == 1


@every_namesake
def test_differentiable_raises_as_torch_fused_does(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        kind.ours(make_params((3,)), differentiable=True)
