"""Plain tensors go to one op by their addresses, all others one by one: with the same results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fusedstep
from fusedstep._C import PlainList
from tests.support.pages import bytes_written, mapped
from tests.support.tensors import DTYPES, assert_same_bits, copies, make_params, name_of, set_grads

SHAPES = [(70_000,), (), (3, 5), (0,), (257,)]


class OneByOne(TorchDispatchMode):
    """Follows every op, so no tensor may be hidden from the dispatcher; counts fusedstep's."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fusedstep":
            self.ops.append(func._opname)
        return func(*args, **(kwargs or {}))


def ops_of(call: Callable[[], Any]) -> list[str]:
    """The ops of fusedstep that a call runs, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    names = [event.name for event in profile.events()]
    return [name.removeprefix("fusedstep::") for name in names if name.startswith("fusedstep::")]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_both_ways_have_the_same_bits(
    dtype: torch.dtype, max_norm: float, norm_type: float, device: torch.device
) -> None:
    plain = make_params(*SHAPES, dtype=dtype, device=device)
    set_grads(plain)
    plain[2].grad = None
    each = copies(plain)
    norms = [fusedstep.get_total_norm([p.grad for p in plain if p.grad is not None], norm_type)]
    norms.append(fusedstep.clip_grad_norm_(plain, max_norm, norm_type))
    with OneByOne() as mode:
        norms.append(fusedstep.clip_grad_norm_(each, max_norm, norm_type))
    assert mode.ops == ["find_overlap", "total_norm", "clip_by_norm_"]
    for norm in norms[1:]:
        assert_same_bits(norm, norms[0], "norm")
    for i, (p, q) in enumerate(zip(plain, each, strict=True)):
        if p.grad is not None:
            assert_same_bits(p.grad, q.grad, f"grads[{i}]")


def test_plain_tensors_of_all_dtypes_take_one_op() -> None:
    params = [p for dtype in DTYPES for p in make_params((3, 4), (), dtype=dtype)]
    set_grads(params)
    params[3].grad = None
    assert ops_of(lambda: fusedstep.clip_grad_norm_(params, 1.0)) == ["clip_list_"]
    assert ops_of(lambda: fusedstep.get_total_norm(params)) == ["clip_list_"]
    assert ops_of(lambda: fusedstep.get_total_norm(params, 3)) == []  # which torch computes


class Named(Tensor):
    """A subclass that behaves as a tensor."""


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(3)


UNUSUAL: dict[str, Callable[[], Any]] = {
    "no tensor": lambda: 3.0,
    "subclass": lambda: torch.ones(3).as_subclass(Named),
    "fake": fake,
    "meta": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "integers": lambda: torch.ones(3, dtype=torch.int64),
    "8 bits": lambda: torch.ones(3, dtype=torch.int8),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "gaps": lambda: torch.ones(6)[::2],
    "expanded": lambda: torch.ones(1).expand(3),
    "lazy negation": lambda: torch._neg_view(torch.ones(3)),
    "lazy zero": lambda: torch._efficientzerotensor(3),
}
USUAL: dict[str, Callable[[], Tensor]] = {
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "buffer": lambda: nn.Buffer(torch.ones(3)),
    "transposed": lambda: torch.ones(3, 4).t(),
    "channels last": lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "one column": lambda: torch.ones(3, 1).as_strided((3, 1), (1, 7)),
    "0-d": lambda: torch.tensor(1.0),
    "empty": lambda: torch.ones(0, 3),
    "empty with gaps": lambda: torch.ones(4, 6)[:, 2:2],
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor")
def test_unusual_tensors_are_looked_at_one_by_one(name: str) -> None:
    unusual = UNUSUAL[name]()
    assert PlainList.of([torch.ones(2), unusual]) is None
    assert PlainList.of([unusual]) is None
    assert PlainList.of_gradients([*make_params((2,)), unusual]) is None


@pytest.mark.parametrize("name", USUAL)
def test_plain_tensors_are_read_where_they_lie(name: str) -> None:
    usual = USUAL[name]()
    listed = PlainList.of([torch.ones(2), usual])
    assert listed is not None
    assert listed.tensors[1] is usual


def test_lists_without_gradients_are_no_plain_lists() -> None:
    assert PlainList.of([]) is None
    assert PlainList.of_gradients([]) is None
    assert PlainList.of_gradients(make_params((3,))) is None


@pytest.mark.parametrize(
    ("views", "apart"),
    [
        (lambda x: (x[:4], x[4:]), True),
        (lambda x: (x[4:], x[:4]), True),
        (lambda x: (x[:4], x[3:]), False),
        (lambda x: (x, x[5:6]), False),
        (lambda x: (x, x.view(2, 5).t()), False),
        (lambda x: (x, x[3:3]), True),  # no elements
    ],
)
def test_gradients_that_share_memory_are_no_plain_list(
    views: Callable[[Tensor], tuple[Tensor, Tensor]], apart: bool
) -> None:
    grads = views(torch.arange(10.0))
    others = [torch.ones(1), torch.ones(1)]
    params = [torch.zeros(g.shape, requires_grad=True) for g in (*grads, *others)]
    for param, grad in zip(params, (*grads, *others), strict=True):
        param.grad = grad
    assert (PlainList.of_gradients(params) is not None) == apart
    assert PlainList.of(list(grads)) is not None  # which are only read


def test_a_gradient_that_shares_its_memory_until_it_is_written_has_its_own_then() -> None:
    (param,) = make_params((5,))
    original = torch.ones(5)
    param.grad = torch._lazy_clone(original)
    norm = fusedstep.clip_grad_norm_(param, 1.0)
    assert float(norm) == pytest.approx(5**0.5, rel=1e-6)
    torch.testing.assert_close(param.grad, torch.full((5,), 5**-0.5))
    assert torch.equal(original, torch.ones(5))


# --- a factor of 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("size", [3000, 100_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_clip_by_one_writes_nothing(
    dtype: torch.dtype, size: int, norm_type: float, tmp_path: Path
) -> None:
    params = make_params((size,), (size,), dtype=dtype)
    paths = [tmp_path / f"gradient {i}" for i in range(2)]
    values = [torch.randn(size, generator=torch.manual_seed(i)).to(dtype) for i in range(2)]
    for param, path, value in zip(params, paths, values, strict=True):
        param.grad = mapped(path, value)
    norm = fusedstep.clip_grad_norm_(params, 1e9, norm_type)
    assert list(map(bytes_written, paths)) == [0, 0]
    fusedstep.clip_grad_norm_(params, float(norm) * 1.01, norm_type)
    assert list(map(bytes_written, paths)) == [0, 0]
    for param, value in zip(params, values, strict=True):
        assert torch.equal(param.grad, value)
    fusedstep.clip_grad_norm_(params, float(norm) * 0.9, norm_type)
    assert all(bytes_written(path) >= values[0].nbytes for path in paths)


def test_a_clip_by_a_norm_that_is_not_finite_writes_nothing_where_it_raises(tmp_path: Path) -> None:
    (param,) = make_params((3000,))
    path = tmp_path / "gradient"
    param.grad = mapped(path, torch.full((3000,), math.inf))
    with pytest.raises(RuntimeError, match="nothing was changed"):
        fusedstep.clip_grad_norm_(param, 1.0, error_if_nonfinite=True)
    assert bytes_written(path) == 0
    fusedstep.clip_grad_norm_(param, 1.0)
    assert bytes_written(path) >= param.grad.nbytes


# --- the op ---------------------------------------------------------------------------------------


def op_arguments() -> list[Any]:
    """Those of clip_list_, and the list, which must live as long."""
    listed = PlainList.of([torch.ones(3), torch.ones(2, 2)])
    assert listed is not None
    norm, published = torch.zeros((), dtype=torch.float64), torch.zeros(())
    return [listed.address, norm, published, 2.0, 1.0, False, listed]


def test_opcheck_of_clip_list() -> None:
    *arguments, _listed = op_arguments()
    torch.library.opcheck(torch.ops.fusedstep.clip_list_.default, tuple(arguments))


@pytest.mark.parametrize(
    ("place", "value", "refusal"),
    [
        (1, torch.zeros(()), "norm must be one float64 value, got float32"),
        (2, torch.zeros((), dtype=torch.float64), "published must be one float32 value, got"),
        (3, 3.0, "norm_type must be 2, 1 or inf, got 3"),
    ],
)
def test_clip_list_refuses(place: int, value: Any, refusal: str) -> None:
    *arguments, listed = op_arguments()
    arguments[place] = value
    with pytest.raises(RuntimeError, match=f"^clip_list_: {refusal}"):
        torch.ops.fusedstep.clip_list_(*arguments)
    assert torch.equal(listed.tensors[0], torch.ones(3))


@pytest.mark.filterwarnings("ignore:.*TracerWarning|.*trace.*")
def test_a_trace_holds_no_address() -> None:
    """A replay would read, or write, where the example's tensors were."""
    traced = torch.jit.trace(
        lambda x: fusedstep.get_total_norm([x]), (torch.ones(4),), check_trace=False
    )
    assert traced(10 * torch.ones(4)) == 20
    graph = make_fx(lambda x: fusedstep.get_total_norm([x]), pre_dispatch=True)(torch.ones(4))
    assert graph(10 * torch.ones(4)) == 20
    assert "clip_list_" not in f"{traced.graph} {graph.graph}"
