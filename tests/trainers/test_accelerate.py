"""accelerate with a fused optimizer that clips: the bits of a plain loop.

Give `max_norm` to the optimizer and leave `accelerator.clip_grad_norm_` out: the step clips, only
where gradients are complete, and reads the gradients once less.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from fusedstep.optim.distributed import is_dtensor
from tests.support.optimizers import Kind, assert_same_run, every_kind, params_of
from tests.support.training_loop import STEPS, batches, examples, loss_of, network
from tests.trainers.processes import in_processes

accelerate = pytest.importorskip("accelerate", reason="needs the trainers extra: accelerate")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """accelerate keeps one state for the whole process."""
    yield
    forget_state()


def forget_state() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def loader(count: int) -> DataLoader:
    return DataLoader(TensorDataset(*examples(4 * count)), batch_size=4)


def prepared(
    make: Callable[..., Optimizer], count: int = STEPS, **options: Any
) -> tuple[Any, nn.Module, Any, Any]:
    """An Accelerator, and the model, the optimizer and the batches as it hands them back."""
    accelerator = accelerate.Accelerator(cpu=True, **options)
    net = network()
    return accelerator, *accelerator.prepare(net, make(net.parameters()), loader(count))


def train(
    accelerator: Any, model: nn.Module, optimizer: Any, data: Any, clip: float | None = None
) -> list[float]:
    """The loop of accelerate's documentation; the norm of each step."""
    norms = []
    for batch in data:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                norms.append(float(optimizer.optimizer.grad_norm))
    return norms


def plain_loop(
    make: Callable[..., Optimizer],
    count: int = STEPS,
    autocast: torch.dtype | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    wrap: Callable[[nn.Module], nn.Module] = nn.Identity,
    part: tuple[int, int] = (0, 1),
) -> tuple[Optimizer, list[float]]:
    """What the loop above must come to, by hand; `part`: this rank's share of the batches."""
    net = network()
    net = net if wrap is nn.Identity else wrap(net)
    optimizer, norms = make(net.parameters()), []
    for i, batch in enumerate(batches(count)[part[0] :: part[1]]):
        complete = (i + 1) % accumulate == 0
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            loss = loss_of(net, batch)
        (loss / accumulate).backward()
        if complete:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            norms.append(float(optimizer.grad_norm))
    return optimizer, norms


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@every_kind
def test_prepared_is_the_plain_loop(kind: Kind, precision: str, accumulate: int) -> None:
    make = partial(kind.ours, max_norm=1.0)
    options = {"mixed_precision": precision, "gradient_accumulation_steps": accumulate}
    accelerator, model, optimizer, data = prepared(make, **options)
    norms = train(accelerator, model, optimizer, data)
    autocast = torch.bfloat16 if precision == "bf16" else None
    expected, expected_norms = plain_loop(make, autocast=autocast, accumulate=accumulate)
    assert_same_run(optimizer.optimizer, expected)
    assert norms == expected_norms
    assert len(norms) == STEPS // accumulate
    assert max(norms) > 1  # the clip did something


@every_kind
def test_clip_of_accelerate_comes_before_ours(kind: Kind) -> None:
    """With both, `.grad` is rewritten first: the norm that is left is what our clip sees."""
    make = partial(kind.ours, max_norm=0.25)
    run = prepared(make)
    norms = train(*run, clip=0.5)
    expected, expected_norms = plain_loop(make, clip=0.5)
    assert_same_run(run[2].optimizer, expected)
    assert norms == expected_norms == pytest.approx([0.5] * STEPS, rel=1e-4)


@every_kind
def test_saved_state_continues_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    make = partial(kind.ours, max_norm=1.0)
    accelerator, model, optimizer, _ = whole = prepared(make)
    train(*whole)
    accelerator.save_state(tmp_path)
    _, other, resumed, _ = again = prepared(make)
    again[0].load_state(tmp_path)
    for run in (whole, again):
        train(*run[:3], batches(STEPS))
    assert_same_run(resumed.optimizer, optimizer.optimizer)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@every_kind
def test_pickled_wrapper_continues_bit_for_bit(kind: Kind) -> None:
    make = partial(kind.ours, max_norm=1.0)
    run = prepared(make)
    train(*run)
    copied, model = pickle.loads(pickle.dumps((run[2], run[1])))
    assert copied.optimizer.max_norm == 1
    for net, optimizer in ((run[1], run[2]), (model, copied)):
        train(run[0], net, optimizer, batches(STEPS))
    assert_same_run(copied.optimizer, run[2].optimizer)


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_ then step"])
@every_kind
def test_wrapper_of_accelerate_with_a_loss_scale(kind: Kind, unscale: bool) -> None:
    """Its `step_was_skipped` stays False, as with torch's fused: the skip is inside our step."""
    accelerate.Accelerator(cpu=True)  # the wrapper asks for the state that this sets up
    runs = []
    for wrap in (False, True):
        net = network()
        inner = kind.ours(net.parameters(), max_norm=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
        outer = accelerate.optimizer.AcceleratedOptimizer(inner, scaler=scaler) if wrap else None
        for step, batch in enumerate(batches(3)):
            spoil = math.inf if step == 1 else 1.0
            scaler.scale(loss_of(net, batch) * spoil).backward()
            if unscale:
                scaler.unscale_(inner)
            if outer is None:
                scaler.step(inner)
                scaler.update()
                inner.zero_grad()
            else:
                outer.step()
                outer.zero_grad()
                assert not outer.step_was_skipped
        assert scaler.get_scale() == 2.0**14
        runs.append(inner)
    assert_same_run(*runs)


# --- two processes --------------------------------------------------------------------------------

CLIPPING = partial(Kind("AdamW", {"lr": 0.01, "weight_decay": 0.1}).ours, max_norm=0.5)


def part_of_rank() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def replicas() -> None:
    accelerator, model, optimizer, data = prepared(CLIPPING)
    assert isinstance(model, DistributedDataParallel)
    norms = train(accelerator, model, optimizer, data)
    expected, expected_norms = plain_loop(
        CLIPPING, wrap=DistributedDataParallel, part=part_of_rank()
    )
    assert_same_run(optimizer.optimizer, expected)
    assert norms == expected_norms
    assert max(norms) > 0.5


def test_replicas_are_those_of_the_plain_loop() -> None:
    in_processes(2, replicas)


def shard(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """fully_shard as accelerate's plugin does it."""
    policy = MixedPrecisionPolicy(dtype, dtype, dtype)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mp_policy=policy)
    return model


def sharded(precision: str, **options: Any) -> tuple[Any, nn.Module, Any, Any]:
    """The plugin exchanges the parameters of an optimizer that is there already for DTensors."""
    forget_state()
    # accelerate looks at the plugin only where it takes the processes to have GPUs.
    state = accelerate.PartialState(cpu=True)
    state.distributed_type = accelerate.DistributedType.MULTI_GPU
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=1,
        cpu_ram_efficient_loading=False, **options,
    )  # fmt: skip
    run = prepared(CLIPPING, mixed_precision=precision, fsdp_plugin=plugin)
    assert run[0].is_fsdp2
    assert all(map(is_dtensor, params_of(run[2].optimizer)))
    return run


def shards(precision: str) -> None:
    accelerator, model, optimizer, data = sharded(precision)
    norms = train(accelerator, model, optimizer, data)
    bf16 = torch.bfloat16 if precision == "bf16" else None
    expected, expected_norms = plain_loop(
        CLIPPING, autocast=bf16, wrap=partial(shard, dtype=bf16), part=part_of_rank()
    )
    assert_same_run(optimizer.optimizer, expected)
    assert norms == expected_norms
    assert max(norms) > 0.5


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_shards_of_fsdp2_are_those_of_the_plain_loop(precision: str) -> None:
    in_processes(2, shards, precision)


def resumed_shards(form: str, folder: Path) -> None:
    whole = sharded("no", state_dict_type=form)
    train(*whole)
    whole[0].save_state(folder)
    again = sharded("no", state_dict_type=form)
    again[0].load_state(folder)
    for run in (whole, again):
        train(*run)
    assert_same_run(again[2].optimizer, whole[2].optimizer)
    assert whole[2].optimizer.state[params_of(whole[2])[0]]["step"] == 2 * len(whole[3])


@pytest.mark.parametrize("form", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_saved_shards_continue_bit_for_bit(form: str, tmp_path: Path) -> None:
    in_processes(2, resumed_shards, form, tmp_path)
