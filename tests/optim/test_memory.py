"""Strides, gaps, alignment, overlap, no elements or dimensions: the same numbers everywhere."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fusedstep
from tests.reference.norm import total_norm
from tests.support.optimizers import Kind, every_kind
from tests.support.refusals import Snapshot, refuses
from tests.support.shadow import Shadow
from tests.support.tensors import (
    DTYPES,
    assert_same_bits,
    bounded,
    in_memory_order,
    make_params,
    name_of,
    set_grads,
)

# From a contiguous base to the view that is the parameter.
VIEWS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "contiguous": ((6, 40), lambda x: x),
    "transposed": ((200, 300), lambda x: x.t()),
    "channels last": ((4, 5, 6, 7), lambda x: x.to(memory_format=torch.channels_last)),
    "permuted": ((7, 40, 130), lambda x: x.permute(1, 2, 0)),
    "every second column": ((30, 50), lambda x: x[:, ::2]),
    "every second row": ((300, 201), lambda x: x[::2]),
    "a block": ((30, 50), lambda x: x[3:20, 5:44]),
    "transposed with gaps": ((30, 50), lambda x: x[:, 7:].t()),
    "one column": ((999, 3), lambda x: x[:, 1]),
    "0-d inside": ((5,), lambda x: x[3]),
    "misaligned by one": ((40_001,), lambda x: x[1:]),
    "misaligned by three": ((1_003,), lambda x: x[3:]),
    "dimension of one, odd stride": ((5, 7), lambda x: x.as_strided((5, 1, 7), (7, 999, 1))),
    "empty": ((0, 3), lambda x: x),
    "empty with strides": ((4, 0, 3), lambda x: x.permute(2, 0, 1)),
    "narrow of nothing": ((4, 6), lambda x: x[:, 2:2]),
}
GAPLESS = [name for name in VIEWS if not any(word in name for word in ("gaps", "second", "block"))]


def view_of(
    name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    shape, take = VIEWS[name]
    (base,) = make_params(shape, dtype=dtype, device=device)
    return take(base.detach()).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@every_kind
def test_gradients_in_the_layouts_of_their_parameters(
    kind: Kind, dtype: torch.dtype, device: torch.device
) -> None:
    params = [view_of(name, dtype, device) for name in VIEWS]
    before = [(param.data_ptr(), param.stride()) for param in params]
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    for step in range(3):
        set_grads(params, seed=step)
        shadow.step()
    assert [(param.data_ptr(), param.stride()) for param in params] == before


@every_kind
def test_gradients_in_other_layouts(kind: Kind, device: torch.device) -> None:
    params = [view_of(name, device=device) for name in VIEWS]
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    for step, reorder in enumerate([torch.Tensor.contiguous, backwards, with_gaps]):
        set_grads(params, seed=step)
        for param in params:
            param.grad = reorder(param.grad)
        shadow.step()


@pytest.mark.parametrize("name", VIEWS)
def test_each_layout_alone(name: str, device: torch.device) -> None:
    """The table has a single row, and copies or does not."""
    param = view_of(name, device=device)
    shadow = Shadow(fusedstep.AdamW([param], max_norm=1.0))
    for step, reorder in enumerate([torch.Tensor.clone, backwards]):
        set_grads([param], seed=step)
        param.grad = reorder(param.grad)
        shadow.step()


def backwards(tensor: Tensor) -> Tensor:
    """The same values with the order of dimensions in memory reversed."""
    dims = tuple(reversed(range(tensor.dim())))
    return tensor.permute(dims).contiguous().permute(dims)


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values with an unused element after each."""
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


@pytest.mark.parametrize("name", ["contiguous", "transposed", "channels last", "a block"])
def test_expanded_gradient(name: str, device: torch.device) -> None:
    param = view_of(name, device=device)
    shadow = Shadow(fusedstep.AdamW([param], max_norm=1.0))
    for value in (0.5, -2.0):
        param.grad = torch.tensor(value, device=device).expand(param.shape)
        shadow.step()


def test_gradient_from_autograd_of_a_sum_and_of_a_transposed_use() -> None:
    (param,) = make_params((30, 20))
    shadow = Shadow(fusedstep.AdamW([param], max_norm=1.0))
    for loss in (lambda: param.sum(), lambda: (param.t() @ torch.ones(30, 4)).square().sum()):
        param.grad = None
        loss().backward()
        shadow.step()


@pytest.mark.parametrize("name", ["every second column", "every second row", "a block"])
def test_memory_between_the_elements_is_left_alone(name: str, device: torch.device) -> None:
    shape, take = VIEWS[name]
    base = torch.randn(shape, device=device)
    before = base.clone()
    param = take(base).requires_grad_()
    set_grads([param])
    fusedstep.AdamW([param], lr=1.0).step()
    changed = torch.zeros_like(base, dtype=torch.bool)
    take(changed)[...] = True
    assert_same_bits(base[~changed], before[~changed], "between the elements")
    assert not torch.equal(base[changed], before[changed])


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_every_misalignment(dtype: torch.dtype, offset: int, device: torch.device) -> None:
    (base,) = make_params((3000,), dtype=dtype, device=device)
    (grads,) = make_params((3000,), dtype=dtype, device=device, seed=1)
    param = base.detach()[offset : offset + 2500].requires_grad_()
    shadow = Shadow(fusedstep.AdamW([param], max_norm=1.0))
    for shift in (offset, 0, 5):
        param.grad = grads.detach()[shift : shift + 2500]
        shadow.step()
    assert_same_bits(
        fusedstep.get_total_norm([param.grad]),
        fusedstep.get_total_norm([param.grad.clone()]),
        "the norm of misaligned elements",
    )


@pytest.mark.parametrize("position", ["first", "last", "everywhere", "alone"])
def test_empty_parameters_anywhere(position: str, device: torch.device) -> None:
    shapes = {
        "first": [(0,), (5,)],
        "last": [(5,), (0, 3)],
        "everywhere": [(0,), (0,), (5,), (0,), (40_000,), (0,)],
        "alone": [(0,)],
    }[position]
    params = make_params(*shapes, device=device)
    shadow = Shadow(fusedstep.AdamW(params, max_norm=1.0))
    for step in range(3):
        set_grads(params, seed=step)
        shadow.step()
    assert all(float(shadow.optimizer.state[p]["step"]) == 3 for p in params)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clip_of_gradients_of_any_layout(name: str, max_norm: float, device: torch.device) -> None:
    grad = view_of(name, device=device).detach()
    param = torch.zeros_like(grad).requires_grad_()
    param.grad = grad
    truth = torch.linalg.vector_norm(grad.double())
    expected = grad.double() * torch.clamp(max_norm / (truth + 1e-6), max=1.0)
    norm = fusedstep.clip_grad_norm_([param], max_norm)
    assert param.grad.data_ptr() == grad.data_ptr()
    torch.testing.assert_close(norm.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(param.grad.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", GAPLESS)
def test_norm_is_taken_in_the_order_of_memory(name: str, device: torch.device) -> None:
    tensor = view_of(name, device=device).detach()
    expected = torch.tensor(total_norm([in_memory_order(tensor)])).to(torch.float32)
    assert_same_bits(fusedstep.get_total_norm(tensor).cpu(), expected, "norm")


@bounded
@given(
    shape=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    steps=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    grad_order=st.permutations(range(4)),
    dtype=st.sampled_from(DTYPES),
)
def test_any_strides(
    shape: list[int], steps: list[int], order: list[int], grad_order: list[int], dtype: torch.dtype
) -> None:
    def strided(dims: list[int]) -> Tensor:
        dims = [d for d in dims if d < len(shape)]
        base = torch.zeros([shape[d] * steps[d] for d in dims], dtype=dtype)
        view = base[tuple(slice(None, None, steps[d]) for d in dims)]
        return view.permute([dims.index(d) for d in range(len(shape))])

    (values,) = make_params(shape, dtype=dtype)
    param = strided(order).copy_(values.detach()).requires_grad_()
    shadow = Shadow(fusedstep.AdamW([param], max_norm=1.0, amsgrad=True))
    for step in range(2):
        set_grads([param], seed=step)
        param.grad = strided(grad_order).copy_(param.grad)
        shadow.step()


def test_gradients_with_a_lazy_negation() -> None:
    """Autograd makes such views of conjugates; their memory holds the opposite sign."""
    lazy, plain = make_params((4,)), make_params((4,))
    lazy[0].grad = torch._neg_view(torch.ones(4))
    plain[0].grad = -torch.ones(4)
    for params in (lazy, plain):
        optimizer = fusedstep.AdamW(params, max_norm=1.0)
        for _ in range(2):
            optimizer.step()
        fusedstep.clip_grad_norm_(params, 0.5)
    assert_same_bits(lazy[0], plain[0], "parameter")
    assert_same_bits(lazy[0].grad.resolve_neg(), plain[0].grad, "clipped gradient")


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
def test_parameters_that_overlap(
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


def bytes_of(tensor: Tensor) -> list[int]:
    """The address of every byte of every element."""
    at = [tensor.data_ptr()]
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        at = [a + i * stride * tensor.element_size() for a in at for i in range(n)]
    return [a + i for a in at for i in range(tensor.element_size())]


@st.composite
def views(draw: st.DrawFn, base: Tensor) -> Tensor:
    """Any strides, or those of a slice with steps of a permuted tensor, which does not overlap."""
    base = draw(st.sampled_from([base, base.view(torch.bfloat16)]))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    if draw(st.booleans()):
        strides = draw(st.lists(st.sampled_from([0, 1, 2, 3, 6, 7, 24]), min_size=4, max_size=4))
    else:
        strides, size = [], 1
        for n in shape:
            strides.append(size * draw(st.integers(1, 3)))
            size = strides[-1] * max(n, 1)
    order = draw(st.permutations(range(len(shape))))
    offset = draw(st.integers(0, 30))
    return base.as_strided([shape[d] for d in order], [strides[d] for d in order], offset)


OVERLAP_BASE = torch.zeros(60_000)


@settings(parent=bounded, max_examples=300)
@given(tensors=st.lists(views(OVERLAP_BASE), min_size=1, max_size=4))
def test_overlap_is_that_of_the_bytes(tensors: list[Tensor]) -> None:
    found = torch.ops.fusedstep.find_overlap(tensors)
    all_bytes = list(map(bytes_of, tensors))
    alone = [i for i, some in enumerate(all_bytes) if len(set(some)) < len(some)]
    pairs = [
        (i, j)
        for i, j in combinations(range(len(tensors)), 2)
        if not set(all_bytes[i]).isdisjoint(all_bytes[j])
    ]
    if alone:
        assert found == (alone[0], alone[0])
    else:
        assert found in (pairs or [(-1, -1)])


class NewMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that ops create, except on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.data_ptr() not in given and not tensor.is_meta:
                self.bytes += tensor.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize(
    "split",
    [
        lambda x: x.chunk(4, dim=-1),
        lambda x: (x[:, ::2], x[:, 1::2]),
        lambda x: x.t().chunk(3),
        lambda x: (x[:, :3], x[::2, 3:], x[1::2, 3:]),
    ],
)
def test_clip_of_interleaved_gradients_copies_them_once(
    split: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    base = torch.randn(64, 96)
    grads = split(base)
    params = [torch.zeros(grad.shape, requires_grad=True) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    expected = base / torch.linalg.vector_norm(base)
    with NewMemory() as new:
        fusedstep.clip_grad_norm_(params, 1.0)
    torch.testing.assert_close(base, expected)
    assert base.nbytes <= new.bytes <= base.nbytes + 100  # some scalars


def test_views_of_one_tensor_that_do_not_overlap_are_taken() -> None:
    base = torch.arange(48.0).reshape(6, 8)
    views = [base[:3, ::2], base[:3, 1::2], base[3:, :4], base[3:, 4:]]
    params = [view.requires_grad_() for view in views]
    set_grads(params)
    before = base.clone()
    fusedstep.AdamW(params, lr=1.0).step()
    assert (base != before).all()
