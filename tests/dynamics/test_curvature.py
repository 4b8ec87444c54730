"""The largest eigenvalues of Hessians against known spectra, dense eigenvalues and ARPACK."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from fusedstep.dynamics import Eigenpairs, hessian_top_eigenvalues, sharpness
from tests.dynamics.problems import dense_hessian, network, quadratic
from tests.support.refusals import Snapshot, refuses

F64 = torch.float64
SPECTRA = {
    "distinct": torch.arange(40.0, 0, -1, dtype=F64),
    "repeated": torch.tensor([5.0] * 3 + [2.0] * 30, dtype=F64),
    "negative": torch.tensor([-1.0, -2.0, -2.0, *range(-60, -3)], dtype=F64),
    "indefinite": torch.linspace(-100, 1, 80, dtype=F64),
    "clustered": torch.cat([1 + torch.tensor([3e-6, 2e-6, 1e-6]), torch.linspace(0, 1, 60)]).to(
        F64
    ),
    "zero": torch.zeros(7, dtype=F64),
    "one": torch.full((50,), 3.0, dtype=F64),
    "small": torch.tensor([2.0, 7.0], dtype=F64),
    "geometric": torch.logspace(8, -8, 100, dtype=F64),
}


def assert_pairs(
    pairs: Eigenpairs, matrix: torch.Tensor, k: int, rtol: float, tol: float = 1e-8
) -> None:
    """The k largest eigenvalues of `matrix`, with orthonormal eigenvectors."""
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:k]
    size = torch.linalg.eigvalsh(matrix).abs().max()
    assert pairs.values.dtype == F64
    assert pairs.values.shape == (k,)
    assert (pairs.values - expected).abs().max() <= rtol * size
    vectors = torch.stack([torch.cat([part.reshape(-1) for part in v]) for v in pairs.vectors])
    assert (vectors @ vectors.T - torch.eye(k, dtype=F64)).abs().max() < 1e-12
    residuals = vectors @ matrix - pairs.values[:, None] * vectors
    assert residuals.norm(dim=1).max() <= 1.1 * tol * size


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name: str, k: int) -> None:
    loss_fn, params, matrix = quadratic(SPECTRA[name])
    k = min(k, len(matrix))
    assert_pairs(hessian_top_eigenvalues(loss_fn, params, k), matrix, k, 1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_every_eigenvalue(seed: int) -> None:
    loss_fn, params, matrix = quadratic(torch.linspace(-3, 3, 11, dtype=F64))
    assert_pairs(hessian_top_eigenvalues(loss_fn, params, 11, seed=seed), matrix, 11, 1e-13)


@pytest.mark.parametrize("products", ["autograd", "differences"])
@pytest.mark.parametrize("k", [1, 3])
def test_dense_eigenvalues_of_a_network(k: int, products: str) -> None:
    model, loss_fn = network(F64)
    params = list(model.parameters())
    matrix = dense_hessian(loss_fn, params)
    pairs = hessian_top_eigenvalues(loss_fn, params, k, products=products)
    assert_pairs(pairs, matrix, k, *((1e-12,) if products == "autograd" else (1e-8, 1e-6)))


def test_arpack() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    model, loss_fn = network(F64)
    params = list(model.parameters())
    matrix = dense_hessian(loss_fn, params).numpy()
    expected = linalg.eigsh(matrix, k=5, which="LA", return_eigenvectors=False)[::-1]
    values = hessian_top_eigenvalues(loss_fn, params, 5).values.tolist()
    assert values == pytest.approx(list(expected), rel=1e-10)


def test_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(16, 4, dtype=F64), torch.randint(3, (16,))
    params = list(model.parameters())
    operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
    if hasattr(operator, "to_scipy"):
        operator = operator.to_scipy()
    expected = linalg.eigsh(operator, k=2, which="LA", return_eigenvectors=False)[::-1]
    values = hessian_top_eigenvalues(lambda: cross_entropy(model(x), y), params, 2).values
    assert values.tolist() == pytest.approx(list(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("products", ["autograd", "differences"])
def test_lower_precision(dtype: torch.dtype, products: str) -> None:
    if dtype == torch.bfloat16 and products == "differences":
        pytest.skip("refused")
    model, loss_fn = network(dtype)
    exact, exact_loss = network(F64)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    expected = dense_hessian(exact_loss, list(exact.parameters()))
    value = sharpness(loss_fn, list(model.parameters()), products=products)
    rtol = 0.03 if dtype == torch.bfloat16 else {"autograd": 1e-6, "differences": 1e-3}[products]
    assert value == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=rtol)


@pytest.mark.parametrize("products", ["autograd", "differences"])
def test_micro_batches_are_the_whole_batch(products: str) -> None:
    model, _ = network(F64)
    params = list(model.parameters())
    torch.manual_seed(4)
    x, y = torch.randn(12, 4, dtype=F64), torch.randn(12, 2, dtype=F64)

    def loss_of(part: slice):
        return lambda: ((model(x[part]) - y[part]) ** 2).mean()

    parts = [loss_of(slice(i, i + 4)) for i in (0, 4, 8)]
    whole = hessian_top_eigenvalues(loss_of(slice(None)), params, 2)
    pieces = hessian_top_eigenvalues(parts, params, 2, products=products)
    assert pieces.values.tolist() == pytest.approx(whole.values.tolist(), rel=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_preconditioner(k: int) -> None:
    model, loss_fn = network(F64)
    params = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    diagonals = [torch.rand(p.shape, generator=generator, dtype=F64) + 0.01 for p in params]
    root = torch.cat([d.reshape(-1) for d in diagonals]).rsqrt()
    matrix = root[:, None] * dense_hessian(loss_fn, params) * root
    pairs = hessian_top_eigenvalues(loss_fn, params, k, preconditioner=diagonals)
    assert_pairs(pairs, matrix, k, 1e-12)


def test_warm_start_takes_fewer_products() -> None:
    counts = []

    def counted():
        counts[-1] += 1
        return loss_fn()

    loss_fn, params, _ = quadratic(torch.linspace(0, 1, 400, dtype=F64) ** 2)
    start = None
    for _ in range(2):
        counts.append(0)
        pairs = hessian_top_eigenvalues([counted, counted], params, 2, start=start)
        start = pairs.vectors
    assert pairs.values[0] == pytest.approx(1, rel=1e-12)
    assert counts[1] < counts[0] / 3


def test_warm_start_finds_what_has_overtaken() -> None:
    """The start is an eigenvector still, but no longer the first."""
    before = torch.linspace(0, 1, 200, dtype=F64)
    before[3] = 5
    loss_fn, params, _ = quadratic(before, mixed=False)
    start = hessian_top_eigenvalues(loss_fn, params).vectors
    assert abs(start[0][0].reshape(-1)[3]) == pytest.approx(1)
    after = before.clone()
    after[7] = 6
    loss_fn, params, matrix = quadratic(after, mixed=False)
    assert_pairs(hessian_top_eigenvalues(loss_fn, params, start=start), matrix, 1, 1e-12)


def test_sharpness_of_the_edge_of_a_cubic() -> None:
    w = torch.tensor([2.0, -1.0], dtype=F64, requires_grad=True)
    assert sharpness(lambda: (w**3).sum(), [w]) == pytest.approx(12)


def test_a_linear_loss_has_no_curvature() -> None:
    w = torch.ones(5, dtype=F64, requires_grad=True)
    unused = torch.ones(3, dtype=F64, requires_grad=True)
    pairs = hessian_top_eigenvalues(lambda: w.sum(), [w, unused], k=3)
    assert pairs.values.tolist() == [0, 0, 0]


@pytest.mark.parametrize("products", ["autograd", "differences"])
def test_leaves_everything_as_it_was(products: str) -> None:
    model, _ = network(torch.float32)
    model = nn.Sequential(model, nn.Dropout(0.5)).train()
    x = torch.randn(6, 4)
    loss_fn = lambda: (model(x) ** 2).mean()  # noqa: E731
    loss_fn().backward()
    params = list(model.parameters())
    bits = [p.detach().clone() for p in params]
    grads = [p.grad.clone() for p in params]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    values = [sharpness(loss_fn, params, products=products) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert values[0] > 0
    assert model.training
    assert all(p.requires_grad for p in params)
    assert all(torch.equal(p, bit) for p, bit in zip(params, bits, strict=True))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))


def test_dropout_is_the_same_in_every_product() -> None:
    """So the operator is symmetric; with other masks each time there is no convergence."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1)).double()
    x = torch.randn(32, 4, dtype=F64)
    loss_fn = lambda: (model(x) ** 2).mean()  # noqa: E731
    params = list(model.parameters())
    one = sharpness(loss_fn, params)
    assert sharpness([loss_fn, loss_fn], params) == pytest.approx(one, rel=1e-10)


def test_attention_without_second_derivatives() -> None:
    torch.manual_seed(0)
    w = torch.randn(3, 8, 8, requires_grad=True)
    x = torch.randn(1, 2, 6, 8)

    def loss_fn(math_only: bool = False):
        q, k, v = (x @ part for part in w)
        backends = [torch.nn.attention.SDPBackend.MATH if math_only else FLASH]
        with torch.nn.attention.sdpa_kernel(backends):
            return (scaled_dot_product_attention(q, k, v) ** 2).mean()

    FLASH = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    message = "^sharpness: products must be 'differences' for a loss without second derivatives, "
    with pytest.raises(RuntimeError, match=message):
        sharpness(loss_fn, [w])
    expected = sharpness(lambda: loss_fn(True), [w])
    assert sharpness(loss_fn, [w], products="differences") == pytest.approx(expected, rel=3e-3)


def test_between_forward_and_backward_of_the_run() -> None:
    model, loss_fn = network(torch.float64)
    loss = loss_fn()
    sharpness(loss_fn, list(model.parameters()), products="differences")
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss_fn().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


def test_differences_restore_after_an_error() -> None:
    w = torch.ones(3, requires_grad=True)
    calls = []

    def loss_fn():
        calls.append(w.detach().clone())
        if len(calls) > 1:
            raise ArithmeticError("no loss")
        return (w**2).sum()

    with pytest.raises(ArithmeticError):
        sharpness([loss_fn, loss_fn], [w], products="differences")
    assert not torch.equal(calls[0], torch.ones(3))
    assert torch.equal(w.detach(), torch.ones(3))


def test_no_convergence_says_what_is_left() -> None:
    """A loss with new noise each time is no quadratic."""
    noise = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.ones(40, dtype=F64))]
    noisy = lambda: (params[0] ** 2 * torch.rand(40, generator=noise)).sum()  # noqa: E731
    message = "^sharpness: no convergence after 2000 products: eigenvalues .*, residuals "
    with pytest.raises(RuntimeError, match=message):
        sharpness([noisy, noisy], params)


W = torch.ones(3, requires_grad=True)
LOSS = lambda: (W**2).sum()  # noqa: E731
REFUSED = [
    ({"loss_fn": LOSS()}, "loss_fn", "be a function .*", "Tensor", TypeError),
    ({"loss_fn": []}, "loss_fn", "have an entry", "none", ValueError),
    ({"loss_fn": lambda: 1.0}, "loss_fn()", "be a tensor", "float", TypeError),
    ({"loss_fn": lambda: W**2}, "loss_fn()", "be a floating-point scalar", ".*3.*", ValueError),
    ({"loss_fn": lambda: W.detach().sum()}, "loss_fn()", "depend on params", ".*", ValueError),
    ({"loss_fn": lambda: W.sum() / 0}, "loss_fn()", "be finite", "inf", ValueError),
    ({"loss_fn": [LOSS, lambda: W.sum() * math.nan]}, "loss_fn[1]()", "be finite", "nan",
     ValueError),
    ({"loss_fn": lambda: (W - 1).abs().pow(1.5).sum()}, "loss_fn",
     "have finite second derivatives", "NaN or infinity", ValueError),
    ({"params": W}, "params", "be a list of tensors", "Tensor", TypeError),
    ({"params": []}, "params", "have an entry", "none", ValueError),
    ({"params": [W, 1.0]}, "params[1]", "be a tensor", "float", TypeError),
    ({"params": [torch.ones(3)]}, "params[0]", "require a gradient", ".*=False", ValueError),
    ({"params": [W, W]}, "params[1]", "appear once", ".*", ValueError),
    ({"params": [torch.ones(2, requires_grad=True)]}, "loss_fn", "depend on params", ".*",
     ValueError),
    ({"k": 0}, "k", "be at least 1", "0", ValueError),
    ({"k": 4}, "k", "be at most 3, the number of elements", "4", ValueError),
    ({"k": 1.0}, "k", "be an int", "float 1.0", TypeError),
    ({"seed": -1}, "seed", "be at least 0 .*", "-1", ValueError),
    ({"products": "exact"}, "products", "be 'autograd' or 'differences'", "'exact'", ValueError),
    ({"tol": 0.0}, "tol", "be above 0", "0.0", ValueError),
    ({"tol": math.nan}, "tol", "be 0 or more", "nan", ValueError),
    ({"preconditioner": torch.ones(3)}, "preconditioner", "be a list .*", "Tensor", TypeError),
    ({"preconditioner": []}, "preconditioner", "have a tensor for each of 1 .*", "0", ValueError),
    ({"preconditioner": [torch.ones(2)]}, "preconditioner[0]", r"have shape \(3,\)", ".*",
     ValueError),
    ({"preconditioner": [torch.tensor([1.0, 0.0, 1.0])]}, "preconditioner[0]",
     "be finite and above 0", "0.0", ValueError),
    ({"preconditioner": [torch.tensor([1.0, math.nan, 1.0])]}, "preconditioner[0]",
     "be finite and above 0", "nan", ValueError),
    ({"start": [[torch.ones(2)]]}, r"start[0][0]", r"have shape \(3,\)", ".*", ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), REFUSED)
def test_refusals(changes, argument, must, got, kind):
    before = Snapshot([W])
    with refuses("hessian_top_eigenvalues", argument, must, got, kind):
        hessian_top_eigenvalues(**({"loss_fn": LOSS, "params": [W]} | changes))
    before.check()


def test_differences_refuse_half_precision() -> None:
    w = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    must = "be float32 or float64 for products='differences'"
    with refuses("sharpness", "params[0]", must, "torch.bfloat16", TypeError):
        sharpness(lambda: (w**2).sum(), [w], products="differences")
