"""Peers of the step: each installed one computes what torch's loop does; the process of a peer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor

from bench.case import Side, Work, kept_bytes, renew_grads
from bench.peers import PEERS, Peer, child
from bench.peers.steps import arguments
from bench.rounds import Effort, measured
from bench.step import case_of

CPU = torch.device("cpu")
MATRICES = ((64, 96), (128, 64))  # of at least 4096 elements: with fewer, state stays in float32
SHAPES = (*MATRICES, (96,))
# With the usual epsilon, AdamW and Adam would do the same step without a clip.
LARGE = {"eps": 1e-2}
RULES = {
    "adamw": {"lr": 1e-3, "weight_decay": 0.1, **LARGE},
    "adam": {"lr": 1e-3, **LARGE},
    "adam, decay": {"lr": 1e-3, "weight_decay": 0.1, **LARGE},
    "sgd": {"lr": 1.0, "momentum": 0.9},
    "sgd, decay": {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1},
    "rmsprop": {"lr": 1e-3},
    "rmsprop, momentum": {"lr": 1e-3, "momentum": 0.9, "centered": True},
    "adagrad": {"lr": 1e-2},
    "lion": {"lr": 1e-3, "weight_decay": 0.1},
    "muon": {"lr": 0.02, "weight_decay": 0.1},
}
ADAMS = {"adamw", "adam", "adam, decay"}
MOMENTA = {"adamw", "adam", "sgd"}
ONE_AVERAGE = MOMENTA | {"sgd, decay", "rmsprop", "adagrad", "lion"}
DOES = {
    "torch": {"float32": set(RULES), "master": set(RULES)},
    "deepspeed": {"float32": {*ADAMS, "adagrad", "lion"}},
    "torchao": {"int8": ADAMS},
    "bitsandbytes": {"float32": ONE_AVERAGE, "int8": ONE_AVERAGE},
    "optimi": {"float32": {"adamw", "adam", "sgd", "lion"}},
    "heavyball": {"float32": MOMENTA, "bfloat16": MOMENTA},
    "optax": {"float32": set(RULES) - {"adam, decay", "sgd, decay"}},
    "numba": {"float32": {"adamw", "sgd", "sgd, decay", "rmsprop, momentum", "lion"}},
}
MODES = ("float32", "bfloat16", "int8", "master")
# How far a result may be from torch's, relative to how far that moved.
FLOAT32 = 3e-4
MUON = {"torch": 3e-2, "optax": 6e-2}  # products in bfloat16; momentum with a corrected bias
TOLERANCES = {
    "heavyball": 2e-3,  # bias corrections in float32; bfloat16 state
    "torchao, 8-bit": 0.1,
    "torchao, 4-bit": 0.8,
    "torchao, float8": 0.1,
    "bitsandbytes, 8-bit": 0.1,
}
MARKS = {
    "deepspeed": pytest.mark.compiles,
    "torchao": pytest.mark.compiles,
    "heavyball": pytest.mark.compiles,
    "optax": pytest.mark.processes,
    "numba": pytest.mark.processes,
}


def work_of(rule: str, mode: str = "float32", **more: object) -> Work:
    name = rule.partition(",")[0]
    dtype = torch.bfloat16 if mode == "master" else torch.float32
    shapes = MATRICES if name == "muon" else SHAPES
    return Work(name, {**RULES[rule], **more}, mode, True, shapes, dtype)


def loop_of(work: Work) -> list[Tensor]:
    """The parameters after three steps of torch's loop; of Lion's, which torch lacks, by hand."""
    made = work.params(CPU)
    params = [param.detach().float() for param in made]
    first = [param.grad.to(torch.float32, copy=True) for param in made]
    renew_grads(made)
    second = [param.grad.float() for param in made]
    calls = [first, second, second]
    if work.rule == "lion":
        return lion_loop(params, calls, **work.arguments)
    title = {"adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}.get(work.rule, work.rule.title())
    optimizer = getattr(torch.optim, title)(params, **work.arguments)
    for grads in calls:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=False)
        optimizer.step()
    return params


def lion_loop(
    params: list[Tensor], calls: list[list[Tensor]], lr: float, weight_decay: float
) -> list[Tensor]:
    averages = list(map(torch.zeros_like, params))
    for grads in calls:
        norm = torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))
        for param, grad, average in zip(params, grads, averages, strict=True):
            grad = grad / norm.clamp(min=1)
            update = (0.9 * average + 0.1 * grad).sign()
            param.copy_((1 - lr * weight_decay) * param - lr * update)
            average.copy_(0.99 * average + 0.01 * grad)
    return params


def compare(name: str, work: Work, left_out: str = "") -> Iterator[str]:
    """Check what each side of a peer has computed after three calls; the names of these sides."""
    start = [param.detach() for param in work.params(CPU)]
    expected = [param.to(work.dtype) for param in loop_of(work)]
    for side in PEERS[name].sides(work, CPU):
        assert side.provider.lower().startswith(name)
        if side.provider == left_out:
            continue
        assert side.sample(1) > 0
        side.renew_grads()
        assert side.sample(2) > 0
        assert side.state_bytes() > 0 or work.rule == "sgd"
        apart = distance(side.result(), expected) / distance(expected, start)
        limits = [limit for start, limit in TOLERANCES.items() if side.provider.startswith(start)]
        limit = MUON[name] if work.rule == "muon" else (*limits, FLOAT32)[0]
        assert apart <= limit, f"{side.provider}, {work.rule}, {work.mode}: differs by {apart:.2e}"
        side.close()
        yield side.provider


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    pairs = zip(left, right, strict=True)
    return sum(float((a.detach().double() - b.double()).square().sum()) for a, b in pairs) ** 0.5


def skip_without(name: str) -> None:
    for package in PEERS[name].packages:
        try:
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in DOES])
def test_a_peer_computes_what_torch_does_or_has_no_side(name: str, rule: str) -> None:
    skip_without(name)
    for mode in MODES:
        epsilon = {"eps": 1e-8} if name == "heavyball" and "eps" in RULES[rule] else {}
        providers = list(compare(name, work_of(rule, mode, **epsilon), "torch, compiled"))
        assert bool(providers) == (rule in DOES[name].get(mode, ())), (mode, providers)


@pytest.mark.compiles
@pytest.mark.parametrize("rule", ["adamw", "rmsprop, momentum", "muon"])
def test_a_compiled_step_computes_what_the_loop_does(rule: str) -> None:
    assert "torch, compiled" in list(compare("torch", work_of(rule)))


def test_torch_has_each_of_its_ways() -> None:
    names = [side.provider for side in PEERS["torch"].sides(work_of("adamw"), CPU)]
    ways = ("default", "foreach", "fused", "fused with grad_scale", "compiled")
    assert names == [f"torch, {way}" for way in ways]
    many = Work("sgd", {"lr": 1.0}, "float32", False, ((1,),) * 501)
    names = [side.provider for side in PEERS["torch"].sides(many, CPU)]
    assert names == ["torch, default", "torch, foreach", "torch, fused"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in DOES])
def test_an_option_that_a_library_lacks_leaves_it_out(name: str) -> None:
    skip_without(name)
    for mode in MODES:
        assert not list(PEERS[name].sides(work_of("adamw", mode, another=0.5), CPU))


def test_arguments_have_torchs_defaults() -> None:
    work = Work("adamw", {"lr": 0.5}, "float32", True, SHAPES)
    assert arguments(work, "lr", "weight_decay") == {"lr": 0.5, "weight_decay": 1e-2}
    assert arguments(work, "weight_decay") is None


def test_bytes_count_shared_memory_once() -> None:
    a = torch.zeros(6)
    assert (
        kept_bytes([{"step": 1, "a": a, 0: {"b": [a[:2], torch.zeros(3, dtype=torch.int8)]}}]) == 27
    )


def test_deepspeed_does_not_wait_for_a_lock_of_a_killed_run(tmp_path, monkeypatch) -> None:
    skip_without("deepspeed")
    from bench.peers import deepspeed

    monkeypatch.setattr(deepspeed, "BUILT", tmp_path)
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    deepspeed.make_compilable()
    assert not lock.exists()


# --- the process of a peer ---

NUMPY = "tests.support.numpy_peer"


@pytest.fixture
def served() -> Iterator[child.Child]:
    """A process that serves the peer in plain NumPy."""
    process = child.child_of(NUMPY, torch.get_num_threads())
    yield process
    process.end()


@pytest.mark.processes
def test_a_process_serves_one_work_after_another(served: child.Child) -> None:
    for lr in (1.0, 0.25):
        work = Work("sgd", {"lr": lr}, "float32", True, SHAPES)
        (side,) = child.sides(NUMPY, work, CPU)
        start = work.params(CPU)
        assert side.provider == "numpy"
        assert distance(side.result(), [param.detach() for param in start]) == 0
        assert side.sample(1) > 0
        side.renew_grads()
        assert side.sample(2) > 0
        expected = loop_of(work)
        assert distance(side.result(), expected) <= FLOAT32 * distance(start, expected)
        assert side.state_bytes() == 7
        side.close()
        with pytest.raises(RuntimeError, match="KeyError"):
            side.sample(1)
    assert child.child_of(NUMPY, torch.get_num_threads()) is served
    assert served.process.poll() is None


@pytest.mark.processes
def test_a_process_without_this_rule_has_no_side(served: child.Child) -> None:
    assert not list(child.sides(NUMPY, work_of("adamw"), CPU))
    assert not list(child.sides(NUMPY, work_of("sgd"), torch.device("cuda")))


@pytest.mark.processes
def test_what_fails_in_a_process_is_reported(served: child.Child) -> None:
    (side,) = child.sides(NUMPY, work_of("lion"), CPU)
    with pytest.raises(RuntimeError, match="no loop for lion"):
        side.sample(1)
    (side,) = child.sides(NUMPY, work_of("muon"), CPU)
    with pytest.raises(RuntimeError, match=f"{NUMPY} ended with 3"):
        side.sample(1)
    side.close()
    # The next case starts another one.
    (side,) = child.sides(NUMPY, Work("sgd", {"lr": 1.0}, "float32", False, SHAPES), CPU)
    assert side.sample(1) > 0
    child.child_of(NUMPY, torch.get_num_threads()).end()


@pytest.mark.processes
@pytest.mark.parametrize("samples", [0, 4])
def test_a_process_that_ends_in_the_check_or_the_rounds_ends_no_run(
    served: child.Child, samples: int
) -> None:
    def sides(work: Work, device: torch.device) -> Iterator[Side]:
        (side,) = child.sides(NUMPY, work, device)
        assert side.process == served.process.pid
        taken = iter(range(samples))

        def sample(calls: int) -> float:
            if next(taken, None) is None:
                served.process.kill()
            return side.sample(calls)

        yield replace(side, sample=sample)

    work = Work("sgd", {"lr": 1.0}, "float32", True, SHAPES)
    ours, ended = measured(case_of("one", work, [Peer("numpy", (), sides)]), CPU, Effort(0, 7), 9)
    assert (ended.provider, ended.passed, ended.times) == ("numpy", False, [])
    assert ended.check == f"fails: RuntimeError: the process of {NUMPY} ended with -9"
    assert len(ours.times) == 7
