"""The noisy quadratic model through a real optimizer: independent runs, counted, with errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusedstep.build import require_cuda
from fusedstep.checks import refuse, require_bool, require_count
from fusedstep.nqm.curve import require_steps
from fusedstep.nqm.model import Array, Model, make_model
from fusedstep.optim import Muon

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Simulation(NamedTuple):
    """What the runs of a simulation have measured after each number of steps.

    Attributes:
        steps: The numbers of steps.
        losses: The mean loss over the runs, float64, an entry for each number of steps.
        standard_errors: Of the losses.
        second_moments: The mean of theta^2 over the runs, float64, [steps, curvatures].
        curvatures: h, descending.
    """

    steps: npt.NDArray[np.int64]
    losses: Array
    standard_errors: Array
    second_moments: Array
    curvatures: Array


def simulate(
    make_optimizer: MakeOptimizer,
    *,
    batch_size: float,
    steps: int | Sequence[int],
    runs: int = 1024,
    average: bool = False,
    dim: int = 10_000,
    bins: int | None = 100,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Simulation:
    """Monte Carlo of the noisy quadratic model through an optimizer of this package or of torch.

    All runs are rows of one parameter, [runs, curvatures]: an element-wise rule never lets two
    elements meet, so the runs are independent. (8-bit state shares a scale between 128 elements:
    it couples their rounding, no more.) A bin of the curvatures is one coordinate with the
    curvature, the noise and the rate of each that it stands for; only its loss counts as often as
    there are of them. The mean loss is then right, with a larger error than if each were drawn.

    Starts and noise are functions of `seed`, `device` and the shape alone. Optimizers with the same
    seed see the same noise, and a difference between them has a smaller error than each loss.

    Args:
        make_optimizer: Is called with a list of one parameter and returns its optimizer, whose
            rule acts on each element alone: not Muon, and nothing with `max_norm`, which would
            clip all runs together.
        batch_size: B, at least 1. Infinite means no noise.
        steps: Numbers of steps, each above the one before, the first at least 0; or a single number
            n for all of 0, 1, ... n.
        runs: Number of runs, at least 2.
        average: Measure the moving average of the weights, which the optimizer must keep
            (`ema_decay`), instead of the weights.
        dim: Number of coordinates; their curvatures are 1 / i.
        bins: Number of geometric bins of the curvatures, at least 2, or None for all of them.
        dtype: Of the parameter and its gradient: torch.float32, torch.float64, torch.bfloat16 or
            torch.float16. The gradient is that at the parameter as it is rounded.
        seed: Of starts and noise, at least 0. Stochastic rounding has the optimizer's own seed.
        device: Where it runs: a CPU or a CUDA device.

    Returns:
        `Simulation(steps, losses, standard_errors, second_moments, curvatures)`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or a loss is not finite: the optimizer
            diverges. The message is `simulate: <argument> must <property>, got <value>`.
        RuntimeError: `device` is a CUDA device and there are no CUDA kernels.

    Example:
        >>> from fusedstep import nqm
        >>> def make_optimizer(params):
        ...     return fusedstep.SGD(params, lr=0.5)
        >>> found = simulate(make_optimizer, batch_size=64, steps=[0, 200])
        >>> expected = nqm.loss_curve("sgd", batch_size=64, lr=0.5, steps=[0, 200])
        >>> bool((abs(found.losses - expected) < 4 * found.standard_errors).all())
        True

    Source: Zhang et al. 2019, section 3, arXiv 1907.04164.
    """
    name = "simulate"
    model = make_model(name, batch_size=batch_size, power=0.0, dim=dim, bins=bins)
    counts = require_steps(name, steps)
    runs = require_count(name, "runs", runs, least=2)
    average = require_bool(name, "average", average)
    seed = require_count(name, "seed", seed, below=2**64)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        refuse(name, "dtype", "be a floating-point dtype", dtype, TypeError)
    place = torch.device(device)
    if place.type not in ("cpu", "cuda"):
        refuse(name, "device", "be a CPU or a CUDA device", place)
    require_cuda(place)
    walk = _Walk(model, runs, dtype, seed, place)
    optimizer = _optimizer_of(name, make_optimizer, walk.theta)
    if average and getattr(optimizer, "ema_decay", None) is None:
        refuse(name, "make_optimizer", "set ema_decay where average=True", _name(optimizer))

    measured, done = [], 0
    for count in counts:
        for _ in range(count - done):
            walk.advance(optimizer)
        done = count
        measured.append(walk.measure(optimizer if average else None))
    losses, errors, *moments = torch.stack(measured).cpu().numpy().T
    if not np.isfinite(losses).all():
        at = int(np.flatnonzero(~np.isfinite(losses))[0])
        got = f"{losses[at]} after {counts[at]} steps"
        refuse(name, "make_optimizer", "make an optimizer whose loss stays finite", got)
    return Simulation(np.array(counts), losses, errors, np.stack(moments, 1), model.h)


class _Walk:
    """The weights of all runs, and the noise they see."""

    def __init__(
        self, model: Model, runs: int, dtype: torch.dtype, seed: int, device: torch.device
    ) -> None:
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        self._generator = torch.Generator(device).manual_seed(seed)
        self._noise = torch.empty(runs, len(model.h), dtype=computed, device=device)
        self._h = torch.tensor(model.h, dtype=computed, device=device)
        deviations = np.sqrt(model.h / model.batch_size)
        self._deviations = torch.tensor(deviations, dtype=computed, device=device)
        self._weight = torch.tensor(model.weight, dtype=torch.float64, device=device)
        self.theta = torch.nn.Parameter(self._normal().to(dtype, copy=True))

    def advance(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of every run."""
        theta = self.theta.detach()
        grad = self._normal().mul_(self._deviations).add_(self._h * theta).to(theta)
        setattr(self.theta, getattr(optimizer, "grad_attribute", "grad"), grad)
        optimizer.step()

    def measure(self, averaging: Any) -> Tensor:
        """The mean loss, its standard error, and the mean of theta^2 of each curvature, 1-d.

        Of the average of the weights that the optimizer `averaging` keeps, or of the weights.
        """
        theta = self.theta if averaging is None else averaging.ema_parameters()[0]
        squares = theta.detach().double().square()
        losses = squares @ self._weight
        error = losses.std() / math.sqrt(len(losses))
        return torch.cat([torch.stack([losses.mean(), error]), squares.mean(0)])

    def _normal(self) -> Tensor:
        """A standard normal number for each coordinate of each run, in memory that is reused."""
        return self._noise.normal_(generator=self._generator)


def _optimizer_of(name: str, make_optimizer: Any, theta: Tensor) -> torch.optim.Optimizer:
    """What `make_optimizer` returns, checked: all of `theta`, each element by itself."""
    argument = "make_optimizer"
    if not callable(make_optimizer):
        refuse(name, argument, "be callable", type(make_optimizer).__name__, TypeError)
    optimizer = make_optimizer([theta])
    if not isinstance(optimizer, torch.optim.Optimizer):
        refuse(name, argument, "return a torch.optim.Optimizer", _name(optimizer), TypeError)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if len(params) != 1 or params[0] is not theta:
        refuse(name, argument, "return an optimizer of its argument", "another")
    max_norm = getattr(optimizer, "max_norm", None)
    if max_norm is not None:
        refuse(name, argument, "leave max_norm None: it would clip all runs together", max_norm)
    if isinstance(optimizer, (Muon, torch.optim.LBFGS)):
        refuse(name, argument, "return an element-wise optimizer", _name(optimizer), TypeError)
    return optimizer


def _name(thing: Any) -> str:
    return type(thing).__name__
