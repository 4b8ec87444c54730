"""The preconditioned sharpness, from every form of state, against dense D^-1/2 H D^-1/2."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedstep
from fusedstep.dynamics import preconditioned_sharpness, sharpness
from fusedstep.dynamics.preconditioner import preconditioner_of
from tests.dynamics.problems import data, dense_hessian, network
from tests.support.optimizers import params_of
from tests.support.refusals import Snapshot, refuses

F64 = torch.float64
CASES = {
    "Adam": ("Adam", {"lr": 1e-2}),
    "Adam, amsgrad": ("Adam", {"lr": 1e-2, "amsgrad": True, "eps": 1e-3}),
    "AdamW": ("AdamW", {"lr": 1e-2, "betas": (0.8, 0.95)}),
    "RMSprop": ("RMSprop", {"lr": 1e-2}),
    "RMSprop, centered": ("RMSprop", {"lr": 1e-2, "centered": True, "momentum": 0.5, "eps": 1e-4}),
    "Adagrad": ("Adagrad", {"lr": 1e-2, "lr_decay": 0.1}),
    "SGD": ("SGD", {"lr": 1e-2, "momentum": 0.9}),
}


def trained(
    case: str, dtype: torch.dtype, package: Any = fusedstep, **more: Any
) -> tuple[Any, nn.Module, Any]:
    """An optimizer after six steps, its model and its loss."""
    name, options = CASES[case]
    model, loss_fn = network(dtype)
    opt = getattr(package, name)(model.parameters(), **options, **more)
    for _ in range(6):
        opt.zero_grad()
        loss_fn().backward()
        opt.step()
    return opt, model, loss_fn


def diagonal(case: str, group: dict[str, Any], state: dict[str, Tensor]) -> Tensor:
    """What the parameter's last step divided its momentum by, from plain state."""
    if case == "SGD":
        return torch.ones((), dtype=F64)
    if case.startswith("Adagrad"):
        slower = 1 + (float(state["step"]) - 1) * group["lr_decay"]
        return slower * (state["sum"].double().sqrt() + group["eps"])
    if case.startswith("RMSprop"):
        v = state["square_avg"].double()
        v = v - state["grad_avg"].double() ** 2 if group["centered"] else v
        return v.clamp(min=0).sqrt() + group["eps"]
    t, (beta1, beta2) = float(state["step"]), group["betas"]
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
    return (1 - beta1**t) * ((v / (1 - beta2**t)).sqrt() + group["eps"])


def expected_sharpness(case: str, opt: Any, loss_fn: Any, plain: dict[str, Any]) -> float:
    """By the eigenvalues of the whole matrix."""
    params = params_of(opt)
    roots = [
        diagonal(case, opt.param_groups[0], plain["state"].get(i, {})).rsqrt().expand(p.shape)
        for i, p in enumerate(params)
    ]
    root = torch.cat([r.reshape(-1) for r in roots])
    matrix = root[:, None] * dense_hessian(loss_fn, params).double() * root
    return float(torch.linalg.eigvalsh(matrix)[-1])


@pytest.mark.parametrize("package", [fusedstep, torch.optim], ids=["fusedstep", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_float64(case: str, package: Any) -> None:
    opt, _, loss_fn = trained(case, F64, package)
    expected = expected_sharpness(case, opt, loss_fn, opt.state_dict())
    assert preconditioned_sharpness(opt, loss_fn) == pytest.approx(expected, rel=1e-10)
    if case == "SGD":
        assert sharpness(loss_fn, params_of(opt)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "int8"])
@pytest.mark.parametrize("case", [case for case in CASES if "centered" not in case])
def test_every_state_dtype(case: str, state_dtype: Any) -> None:
    opt, _, loss_fn = trained(case, torch.float32, state_dtype=state_dtype)
    kinds = {v.dtype for s in opt.state.values() for v in s.values()} - {torch.float32}
    assert kinds or state_dtype is None
    expected = expected_sharpness(case, opt, loss_fn, opt.to_torch_state_dict())
    assert preconditioned_sharpness(opt, loss_fn) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["float32", "remainder", "correction", "stochastic"])
@pytest.mark.parametrize("case", ["Adam", "AdamW", "RMSprop", "SGD"])
def test_bfloat16_parameters_and_masters(case: str, mode: str) -> None:
    more = {"stochastic_rounding": True} if mode == "stochastic" else {"master": mode}
    opt, model, loss_fn = trained(case, torch.bfloat16, **more)
    value = preconditioned_sharpness(opt, loss_fn)
    # The same parameters and state; the loss in float64.
    exact, exact_loss = network(F64)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    name, options = CASES[case]
    twin = getattr(fusedstep, name)(exact.parameters(), **options)
    twin.load_state_dict(opt.to_torch_state_dict())
    for P, Q in zip(*(preconditioner_of("test", o) or () for o in (opt, twin)), strict=True):
        torch.testing.assert_close(P, Q, rtol=1e-12, atol=0)
    # Products in bfloat16 have an error of 2^-9, which the division by P enlarges.
    assert value == pytest.approx(preconditioned_sharpness(twin, exact_loss), rel=0.3)


@pytest.mark.parametrize("case", CASES)
def test_the_last_step_divided_by_it(case: str) -> None:
    """The parameters' own movement: momentum, or the gradient, over P."""
    opt, model, loss_fn = trained(case, F64)
    group = opt.param_groups[0]
    group["weight_decay"], group["momentum"] = 0.0, group.get("momentum", 0.0)
    if "RMSprop" in case:
        group["momentum"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    opt.zero_grad()
    loss_fn().backward()
    opt.step()
    diagonals = preconditioner_of("test", opt) or [1.0] * len(before)
    for p, old, P in zip(model.parameters(), before, diagonals, strict=True):
        state = opt.state[p]
        direction = state.get("exp_avg", p.grad if case != "SGD" else state.get("momentum_buffer"))
        moved = (old - p.detach()) / group["lr"]
        torch.testing.assert_close(moved, direction / P, rtol=1e-9, atol=1e-9)


def test_frozen_parameters_are_left_out() -> None:
    model, loss_fn = network(F64)
    model[0].requires_grad_(False)
    opt = fusedstep.Adam(model.parameters(), lr=1e-2)
    loss_fn().backward()
    opt.step()
    params = list(model[2].parameters())
    root = torch.cat([d.reshape(-1) for d in preconditioner_of("test", opt)]).rsqrt()
    matrix = root[:, None] * dense_hessian(loss_fn, params) * root
    expected = float(torch.linalg.eigvalsh(matrix)[-1])
    assert preconditioned_sharpness(opt, loss_fn) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("state_dtype", [None, "int8"])
@pytest.mark.parametrize("products", ["autograd", "differences"])
def test_changes_nothing(products: str, state_dtype: Any) -> None:
    opt, _, loss_fn = trained("Adam", torch.float32, state_dtype=state_dtype)
    before = Snapshot(params_of(opt), opt)
    saved = copy.deepcopy(opt.state_dict())
    preconditioned_sharpness(opt, loss_fn, products=products)
    before.check()
    assert str(saved) == str(opt.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("state_dtype", [None, "int8"])
@pytest.mark.parametrize("products", ["autograd", "differences"])
def test_cuda(state_dtype: Any, products: str) -> None:
    opt, model, loss_fn = trained("Adam", torch.float32, state_dtype=state_dtype)
    twin = network(torch.float32)[0].cuda()
    twin.load_state_dict(model.state_dict())
    on_gpu = fusedstep.Adam(twin.parameters(), lr=1e-2, state_dtype=state_dtype)
    on_gpu.load_state_dict(opt.state_dict())
    x, y = (t.cuda() for t in data(torch.float32))
    value = preconditioned_sharpness(on_gpu, lambda: ((twin(x) - y) ** 2).mean(), products=products)
    expected = preconditioned_sharpness(opt, loss_fn)
    rel = {"autograd": 1e-5, "differences": 1e-2}[products]
    assert value == pytest.approx(expected, rel=rel)


def test_sgd_needs_no_state() -> None:
    w = nn.Parameter(torch.ones(2, dtype=F64))
    opt = fusedstep.SGD([w], lr=0.1, momentum=0.9)
    assert preconditioned_sharpness(opt, lambda: (w**2).sum()) == pytest.approx(2)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad"])
def test_no_state_yet(name: str) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = getattr(fusedstep, name)([w])
    before = Snapshot([w], opt)
    must = r"have taken a step with params\[0\]"
    with refuses("preconditioned_sharpness", "optimizer", must, "no (step|square_avg)", ValueError):
        preconditioned_sharpness(opt, lambda: (w**2).sum())
    before.check()


def test_a_parameter_that_never_had_a_gradient() -> None:
    used, unused = (nn.Parameter(torch.ones(2)) for _ in "ab")
    opt = fusedstep.AdamW([("used", used), ("unused", unused)])
    (used**2).sum().backward()
    opt.step()
    must = r"have taken a step with params\['unused'\]"
    with refuses("preconditioned_sharpness", "optimizer", must, "no step", ValueError):
        preconditioned_sharpness(opt, lambda: (used**2).sum())


def test_an_element_without_gradient_and_eps() -> None:
    w = nn.Parameter(torch.ones(2))
    opt = fusedstep.RMSprop([w], eps=0.0)
    (w[0] ** 2).backward()
    opt.step()
    argument, must = "preconditioner[0]", "be finite and above 0"
    with refuses("preconditioned_sharpness", argument, must, "0.0", ValueError):
        preconditioned_sharpness(opt, lambda: (w**2).sum())


def test_other_optimizers() -> None:
    opt = fusedstep.Lion([nn.Parameter(torch.ones(2))])
    must = "be Adam, AdamW, RMSprop, SGD or Adagrad, of fusedstep or torch"
    with refuses("preconditioned_sharpness", "optimizer", must, "Lion", TypeError):
        preconditioned_sharpness(opt, lambda: None)
