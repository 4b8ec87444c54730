"""lightning.Trainer and Fabric with a fused optimizer that clips: the bits of a plain loop.

Leave Lightning's own `gradient_clip_val` unset and give `max_norm` to the optimizer instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from fusedstep.optim.distributed import is_dtensor
from tests.support.optimizers import Kind, assert_same_run, every_kind, params_of
from tests.support.training_loop import STEPS, Batch, batches, examples, loss_of, network, plain_run
from tests.trainers.processes import in_processes

lightning = pytest.importorskip("lightning.pytorch", reason="needs the trainers extra: lightning")
fabric = pytest.importorskip("lightning.fabric", reason="needs the trainers extra: lightning")
LightningModule: Any = lightning.LightningModule

# Warnings of Lightning about itself, not about fusedstep.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.*LeafSpec")


class Module(LightningModule):
    """The regression; keeps the norm of every step, by the name a user would read it under."""

    def __init__(self, make: Callable[..., Optimizer], automatic: bool = True) -> None:
        super().__init__()
        self.net = network()
        self.make = make
        self.automatic_optimization = automatic
        self.norms: list[Tensor | None] = []

    def training_step(self, batch: Batch, _: int) -> Tensor | None:
        if self.automatic_optimization:
            return loss_of(self.net, batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss_of(self.net, batch))
        optimizer.step()
        self.lr_schedulers().step()
        return None

    def on_train_batch_end(self, *_: Any) -> None:
        self.norms.append(self.optimizers().grad_norm)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make(self.net.parameters())
        rates = {"scheduler": ExponentialLR(optimizer, 0.8), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": rates}


def fit(module: Module, folder: Path, epochs: int = 1, **options: Any) -> Any:
    """The Trainer, done; nothing is written and nothing is shown."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    resume, part = options.pop("ckpt_path", None), options.pop("part", slice(None))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder,
        **dict.fromkeys(quiet, False) | {"devices": 1} | options,
    )  # fmt: skip
    data = TensorDataset(*(tensor[part] for tensor in examples(4 * STEPS)))
    loader = DataLoader(data, batch_size=4)
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True if resume else None)
    return trainer


def plain_loop(
    make: Callable[..., Optimizer],
    autocast: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    clip: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Optimizer, list[float]]:
    """What the Trainer must come to, and the norms on the way."""
    net = network(dtype=dtype)
    optimizer = make(net.parameters())
    schedule = ExponentialLR(optimizer, 0.8)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    norms = []
    for batch in batches(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast, cache_enabled=False) if autocast else nullcontext():
            loss = loss_of(net, [tensor.to(dtype) for tensor in batch])
        scaler.scale(loss).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        norms.append(float(optimizer.grad_norm))
    return optimizer, norms


PRECISIONS = {
    "32-true": {},
    "64-true": {"dtype": torch.float64},
    "bf16-true": {"dtype": torch.bfloat16},
    "bf16-mixed": {"autocast": torch.bfloat16},
}


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("precision", PRECISIONS)
@every_kind
def test_fit_is_the_plain_loop(kind: Kind, precision: str, automatic: bool, tmp_path: Path) -> None:
    make = partial(kind.ours, max_norm=1.0)
    module = Module(make, automatic)
    trainer = fit(module, tmp_path, precision=precision)
    expected, norms = plain_loop(make, **PRECISIONS[precision])
    assert_same_run(trainer.optimizers[0], expected)
    assert list(map(float, module.norms)) == norms
    assert max(norms) > 1  # the clip did something


@every_kind
def test_loss_scale_is_divided_out_in_the_step(kind: Kind, tmp_path: Path) -> None:
    """Lightning leaves the scale in the gradients of optimizers that say they take it out."""
    make = partial(kind.ours, max_norm=1.0)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=2) for _ in "ab"]
    plugin = lightning.plugins.MixedPrecision("16-mixed", "cpu", scalers[0])
    trainer = fit(Module(make), tmp_path, plugins=[plugin])
    expected, norms = plain_loop(make, autocast=torch.float16, scaler=scalers[1])
    assert_same_run(trainer.optimizers[0], expected)
    assert scalers[0].state_dict() == scalers[1].state_dict()
    assert 0 < sum(map(math.isfinite, norms)) < STEPS  # some steps overflowed and were skipped


@every_kind
def test_accumulated_gradients(kind: Kind, tmp_path: Path) -> None:
    make = partial(kind.ours, max_norm=1.0)
    trainer = fit(Module(make), tmp_path, accumulate_grad_batches=2)
    net = network()
    optimizer = make(net.parameters())
    schedule = ExponentialLR(optimizer, 0.8)
    for i, batch in enumerate(batches(STEPS)):
        (loss_of(net, batch) / 2).backward()
        if i % 2:
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert_same_run(trainer.optimizers[0], optimizer)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@every_kind
def test_resumed_fit_continues_bit_for_bit(kind: Kind, precision: str, tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> Any:
        module = Module(partial(kind.ours, max_norm=1.0))
        every_epoch = lightning.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        options |= {"callbacks": [every_epoch], "enable_checkpointing": True}
        return fit(module, tmp_path, epochs=2, precision=precision, **options)

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "epoch=0.ckpt")
    assert_same_run(resumed.optimizers[0], whole.optimizers[0])
    assert len(resumed.lightning_module.norms) == STEPS  # of the second epoch alone


@every_kind
def test_clip_of_lightning_comes_before_ours(kind: Kind, tmp_path: Path) -> None:
    """With both set, `.grad` is rewritten first: the norm that is left is what our clip sees."""
    make = partial(kind.ours, max_norm=0.25)
    module = Module(make)
    trainer = fit(module, tmp_path, gradient_clip_val=0.5)
    expected, norms = plain_loop(make, clip=0.5)
    assert_same_run(trainer.optimizers[0], expected)
    assert list(map(float, module.norms)) == norms == pytest.approx([0.5] * STEPS, rel=1e-4)


@every_kind
def test_clip_of_lightning_is_refused_under_mixed_precision(kind: Kind, tmp_path: Path) -> None:
    """As with torch's fused optimizers: Lightning takes the gradients to be scaled still."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Module(kind.ours), tmp_path, precision="bf16-mixed", gradient_clip_val=1.0)


@every_kind
def test_fabric_is_the_plain_loop(kind: Kind) -> None:
    one = fabric.Fabric(accelerator="cpu", devices=1)
    net = network()
    optimizer = kind.ours(net.parameters(), max_norm=1.0)
    module, wrapped = one.setup(net, optimizer)
    for batch in batches(STEPS):
        wrapped.zero_grad()
        one.backward(loss_of(module, batch))
        wrapped.step()
    assert wrapped.grad_norm.item() == optimizer.grad_norm.item()
    assert_same_run(optimizer, plain_run(kind))


# --- two processes --------------------------------------------------------------------------------

SHAPES = {"FSDP2": (2, 1), "tensor parallelism": (1, 2)}  # (data, tensor) of the mesh
CLIPPING = partial(Kind("AdamW", {"lr": 0.01, "weight_decay": 0.1}).ours, max_norm=0.5)


def spread(net: Any, mesh: Any) -> Any:
    """Tensor parallelism along one dimension of Lightning's mesh, FSDP2 along the other."""
    if mesh["tensor_parallel"].size() > 1:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(net, mesh["tensor_parallel"], plan)
    if mesh["data_parallel"].size() > 1:
        for module in (net[0], net[2], net):
            fully_shard(module, mesh=mesh["data_parallel"])
    return net


class Spread(Module):
    """The regression as ModelParallelStrategy wants it."""

    def configure_model(self) -> None:
        spread(self.net, self.device_mesh)


def spread_by_hand(shape: tuple[int, int], part: slice) -> tuple[Optimizer, list[float]]:
    """The same in a plain loop."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel"))
    net = spread(network(), mesh)
    optimizer = CLIPPING(net.parameters())
    schedule, norms = ExponentialLR(optimizer, 0.8), []
    for batch in zip(*(tensor[part].split(4) for tensor in examples(4 * STEPS)), strict=True):
        optimizer.zero_grad()
        loss_of(net, list(batch)).backward()
        optimizer.step()
        schedule.step()
        norms.append(float(optimizer.grad_norm))
    return optimizer, norms


def model_parallel(shape: tuple[int, int], sharded_files: bool, folder: Path) -> None:
    """Two epochs; the same from the checkpoint after the first; and the first by hand."""
    # Lightning's own sampler would shuffle.
    part = slice(dist.get_rank() % shape[0], None, shape[0])

    def run(into: Path, epochs: int = 2, **options: Any) -> Any:
        strategy = lightning.strategies.ModelParallelStrategy(
            *shape, save_distributed_checkpoint=sharded_files
        )
        every = lightning.callbacks.ModelCheckpoint(into, "{epoch}", save_top_k=-1)
        options |= {"callbacks": [every], "enable_checkpointing": True}
        options |= {"part": part, "use_distributed_sampler": False, "devices": 2}
        return fit(Spread(CLIPPING), folder, epochs, strategy=strategy, **options)

    first = run(folder / "first", epochs=1)
    expected, norms = spread_by_hand(shape, part)
    assert all(map(is_dtensor, params_of(expected)))
    assert_same_run(first.optimizers[0], expected)
    assert list(map(float, first.lightning_module.norms)) == norms
    assert max(norms) > 0.5
    whole = run(folder / "whole")
    resumed = run(folder / "resumed", ckpt_path=folder / "whole" / "epoch=0.ckpt")
    assert_same_run(resumed.optimizers[0], whole.optimizers[0])
    assert len(resumed.lightning_module.norms) == len(norms)  # of the second epoch alone


@pytest.mark.parametrize("sharded_files", [True, False], ids=["shards", "one file"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_model_parallel_strategy_is_the_plain_loop(
    shape: tuple[int, int], sharded_files: bool, tmp_path: Path
) -> None:
    """FSDPStrategy, which is FSDP1, refuses CPUs; this one takes them."""
    in_processes(2, model_parallel, shape, sharded_files, tmp_path)
