"""Where gradients of shards come from: policies, accumulation, main_grad. Bits of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fusedstep
from fusedstep.optim.distributed import local
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check, of_all_ranks
from tests.distributed.side_by_side import whole
from tests.distributed.twins import Twins
from tests.support.optimizers import OPTIMIZERS, Kind
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits

BFLOAT16 = torch.bfloat16
PARTS = 2  # micro-batches of a rank in a step
ROWS = 2  # of a micro-batch


class Heads(nn.Module):
    """Linear layers over one input, of sizes that no number of ranks divides.

    The loss is linear in the parameters, so small whole numbers as inputs give gradients that are
    whole numbers, whatever the parameters are. Sums of these are exact in bfloat16, in every order.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.Linear(5, size) for size in (7, 11, 1))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [rows, 5] and weights [rows, 11] -> the loss."""
        outputs = [(head(x), weights[:, : head.out_features]) for head in self.heads]
        return sum((output * weight).sum() for output, weight in outputs)


def batch(step: int, rank: int, part: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + part)
    return tuple(
        torch.randint(-3, 4, (ROWS, n), generator=generator).to(torch.float32) for n in (5, 11)
    )


class Exact(Twins):
    """A model in shards and one that is whole, and the gradients of one batch for both."""

    def __init__(
        self,
        ranks: Ranks,
        spread: Callable[[Heads], Any],
        kind: Kind = OPTIMIZERS[0],
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        self.ranks = ranks
        self.alone, self.spread = Heads().to(dtype), spread(Heads().to(dtype))
        super().__init__(
            *(kind.ours(model.parameters(), **options) for model in (self.alone, self.spread))
        )

    def backward(
        self, sync_every_part: bool = False, scales: Sequence[float] = (1.0,) * PARTS
    ) -> None:
        """The mean over the ranks of the sums of their micro-batches, each times its scale."""
        for part, scale in enumerate(scales):
            self.spread.set_requires_gradient_sync(sync_every_part or part == PARTS - 1)
            loss = self.spread(*self._of_model(self.spread, self.ranks.rank, part))
            (loss * scale).backward()
            for rank in range(self.ranks.world):
                loss = self.alone(*self._of_model(self.alone, rank, part))
                (loss * (scale / self.ranks.world)).backward()

    def _of_model(self, model: nn.Module, rank: int, part: int) -> Sequence[Tensor]:
        dtype = next(model.parameters()).dtype
        return [tensor.to(dtype) for tensor in batch(self.steps, rank, part)]

    def update(self) -> None:
        """A step of both, after which a new batch begins."""
        super().update()
        for optimizer in (self.reference, self.optimizer):
            optimizer.zero_grad()

    def check_gradients(self) -> None:
        """They are exact, so what follows tests the optimizer."""
        for p, q in zip(self.spread.parameters(), self.alone.parameters(), strict=True):
            assert_same_bits(whole(p.grad), q.grad, "a gradient")

    def check(self) -> None:
        """The norm as well, which is exact."""
        super().check()
        if self.reference.grad_norm is not None:
            assert_same_on_all_ranks(self.optimizer.grad_norm, "grad_norm")
            assert_same_bits(self.optimizer.grad_norm, self.reference.grad_norm, "grad_norm")


def sharded(**policy: Any) -> Callable[[Heads], Any]:
    """fully_shard of each layer and of the whole."""

    def spread(model: Heads) -> Heads:
        for head in model.heads:
            fully_shard(head, **policy)
        return fully_shard(model, **policy)

    return spread


POLICIES: list[dict[str, Any]] = [
    {},
    {"mp_policy": MixedPrecisionPolicy(param_dtype=BFLOAT16, reduce_dtype=torch.float32)},
    {"mp_policy": MixedPrecisionPolicy(param_dtype=BFLOAT16)},
    {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    {
        "mp_policy": MixedPrecisionPolicy(param_dtype=BFLOAT16, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy(pin_memory=False),
        "reshard_after_forward": False,
    },
]


@check(2, 4)
def policies_give_the_bits_of_one_process(ranks: Ranks) -> None:
    for policy in POLICIES:
        models = Exact(ranks, sharded(**policy), max_norm=5.0)
        for _ in range(3):
            models.backward()
            models.check_gradients()
            models.update()


@check(2)
def every_optimizer_after_gradients_reduced_in_float32(ranks: Ranks) -> None:
    policy = POLICIES[1]
    for kind in OPTIMIZERS:
        models = Exact(ranks, sharded(**policy), kind, max_norm=5.0, ema_decay=0.5)
        for sync_every_part in (False, True, False):
            models.backward(sync_every_part)
            models.check_gradients()
            models.update()


@check(2)
def bfloat16_parameters_with_gradients_reduced_in_float32(ranks: Ranks) -> None:
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    options = {"max_norm": 5.0, "master": "remainder", "ema_decay": 0.9}
    models = Exact(ranks, sharded(mp_policy=policy), dtype=BFLOAT16, **options)
    for _ in range(3):
        models.backward()
        models.check_gradients()
        models.update()


# Older versions of fully_shard give gradients the dtype of their parameters, whatever is asked for.
@check(*((2,) if torch.__version__ >= (2, 15) else ()))
def grad_dtype_of_shards(ranks: Ranks) -> None:
    """Sums that bfloat16 cannot hold."""

    def in_float32(model: Heads) -> Heads:
        for param in model.parameters():
            param.grad_dtype = torch.float32
        return model

    spread = sharded(mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    # Without a norm: squares of such sums are not exact in float32.
    models = Exact(
        ranks, lambda model: spread(in_float32(model)), dtype=BFLOAT16, master="remainder"
    )
    in_float32(models.alone)
    for _ in range(3):
        models.backward(sync_every_part=True, scales=(1024.0, 1.0))
        models.check_gradients()
        grads = [whole(param.grad) for param in models.spread.parameters()]
        assert any((grad != grad.to(BFLOAT16)).any() for grad in grads)
        models.update()


@check(4)
def replicas_of_shards(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    models = Exact(ranks, sharded(mesh=mesh, **POLICIES[1]), max_norm=5.0)
    for _ in range(3):
        models.backward()
        models.check_gradients()
        models.update()


# --- another attribute, and autograd's own float32 gradients --------------------------------------


def accumulate(model: nn.Module) -> None:
    """Adds the gradients to float32 buffers, and forgets them."""
    for param in model.parameters():
        grad = param.grad.to(torch.float32)
        param.main_grad = param.main_grad + grad if hasattr(param, "main_grad") else grad
        param.grad = None


@check(2)
def main_grad_of_shards(ranks: Ranks) -> None:
    """The parts of a batch are added in float32, outside of FSDP."""
    for kind in OPTIMIZERS:
        models = Exact(ranks, sharded(), kind, BFLOAT16, max_norm=5.0, grad_attribute="main_grad")
        for _ in range(3):
            for model in (models.spread, models.alone):
                for param in model.parameters():
                    param.__dict__.pop("main_grad", None)
            for _ in range(2):
                models.backward()
                for model in (models.spread, models.alone):
                    accumulate(model)
            assert isinstance(next(models.spread.parameters()).main_grad, DTensor)
            models.update()


@check(2)
def main_grad_that_some_ranks_lack(ranks: Ranks) -> None:
    """All ranks take part in the norm; what has no buffer is not updated."""
    model = sharded()(Heads())
    params = list(model.parameters())
    optimizer = fusedstep.AdamW(params, max_norm=1.0, grad_attribute="main_grad")
    for steps, missing in enumerate((range(len(params)), [0], [])):
        total = 0.0
        for i, param in enumerate(params):
            if ranks.rank == 0 and i in missing:
                param.main_grad = None
                continue
            here = torch.full_like(local(param), i + 1.0)
            total += float(here.square().sum())
            param.main_grad = DTensor.from_local(
                here, param.device_mesh, param.placements, shape=param.shape,
                stride=param.stride(), run_check=False,
            )  # fmt: skip
        optimizer.step()
        expected = torch.tensor(sum(of_all_ranks(total)), dtype=torch.float64).sqrt().float()
        assert_same_on_all_ranks(optimizer.grad_norm, "grad_norm")
        assert_same_bits(optimizer.grad_norm, expected, f"norm of step {steps}")


@check(2)
def main_grad_is_of_its_parameters_kind(ranks: Ranks) -> None:
    """A plain tensor could be a shard or the whole."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    values = torch.ones(4, 3)
    placed = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
    plain = nn.Parameter(values.clone())
    for param, grad, must, got in (
        (placed, torch.ones(2, 3), "be a DTensor, as its parameter", "a plain tensor"),
        (placed, values, "be a DTensor, as its parameter", "a plain tensor"),
        (plain, placed.detach(), "be a plain tensor, as its parameter", "a DTensor"),
    ):
        for stepped in (False, True):
            optimizer = fusedstep.AdamW([param], max_norm=1.0, grad_attribute="main_grad")
            if stepped:
                param.main_grad = torch.ones_like(param)
                optimizer.step()
            before = whole(param).clone()
            param.main_grad = grad
            with refuses("AdamW", "params[0].main_grad", must, got, TypeError):
                optimizer.step()
            assert torch.equal(whole(param), before)


@check(2)
def main_grad_with_sums_pending(ranks: Ranks) -> None:
    """As sequence parallelism leaves gradients: each rank has a summand."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    values = torch.arange(12.0).view(4, 3)
    alone = nn.Parameter(values.clone())
    reference = fusedstep.AdamW([alone], lr=0.1, max_norm=5.0)
    for placement in (Shard(0), Replicate()):
        param = nn.Parameter(distribute_tensor(values, mesh, [placement]))
        optimizer = fusedstep.AdamW([param], lr=0.1, max_norm=5.0, grad_attribute="main_grad")
        with torch.no_grad():
            alone.copy_(values)
        reference.state.clear()
        for step in range(3):
            summands = [torch.full((4, 3), step + 2.0 * rank) for rank in range(ranks.world)]
            param.main_grad = DTensor.from_local(summands[ranks.rank], mesh, [Partial()])
            alone.grad = sum(summands)
            optimizer.step()
            reference.step()
            assert_same_bits(optimizer.grad_norm, reference.grad_norm, "grad_norm")
            assert_same_bits(whole(param), alone, "the parameter")


@check(2)
def grad_dtype_of_dtensors(ranks: Ranks) -> None:
    """Autograd sums the gradients of bfloat16 DTensors in float32: nothing is lost."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    values = torch.linspace(-1, 1, 12).view(4, 3).to(BFLOAT16)
    parts = [1.0] + [2.0**-9] * 20  # of which a bfloat16 sum keeps the first
    for placement in (Shard(0), Replicate()):
        param = nn.Parameter(distribute_tensor(values, mesh, [placement]))
        alone = nn.Parameter(values.clone())
        alone.grad_dtype = None
        param.grad_dtype = torch.float32
        options = {"lr": 0.1, "max_norm": 1.0, "master": "remainder"}
        optimizer, reference = (fusedstep.AdamW([p], **options) for p in (param, alone))
        for _ in range(3):
            for part in parts:
                (param * part).sum().backward()
            alone.grad = torch.full((4, 3), sum(parts))
            assert_same_bits(whole(param.grad), alone.grad, "the gradient")
            for one in (optimizer, reference):
                one.step()
                one.zero_grad()
            assert_same_bits(whole(param), alone, "the parameter")
            assert_same_bits(optimizer.grad_norm, reference.grad_norm, "grad_norm")
