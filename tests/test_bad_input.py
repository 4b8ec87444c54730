"""Every refusal: its type, its wording, and that nothing was changed before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, make_params, set_grads
from torch import Tensor

import fusedstep

nan, inf = math.nan, math.inf
WORDING = r"^{function}: {argument} must {must}, got {got}$"


def refuses(function: str, argument: str, must: str, got: str, kind: type[Exception]) -> Any:
    """pytest.raises for a refusal in the one wording; `must` and `got` are regular expressions."""
    for sign in "[]()":
        argument = argument.replace(sign, f"\\{sign}")
    text = WORDING.format(function=function, argument=argument, must=must, got=got)
    return pytest.raises(kind, match=text)


class Snapshot:
    """All that a refused call must leave as it was."""

    def __init__(self, params: list[Tensor], optimizer: torch.optim.Optimizer | None = None):
        self.params, self.optimizer = params, optimizer
        self.before = self._take()

    def _take(self) -> dict[str, Tensor | int]:
        seen: dict[str, Tensor | int] = {}
        for i, param in enumerate(self.params):
            tensors = {"param": param, "grad": param.grad}
            if self.optimizer is not None:
                state = self.optimizer.state.get(param, {})
                tensors |= state
                seen[f"{i} entries"] = len(state)
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    seen[f"{i} {name}"] = tensor.detach().clone()
                    seen[f"{i} {name}'s version"] = tensor._version
        return seen

    def check(self) -> None:
        after = self._take()
        assert after.keys() == self.before.keys()
        for name, value in after.items():
            if isinstance(value, Tensor):
                assert_same_bits(value, self.before[name], name)
            else:
                assert value == self.before[name], name


BETA = "be at least 0 and below 1"
OPTIONS = [
    ({"lr": -1e-3}, "lr", "be 0 or more", "-0.001", ValueError),
    ({"lr": nan}, "lr", "be 0 or more", "nan", ValueError),
    ({"lr": "0.1"}, "lr", "be a number", "str", TypeError),
    ({"lr": None}, "lr", "be a number", "NoneType", TypeError),
    ({"lr": True}, "lr", "be a number", "bool", TypeError),
    ({"eps": -1e-8}, "eps", "be 0 or more", "-1e-08", ValueError),
    ({"eps": nan}, "eps", "be 0 or more", "nan", ValueError),
    ({"weight_decay": -0.1}, "weight_decay", "be 0 or more", "-0.1", ValueError),
    ({"weight_decay": nan}, "weight_decay", "be 0 or more", "nan", ValueError),
    ({"betas": (1.0, 0.9)}, "betas[0]", BETA, "1.0", ValueError),
    ({"betas": (-0.1, 0.9)}, "betas[0]", BETA, "-0.1", ValueError),
    ({"betas": (0.9, 1.5)}, "betas[1]", BETA, "1.5", ValueError),
    ({"betas": (0.9, nan)}, "betas[1]", BETA, "nan", ValueError),
    ({"betas": (0.9, "a")}, "betas[1]", "be a number", "str", TypeError),
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
    ({"max_norm": 1.0, "fused": False}, "max_norm and .*", "be left out .*", ".*", ValueError),
    ({"nonfinite": "skip", "foreach": True}, "max_norm and .*", "be left .*", ".*", ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("options", "argument", "must", "got", "kind"), OPTIONS)
def test_constructor(
    options: dict[str, Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    params = make_params((3,))
    with refuses("AdamW", argument, must, got, kind):
        fusedstep.AdamW(params, **options)


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, "ab", None])
def test_betas_that_are_no_pair(betas: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^AdamW: betas.* must .*, got "):
        fusedstep.AdamW(make_params((3,)), betas=betas)


def test_lr_of_several_elements() -> None:
    with pytest.raises(ValueError, match=r"1-element|one element"):
        fusedstep.AdamW(make_params((3,)), lr=torch.tensor([0.1, 0.2]))


def test_differentiable_raises_as_torch_fused_does() -> None:
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        fusedstep.AdamW(make_params((3,)), differentiable=True)


@pytest.mark.parametrize("option", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [-1.0, nan])
def test_hyperparameter_changed_between_steps(option: str, value: float) -> None:
    params = make_params((3,), (4,))
    optimizer = fusedstep.AdamW([{"params": [p]} for p in params])
    for stepped in (False, True):
        set_grads(params)
        optimizer.param_groups[1][option] = value
        snapshot = Snapshot(params, optimizer)
        with refuses("AdamW", f"param_groups[1]['{option}']", "be 0 or more", ".*", ValueError):
            optimizer.step()
        snapshot.check()
        optimizer.param_groups[1][option] = 0.1
        optimizer.step()
        assert {float(s["step"]) for s in optimizer.state.values()} == {1.0 + stepped}


PARAMETERS: dict[str, tuple[Callable[[], Tensor], str, str, type[Exception]]] = {
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "be float32, .*", ".*64", TypeError),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "be float32, .*", ".*", TypeError),
    "sparse": (lambda: torch.eye(3).to_sparse(), "be dense", "torch.sparse_coo", TypeError),
    "meta": (lambda: torch.empty(3, device="meta"), "be on a CPU or a CUDA .*", "meta", ValueError),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_without_kernels(name: str) -> None:
    make, must, got, kind = PARAMETERS[name]
    params = make_params((3,))
    label = "param_groups[0]['params'][1]"
    with refuses("AdamW", label, must, got, kind):
        fusedstep.AdamW([*params, make().requires_grad_()])
    optimizer = fusedstep.AdamW(params)
    with refuses("AdamW", "param_groups[1]['params'][0]", must, got, kind):
        optimizer.add_param_group({"params": [make().requires_grad_()]})
    assert len(optimizer.param_groups) == 1
    set_grads(params)
    optimizer.step()


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": nan}])
def test_added_group_with_bad_hyperparameters(option: dict[str, Any]) -> None:
    optimizer = fusedstep.AdamW(make_params((3,)))
    with pytest.raises(ValueError, match=r"^AdamW: param_groups\[1\]\['.*\].* must .*, got "):
        optimizer.add_param_group({"params": make_params((4,)), **option})
    assert len(optimizer.param_groups) == 1


def test_parameter_listed_twice() -> None:
    (param,) = make_params((3,))
    with pytest.raises(ValueError, match="more than one parameter group"):
        fusedstep.AdamW([{"params": [param]}, {"params": [param]}])


def sparse_gradient(param: Tensor) -> None:
    param.grad = torch.zeros_like(param).to_sparse()


def smaller_data(param: Tensor) -> None:
    param.data = param.detach()[:2].clone()


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    ("spoil", "argument", "must", "got", "kind"),
    [
        (sparse_gradient, "params[1].grad", "be dense", "torch.sparse_coo", TypeError),
        (smaller_data, "params[1].grad", "have its parameter's shape .*", r"\(5,\)", ValueError),
    ],
    ids=["sparse", "other shape"],
)
def test_gradients(
    spoil: Callable[[Tensor], None],
    argument: str,
    must: str,
    got: str,
    kind: type[Exception],
    stepped: bool,
) -> None:
    params = make_params((4,), (5,), (6,))
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    set_grads(params)
    if stepped:
        optimizer.step()
    spoil(params[1])
    snapshot = Snapshot(params, optimizer)
    with refuses("AdamW", argument, must, got, kind):
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
    sparse_gradient(params[1])
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
