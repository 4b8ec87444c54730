"""What every optimizer refuses: the type, the wording, and that nothing was changed before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.optimizers import Kind, every_kind, every_namesake
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import make_params, set_grads

nan, inf = math.nan, math.inf
OPTIONS = [
    ({"max_norm": -1.0}, "max_norm", "be 0 or more", "-1.0", ValueError),
    ({"max_norm": nan}, "max_norm", "be 0 or more", "nan", ValueError),
    ({"max_norm": "1"}, "max_norm", "be a number", "str", TypeError),
    ({"norm_type": 3.0}, "norm_type", "be 2, 1 or inf", "3.0", ValueError),
    ({"norm_type": 0}, "norm_type", "be 2, 1 or inf", "0.0", ValueError),
    ({"norm_type": nan}, "norm_type", "be 2, 1 or inf", "nan", ValueError),
    ({"norm_type": -inf}, "norm_type", "be 2, 1 or inf", "-inf", ValueError),
    ({"norm_type": "two"}, "norm_type", "be 2, 1 or inf", "'two'", TypeError),
    ({"nonfinite": "ignore"}, "nonfinite", "be one of .*skip, error", "'ignore'", ValueError),
    ({"nonfinite": None}, "nonfinite", "be one of .*skip, error", "None", ValueError),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_norm", -1.0), ("max_norm", nan), ("norm_type", 3.0), ("nonfinite", "ignore")],
)
@every_kind
def test_options_are_checked_when_set_later(kind: Kind, name: str, value: object) -> None:
    optimizer = kind.ours(make_params((3,)), max_norm=1.0)
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=rf"^{kind.name}: {name} must .*, got .*{value}"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


@pytest.mark.parametrize(("options", "argument", "must", "got", "error"), OPTIONS)
@every_kind
def test_constructor(
    kind: Kind, options: dict[str, Any], argument: str, must: str, got: str, error: type[Exception]
) -> None:
    params = make_params((3,))
    with refuses(kind.name, argument, must, got, error):
        kind.ours(params, **options)


@every_namesake
def test_options_beside_torch_own_step(kind: Kind) -> None:
    params = make_params((3,))
    with refuses(kind.name, "max_norm", "be None where fused=False .*", "1.0", ValueError):
        kind.ours(params, max_norm=1.0, fused=False)
    with refuses(kind.name, "nonfinite", "be 'propagate' where .*", "'skip'", ValueError):
        kind.ours(params, nonfinite="skip", foreach=True)


@every_namesake
def test_differentiable_raises_as_torch_fused_does(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        kind.ours(make_params((3,)), differentiable=True)


@pytest.mark.parametrize(
    ("option", "value", "must"),
    [
        ("max_norm", -1.0, "be 0 or more"),
        ("max_norm", nan, "be 0 or more"),
        ("norm_type", 3.0, "be 2, 1 or inf"),
        ("nonfinite", "ignore", "be one of .*"),
    ],
)
def test_option_set_between_steps(option: str, value: Any, must: str) -> None:
    params = make_params((3,))
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    set_grads(params)
    optimizer.step()
    before = getattr(optimizer, option)
    with refuses("AdamW", option, must, ".*", ValueError):
        setattr(optimizer, option, value)
    assert getattr(optimizer, option) == before
    optimizer.step()


PARAMETERS: dict[str, tuple[Callable[[], Tensor], str, str, type[Exception]]] = {
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "be float32, .*", ".*64", TypeError),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "be float32, .*", ".*", TypeError),
    "sparse": (lambda: torch.eye(3).to_sparse(), "be dense", "torch.sparse_coo", TypeError),
    "meta": (lambda: torch.empty(3, device="meta"), "be on a CPU or a CUDA .*", "meta", ValueError),
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
    ("spoil", "argument", "must", "got", "error"),
    [
        (sparse_gradient, "params[1].grad", "be dense", "torch.sparse_coo", TypeError),
        (smaller_data, "params[1].grad", "have its parameter's shape .*", r"\(5,\)", ValueError),
    ],
    ids=["sparse", "other shape"],
)
@every_kind
def test_gradients(
    kind: Kind,
    spoil: Callable[[Tensor], None],
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
    spoil(params[1])
    snapshot = Snapshot(params, optimizer)
    with refuses(kind.name, argument, must, got, error):
        optimizer.step()
    snapshot.check()


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    ("views", "must", "got"),
    [
        (lambda x: (x[:4], x[3:]), r"not overlap params\[0\]", "shared memory"),
        (lambda x: (x, x.view(2, 5)), r"not overlap params\[0\]", "shared memory"),
        (lambda x: (x[::2], x[::3]), r"not overlap params\[0\]", "shared memory"),
        (lambda x: (x[:1], x[1:2].expand(4)), "not overlap itself", r"strides \(0,\)"),
        (lambda x: (x[:1], x[1:].as_strided((3, 3), (1, 1))), "not overlap itself", "strides .*"),
    ],
)
def test_overlapping_parameters(
    views: Callable[[Tensor], tuple[Tensor, Tensor]], must: str, got: str, stepped: bool
) -> None:
    base = torch.arange(10.0)
    others = make_params((3,))
    params = [view.requires_grad_() for view in views(base)]
    optimizer = fusedstep.AdamW([*params, *others])
    if stepped:  # one that has no gradient at first does not overlap unnoticed later
        set_grads([params[0], *others])
        optimizer.step()
    set_grads([params[0], *others])
    params[1].grad = torch.ones(params[1].shape)
    snapshot = Snapshot([*params, *others], optimizer)
    with refuses("AdamW", "params[1]", must, got, ValueError):
        optimizer.step()
    snapshot.check()


def test_views_of_one_tensor_that_do_not_overlap_are_taken() -> None:
    base = torch.arange(48.0).reshape(6, 8)
    views = [base[:3, ::2], base[:3, 1::2], base[3:, :4], base[3:, 4:]]
    params = [view.requires_grad_() for view in views]
    set_grads(params)
    before = base.clone()
    fusedstep.AdamW(params, lr=1.0).step()
    assert (base != before).all()


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


@pytest.mark.parametrize("option", ["fused", "differentiable"])
@every_kind
def test_a_group_that_asks_for_another_implementation(kind: Kind, option: str) -> None:
    optimizer = kind.ours(make_params((3,)))
    group = {"params": make_params((2,)), option: option == "differentiable"}
    with pytest.raises(
        ValueError, match=rf"^{kind.name}: param_groups\[1\]\['{option}'\] must be .*, got"
    ):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


def test_parameter_with_a_lazy_negation() -> None:
    param = torch._neg_view(torch.ones(3)).requires_grad_()
    optimizer = fusedstep.AdamW([param])
    param.grad = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"^AdamW: params\[0\] must hold its values in memory, got"
    ):
        optimizer.step()
