"""What is measured: a case, the sides that do its work, and the work of an optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bench.measure import Call, cold_timer_of

MAX_NORM = 1.0
PERIOD = 65_537  # of the check's second gradients
Shape = tuple[int, ...]
Seconds = Callable[[int], float]  # of so many calls in a row


def nothing() -> None:
    """What a side without a process does at its end."""


def no_bytes() -> int:
    """What a side without state keeps."""
    return 0


@dataclass(frozen=True)
class Side:
    """One way to do a case's work.

    A provider's name begins with its peer's name in `bench.peers`, in upper or lower case.
    """

    provider: str  # "fusedstep", "torch, fused", "DeepSpeed CPUAdam"
    sample: Seconds  # makes and times that many calls
    # What the calls so far have computed: parameters, a norm, a solution; a copy or not. Before
    # the first call: what they start from, or an empty list where every call computes the same.
    result: Callable[[], list[Tensor]]
    state_bytes: Callable[[], int] = no_bytes  # kept between calls, all told; asked after the first
    peak_bytes: Callable[[], int] = no_bytes  # of a process that does nothing else; 0: not measured
    close: Callable[[], None] = nothing  # ends its process
    process: int = 0  # the number of the one in which it works; 0: this one
    # Gives a step other gradients, as `renew_grads`; None: to the parameters that `result` returns.
    renew: Callable[[], None] | None = None

    def renew_grads(self) -> None:
        """Gives a step the second gradients of the check."""
        if self.renew:
            self.renew()
        else:
            renew_grads(self.result())


class NotMade(Exception):
    """A peer, by its name, has failed to make a side; the cause is what its library raised."""


def side_of(
    provider: str,
    call: Call,
    device: torch.device,
    result: Callable[[], list[Tensor]],
    state_bytes: Callable[[], int] = no_bytes,
) -> Side:
    """A side in this process: on a GPU, its calls find a cold L2 cache."""
    return Side(provider, partial(cold_timer_of(device), call), result, state_bytes)


def side_of_function(
    provider: str,
    function: Callable[[], Tensor],
    device: torch.device,
    start: Tensor | None = None,
    beside: Sequence[Tensor] = (),
) -> Side:
    """A side of which every call computes the same anew, from `start`; the latest is kept.

    beside: what a call must leave as it is; part of the result.
    """
    kept = [] if start is None else [start]

    def call() -> None:
        kept[:] = [function()]

    return side_of(provider, call, device, lambda: [*kept, *beside] if kept else [])


def grads_of(params: list[Tensor]) -> list[Tensor]:
    """Their gradients, without those of parameters that have none."""
    return [param.grad for param in params if param.grad is not None]


def tensors_in(value: object) -> Iterator[Tensor]:
    """Those in nested containers; of a tensor that is made of others, these."""
    if is_traceable_wrapper_subclass(value):
        yield from tensors_in([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(value.values())
    elif isinstance(value, (list, tuple, ValuesView)):
        for item in value:
            yield from tensors_in(item)


def kept_bytes(kept: object) -> int:
    """Of all tensors in there; those that share their memory count once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(kept))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def random_params(
    shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> list[Tensor]:
    """Normally distributed parameters; the norm of their gradients is about twice MAX_NORM.

    The numbers come from the CPU's generator: the same in every process and on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = 2 * MAX_NORM / math.sqrt(max(1, sum(map(math.prod, shapes))))
    params = []
    for shape in shapes:
        param, grad = (
            torch.empty(shape, dtype=dtype).normal_(generator=generator) for _ in range(2)
        )
        param = param.to(device).requires_grad_()
        param.grad = grad.mul_(scale).to(device)
        params.append(param)
    return params


def second_grads(params: Sequence[Tensor]) -> Iterator[Tensor]:
    """Other gradients, unlike the first in size and sign: their norm is half of MAX_NORM.

    The same numbers again and again, for speed, with a prime period: no rows of a matrix are equal.
    """
    generator = torch.Generator().manual_seed(1)
    scale = MAX_NORM / 2 / math.sqrt(max(1, sum(param.numel() for param in params)))
    numbers = torch.empty(PERIOD).normal_(generator=generator).mul_(scale)
    for param in params:
        times = math.ceil(param.numel() / PERIOD)
        yield numbers.to(param.device, param.dtype).repeat(times)[: param.numel()].view_as(param)


@torch.no_grad()
def renew_grads(params: Sequence[Tensor]) -> None:
    """Overwrites the gradients in place, for steps may have kept their addresses."""
    for param, grad in zip(params, second_grads(params), strict=True):
        assert param.grad is not None
        param.grad.copy_(grad)


@dataclass(frozen=True)
class Work:
    """What a step has to do; peers make sides of it."""

    rule: str  # a key of bench.step_cases.RULES
    arguments: Mapping[str, Any]  # lr, betas, weight_decay, momentum ... by torch's names
    # How state is stored: "float32", "bfloat16" or "int8"; or "master": bfloat16 parameters with
    # float32 state, which are the rounded copy of a float32 master.
    mode: str
    clip: bool  # the gradients by their global norm to MAX_NORM, before the update
    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def elements(self) -> int:
        """Of all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def is_float32(self) -> bool:
        """Parameters and state."""
        return (self.mode, self.dtype) == ("float32", torch.float32)

    def params(self, device: torch.device) -> list[Tensor]:
        """The same parameters with the same gradients in every process."""
        return random_params(self.shapes, self.dtype, device, self.seed)


@dataclass(frozen=True)
class Case:
    """Work that several sides do, and what it takes at least."""

    name: str  # unique, its group first; what --cases matches: "step/adamw/clip/gpt2/float32"
    tensors: int
    elements: int
    dtype: str
    mode: str
    least_bytes: int  # that no implementation can avoid moving
    operations: int  # of matrix products that none can avoid, where they decide; else 0
    sides: Callable[[torch.device], Iterator[Side]]  # fusedstep first; each made when asked for
    # Of the check: how far a result may be from ours, relative to how far ours moved.
    tolerance: float
    side_bytes: int = 0  # what one side holds: how many sides fit into memory at a time
    product: torch.dtype = torch.float32  # in which those matrix products are computed
    renews: bool = False  # the check renews gradients: a step's, which are the same at each call
    timed: bool = True  # False: sides are compared by their bytes alone
    devices: tuple[str, ...] = ("cpu", "cuda")  # on which it has a meaning

    @property
    def group(self) -> str:
        """ "step", "norm", "solve", "map", "host", "memory" or "share"."""
        return self.name.split("/")[0]
