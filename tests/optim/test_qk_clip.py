"""QK-Clip: the bits of its reference, what it leaves alone, attention that obeys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import fusedstep
from tests.reference.qk_clip import qk_clip
from tests.support import documented
from tests.support.pages import bytes_written, mapped
from tests.support.reads import NoReads, waiting_is_an_error, warm_up
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    bounded,
    laid_out,
    name_of,
    threads,
)

THRESHOLD = 10.0
# Heads, rows of a head, and the rest of the shape: several chunks, odd sizes, a bias, nothing.
SHAPES = [
    (3, 64, (515,)), (4, 1, (7,)), (1, 5, (3, 2)), (8, 16, ()), (2, 3, (0,)), (6, 7, (33,)),
    (5, 0, (3,)), (2, 64, (1024,)),
]  # fmt: skip


def weights_of(
    shapes: list[tuple[int, int, tuple[int, ...]]],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    layout: str = "plain",
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights, and the largest logits of their heads, about half of them above THRESHOLD."""
    generator = torch.Generator().manual_seed(seed)
    weights, logits = [], []
    for heads, head_dim, rest in shapes:
        values = torch.randn(heads * head_dim, *rest, generator=generator).to(device, dtype)
        weights.append(laid_out(values, layout))
        logits.append(torch.randn(heads, generator=generator).abs().mul(15).to(device))
    return weights, logits


def expected_of(weight: Tensor, logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    values = weight.detach().cpu().to(wide).numpy()
    result = qk_clip(values, name_of(weight.dtype), logits.detach().cpu().numpy(), threshold)
    return torch.from_numpy(result).to(weight.dtype)


def assert_clips(weights: list[Tensor], logits: list[Tensor], threshold: float = THRESHOLD) -> None:
    expected = [expected_of(*pair, threshold) for pair in zip(weights, logits, strict=True)]
    assert fusedstep.qk_clip_(weights, logits, threshold) is None
    for i, (weight, wanted) in enumerate(zip(weights, expected, strict=True)):
        assert_same_bits(weight.cpu(), wanted, f"weights[{i}]")


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_of_every_dtype_and_layout(
    dtype: torch.dtype, layout: str, device: torch.device
) -> None:
    weights, logits = weights_of(SHAPES, dtype, device, layout)
    assert_clips(weights, logits)


def test_bits_of_mixed_dtypes_in_one_op(device: torch.device) -> None:
    weights, logits = weights_of(SHAPES * 4, device=device)
    weights = [weight.to(DTYPES[i % 4]) for i, weight in enumerate(weights)]
    with Ops() as ops:
        assert_clips(weights, logits)
    assert ops.names.count("qk_clip_") == 1


class Ops(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the names of the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_bits_are_the_same_for_any_number_of_threads(count: int) -> None:
    for layout in LAYOUTS:
        with threads(count):
            assert_clips(*weights_of(SHAPES, torch.bfloat16, layout=layout))


@bounded
@given(
    shapes=st.lists(
        st.tuples(
            st.integers(1, 9), st.integers(0, 9), st.lists(st.integers(0, 70), max_size=2)
        ).map(lambda s: (s[0], s[1], tuple(s[2]))),
        min_size=1,
        max_size=5,
    ),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    threshold=st.floats(1e-30, 1e30),
    seed=st.integers(0, 1000),
)
def test_bits_of_any_list(
    shapes: list[Any], dtype: torch.dtype, layout: str, threshold: float, seed: int
) -> None:
    assert_clips(*weights_of(shapes, dtype, layout=layout, seed=seed), threshold)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_largest_logits_may_be_any_floating_tensor(
    dtype: torch.dtype, device: torch.device
) -> None:
    (weight,), (logits,) = weights_of([(6, 4, (9,))], device=device)
    given_as = torch.stack([logits, logits], dim=1).to(dtype)[:, 1].requires_grad_()
    expected = expected_of(weight, given_as.detach().float())
    fusedstep.qk_clip_(weight, given_as, THRESHOLD)
    assert_same_bits(weight.cpu(), expected, "weight")
    assert_clips([weight], [torch.tensor(40.0, device=device).expand(6)])


def test_view_by_heads() -> None:
    """Rows of fused weights, [heads, 3, head_dim, width]: whole heads of one row each."""
    fused, other = (weights_of([(6, 4, (9,))], seed=1)[0][0] for _ in range(2))
    logits = torch.tensor([40.0, 3.0])
    fusedstep.qk_clip_(fused.view(2, 3, 4, 9)[:, :2], logits, THRESHOLD)
    other.view(2, 3, 4, 9)[0, :2] *= 0.5
    assert_same_bits(fused, other, "fused")


# --- what it leaves alone -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e30, -1.0, 0.0, THRESHOLD])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_heads_that_no_finite_logit_above_the_threshold_has(
    dtype: torch.dtype, value: float, device: torch.device
) -> None:
    (weight,), _ = weights_of([(3, 8, (40,))], dtype, device)
    weight.view(3, 8, 40)[1, 2, 3] = -0.0
    weight.view(3, 8, 40)[1, 2, 4] = math.inf
    before = weight.clone()
    logits = torch.tensor([4 * THRESHOLD, value, THRESHOLD / 2], device=device)
    fusedstep.qk_clip_(weight, logits, THRESHOLD)
    assert_same_bits(weight[8:], before[8:], "heads left alone")
    assert_same_bits(weight[:8], before[:8] * 0.5, "the head that is scaled")


def test_writes_nothing_but_heads_that_are_scaled(tmp_path: Path) -> None:
    """By the pages that were written."""
    path, heads, head_dim, width = tmp_path / "weight", 8, 64, 512
    values = torch.randn(heads * head_dim * width, generator=torch.Generator().manual_seed(0))
    weight = mapped(path, values).view(heads * head_dim, width)
    logits = torch.full((heads,), THRESHOLD)
    fusedstep.qk_clip_(weight, logits, THRESHOLD)
    assert bytes_written(path) == 0
    logits[3] += 1
    fusedstep.qk_clip_(weight, logits, THRESHOLD)
    assert 0 < bytes_written(path) <= weight.nbytes // heads + 2 * 4096
    assert_same_bits(weight, expected_of(values.view_as(weight), logits), "weight")


def test_a_threshold_of_infinity_scales_nothing() -> None:
    (weight,), _ = weights_of([(2, 3, (4,))])
    before = weight.clone()
    fusedstep.qk_clip_(weight, torch.tensor([1e38, 3.0]), math.inf)
    assert_same_bits(weight, before, "weight")


def test_nothing_to_do() -> None:
    fusedstep.qk_clip_([], [], THRESHOLD)
    fusedstep.qk_clip_(iter([]), iter([]), THRESHOLD)
    fusedstep.qk_clip_(torch.zeros(0, 3), torch.zeros(0), THRESHOLD)
    fusedstep.qk_clip_([torch.zeros(0, 3)], [torch.zeros(2)], THRESHOLD)


# --- autograd, modes ------------------------------------------------------------------------------


def test_version_counters_advance_and_a_stale_backward_raises(device: torch.device) -> None:
    weights, logits = weights_of([(2, 3, (4,)), (2, 2, (4,))], device=device)
    weights = [weight.requires_grad_() for weight in weights]
    loss = (weights[0].sum() * weights[1]).square().sum()
    versions = [weight._version for weight in weights]
    fusedstep.qk_clip_(weights, logits, THRESHOLD)
    assert [weight._version for weight in weights] == [version + 1 for version in versions]
    assert all(weight.is_leaf and weight.requires_grad for weight in weights)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_slices_of_a_parameter_that_has_more_than_queries_and_keys(device: torch.device) -> None:
    (values,), (logits,) = weights_of([(6, 4, (9,))], device=device)
    param = torch.nn.Parameter(values.clone())
    fusedstep.qk_clip_([param[:8], param[8:16]], [logits[:2], logits[2:4]], THRESHOLD)
    expected = torch.cat([expected_of(values[:16], logits[:4]), values[16:].cpu()])
    assert_same_bits(param.cpu(), expected, "parameter")
    assert param._version > 0
    param.sum().backward()
    assert (param.grad == 1).all()


@pytest.mark.parametrize("master", ["float32", "remainder", "correction"])
def test_a_step_starts_from_the_scaled_value(master: str, device: torch.device) -> None:
    """Whatever float32 value a bfloat16 parameter has beside itself."""
    (weight,), _ = weights_of([(2, 8, (64,))], torch.bfloat16, device)
    param = torch.nn.Parameter(weight)
    optimizer = fusedstep.AdamW([param], lr=1e-3, weight_decay=0.0, master=master)
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = param.detach().clone()
    fusedstep.qk_clip_(param, torch.tensor([4 * THRESHOLD, 1.0], device=device), THRESHOLD)
    assert_same_bits(param[:8], before[:8] * 0.5, "the head that is scaled")
    assert_same_bits(param[8:], before[8:], "the other head")
    scaled = param.detach().float()
    optimizer.step()
    moved = scaled - param.detach().float()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=0, atol=0.02)
    moved = moved.mean(dim=1)  # of so many elements roundings cancel
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=0, atol=8e-4)


def test_within_a_compiled_function() -> None:
    (weight,), (logits,) = weights_of([(4, 3, (5,))])
    expected = expected_of(weight, logits)

    @torch.compile(backend="eager")
    def clip(weight: Tensor, logits: Tensor) -> Tensor:
        fusedstep.qk_clip_(weight, logits * 1, THRESHOLD)
        return weight * 1

    assert_same_bits(clip(weight, logits), expected, "weight")


def test_opcheck(device: torch.device) -> None:
    weights, logits = weights_of([(4, 3, (5,)), (2, 2, ())], device=device)
    opcheck(torch.ops.fusedstep.qk_clip_.default, (weights, logits, [3, 2], [0, 0], THRESHOLD))


def test_fake_tensors_are_taken() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fusedstep.qk_clip_(torch.empty(8, 4), torch.empty(2), THRESHOLD)


def test_nothing_is_read_on_the_host() -> None:
    weights, logits = weights_of(SHAPES)
    with NoReads():
        fusedstep.qk_clip_(weights, logits, THRESHOLD)


@pytest.mark.gpu
def test_the_host_does_not_wait() -> None:
    weights, logits = weights_of(SHAPES, device="cuda")
    fusedstep.qk_clip_(weights, logits, THRESHOLD)
    with waiting_is_an_error():
        fusedstep.qk_clip_(weights, logits, THRESHOLD)


@pytest.mark.gpu
def test_a_graph_decides_at_every_replay() -> None:
    weights, logits = weights_of(SHAPES, torch.bfloat16, "cuda")
    warm_up(lambda: fusedstep.qk_clip_(weights, logits, THRESHOLD))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fusedstep.qk_clip_(weights, logits, THRESHOLD)
    for seed in (1, 2):
        fresh, others = weights_of(SHAPES, torch.bfloat16, "cuda", seed=seed)
        for to, values in zip([*weights, *logits], [*fresh, *others], strict=True):
            to.copy_(values)
        graph.replay()
        for i, pair in enumerate(zip(fresh, others, strict=True)):
            assert_same_bits(weights[i].cpu(), expected_of(*pair), f"weights[{i}]")


# --- attention ------------------------------------------------------------------------------------


def logits_of(x: Tensor, query: Tensor, key: Tensor, heads: int, key_heads: int) -> Tensor:
    """[heads, tokens, tokens]: what the softmax of grouped-query attention sees."""
    q, k = (
        (x @ w.mT).view(len(x), n, -1).transpose(0, 1)
        for w, n in ((query, heads), (key, key_heads))
    )
    k = k.repeat_interleave(heads // key_heads, dim=0)
    return q @ k.mT / q.shape[-1] ** 0.5


@pytest.mark.parametrize("key_heads", [8, 2, 1])
def test_logits_shrink_to_the_threshold(key_heads: int) -> None:
    heads, head_dim, width, tokens = 8, 16, 32, 50
    generator = torch.Generator().manual_seed(key_heads)
    x, query, key = (
        torch.randn(rows, width, generator=generator, dtype=torch.float64)
        for rows in (tokens, heads * head_dim, key_heads * head_dim)
    )
    query.view(heads, -1)[::3] *= 0.05  # some heads obey already
    largest = logits_of(x, query, key, heads, key_heads).amax((1, 2))
    threshold = float(largest.median())
    of_keys = largest.view(key_heads, -1).amax(1)
    before = query.clone()
    fusedstep.qk_clip_([query, key], [largest, of_keys], threshold)
    after = logits_of(x, query, key, heads, key_heads).amax((1, 2))
    assert after.max() <= threshold * (1 + 1e-6)
    if key_heads == heads:
        expected = largest.clamp(max=threshold)
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=0)
    low = (largest <= threshold).repeat_interleave(head_dim)
    assert_same_bits(query[low], before[low], "query heads that obey")


def test_latent_attention_scales_rotary_queries_twice() -> None:
    """The rotary part of the keys, which all heads share, stays; that of a query takes it all."""
    heads, head_dim, rotary, tokens = 4, 8, 6, 40
    generator = torch.Generator().manual_seed(0)
    x, query, key, shared = (
        torch.randn(rows, 12, generator=generator, dtype=torch.float64)
        for rows in (tokens, heads * (head_dim + rotary), heads * head_dim, rotary)
    )
    by_head = query.view(heads, head_dim + rotary, 12)

    def logits() -> Tensor:
        q, k = (torch.einsum("tw,hdw->htd", x, w) for w in (by_head, key.view(heads, -1, 12)))
        own = q[..., :head_dim] @ k.mT
        return (own + q[..., head_dim:] @ (x @ shared.mT).mT) / (head_dim + rotary) ** 0.5

    before = logits()
    largest = before.amax((1, 2))
    threshold = float(largest.median())
    fusedstep.qk_clip_([query, key], [largest, largest], threshold)
    fusedstep.qk_clip_(by_head[:, head_dim:], largest, threshold)
    gamma = (threshold / largest).clamp(max=1)
    torch.testing.assert_close(logits(), before * gamma.view(-1, 1, 1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits().amax((1, 2)), largest.clamp(max=threshold))


def test_the_docstring_says_it_all() -> None:
    documented.check(fusedstep.qk_clip_)
