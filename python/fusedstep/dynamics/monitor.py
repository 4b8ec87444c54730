"""SharpnessMonitor: the curvature that an optimizer sees, every so many steps of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from fusedstep.checks import require_count
from fusedstep.dynamics.curvature import Vectors
from fusedstep.dynamics.optimizers import rule_of, trainable
from fusedstep.dynamics.preconditioner import preconditioned_pairs
from fusedstep.dynamics.products import Losses
from fusedstep.dynamics.threshold import stability_threshold


class Measurement(NamedTuple):
    """What was measured after a step.

    Attributes:
        step: Number of steps taken.
        sharpness: `preconditioned_sharpness` of the optimizer.
        threshold: `stability_threshold` of the optimizer.
    """

    step: int
    sharpness: float
    threshold: float


class SharpnessMonitor:
    """Measures the preconditioned sharpness and the stability threshold every so many steps.

    Each measurement starts from the eigenvector of the one before, which takes fewer products. A
    loop calls `step()` after the optimizer's. `lightning_callback()` and `transformers_callback()`
    return what those trainers call themselves.

    Args:
        loss_fn: As in `hessian_top_eigenvalues`: the loss whose curvature is watched, on the same
            data each time, in the mode that it sets itself.
        optimizer: As in `preconditioned_sharpness`; None in a trainer's callback, which takes the
            trainer's.
        every: Measure after each step whose number is a multiple of it, at least 1.
        seed: As in `hessian_top_eigenvalues`.
        products: As in `hessian_top_eigenvalues`.
        tol: As in `hessian_top_eigenvalues`.

    Attributes:
        history: A list of `Measurement(step, sharpness, threshold)`.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of its range. The message is
            `SharpnessMonitor: <argument> must <property>, got <value>`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> opt = fusedstep.SGD([w], lr=0.125)
        >>> monitor = SharpnessMonitor(lambda: 4 * w[0] ** 2 + w[1] ** 2, opt, every=10)
        >>> for _ in range(20):
        ...     monitor.loss_fn().backward()
        ...     opt.step(), opt.zero_grad(), monitor.step()
        ... # doctest: +ELLIPSIS
        (None, None, ...
        >>> [(m.step, round(m.sharpness, 3), m.threshold) for m in monitor.history]
        [(10, 8.0, 16.0), (20, 8.0, 16.0)]
    """

    def __init__(
        self,
        loss_fn: Losses,
        optimizer: Any = None,
        *,
        every: int = 100,
        seed: int = 0,
        products: str = "autograd",
        tol: float | None = None,
    ) -> None:
        if optimizer is not None:
            rule_of("SharpnessMonitor", optimizer)
        self.loss_fn, self.optimizer = loss_fn, optimizer
        self.every = require_count("SharpnessMonitor", "every", every, least=1)
        self.settings: dict[str, Any] = {"seed": seed, "products": products, "tol": tol}
        self.history: list[Measurement] = []
        self._steps = 0
        self._vectors: Vectors | None = None

    def step(self) -> Measurement | None:
        """Counts a step of the optimizer; returns a measurement if it is time for one."""
        return self.reached(self._steps + 1)

    def reached(self, step: int) -> Measurement | None:
        """As `step()` for a loop that counts itself; a number that it has seen is ignored."""
        if step == self._steps:
            return None
        self._steps = step
        return self.measure() if step % self.every == 0 else None

    def measure(self) -> Measurement:
        """Measures now, whatever the number of the step, and adds to `history`.

        Raises:
            TypeError, ValueError, RuntimeError: As in `preconditioned_sharpness`, with a message
                that begins with `SharpnessMonitor: `; a loss that is not finite is a ValueError.
        """
        name, optimizer = "SharpnessMonitor", self.optimizer
        rule_of(name, optimizer)
        shapes = [p.shape for p in trainable(optimizer)]
        if self._vectors and [part.shape for part in self._vectors[0]] != shapes:
            self._vectors = None  # other parameters are trained now
        pairs = preconditioned_pairs(
            name, optimizer, self.loss_fn, start=self._vectors, **self.settings
        )
        self._vectors = pairs.vectors
        threshold = stability_threshold(self.optimizer)
        self.history.append(Measurement(self._steps, float(pairs.values[0]), threshold))
        return self.history[-1]

    def lightning_callback(self) -> Any:
        """A callback for `lightning.Trainer(callbacks=[...])`."""
        import lightning.pytorch

        def on_train_batch_end(trainer: Any, *_: Any) -> None:
            self.optimizer = self.optimizer or trainer.optimizers[0]
            self.reached(trainer.global_step)

        callback = lightning.pytorch.Callback()
        callback.on_train_batch_end = on_train_batch_end
        return callback

    def transformers_callback(self) -> Any:
        """A callback for `transformers.Trainer(callbacks=[...])`."""
        import transformers

        def on_step_end(_: Any, state: Any, __: Any, *, optimizer: Any, **___: Any) -> None:
            # Accelerate's wrapper has the optimizer inside.
            self.optimizer = self.optimizer or getattr(optimizer, "optimizer", optimizer)
            self.reached(state.global_step)

        callback = transformers.TrainerCallback()
        callback.on_step_end = on_step_end
        return callback
