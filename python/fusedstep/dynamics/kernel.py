"""The neural tangent kernel, and the training of the linearized model in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from fusedstep.checks import refuse, require_count, require_rate

# Elements of the Jacobians of one chunk of examples: 256 MiB of float32.
CHUNK_ELEMENTS = 2**26


def ntk(
    model: nn.Module, x1: Tensor, x2: Tensor | None = None, *, chunk_size: int | None = None
) -> Tensor:
    """The neural tangent kernel: inner products of the gradients of a model's outputs.

    K[i, j] = sum over outputs o of <df_o(x1[i]) / dw, df_o(x2[j]) / dw>, over all parameters that
    require gradients, at their present values. The model is called with one example at a time, as a
    batch of one, and vectorized by torch.func. Nothing is changed: buffers are copies, and training
    or evaluation mode is as it is.

    Args:
        model: A module that maps a batch of inputs to a batch of outputs, of any shape.
        x1: Inputs [n1, ...].
        x2: Inputs [n2, ...]; None: `x1`, and half the work.
        chunk_size: Examples whose Jacobians are kept at a time, from each of `x1` and `x2`. None:
            as many as have 2^26 elements.

    Returns:
        The kernel [n1, n2], in the parameters' dtype.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There are no examples, or no parameter requires a gradient. The message is
            `ntk: <argument> must <property>, got <value>`.

    Example:
        >>> model = torch.nn.Linear(2, 1)  # its kernel is x . x' + 1, the 1 for the bias
        >>> ntk(model, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        tensor([[ 6.,  4.],
                [ 4., 10.]])

    Source: Jacot, Gabriel and Hongler 2018, section 4, arXiv 1806.07572; the trace over outputs.
    """
    name = "ntk"
    if not isinstance(model, nn.Module):
        refuse(name, "model", "be a torch.nn.Module", type(model).__name__, TypeError)
    for argument, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if not isinstance(x, Tensor):
            refuse(name, argument, "be a tensor", type(x).__name__, TypeError)
        if x.dim() == 0 or len(x) == 0:
            refuse(name, argument, "have an example", tuple(x.shape))
    params = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}
    if not params:
        refuse(name, "model", "have parameters that require gradients", "none")
    fixed = {key: p.detach() for key, p in model.named_parameters() if not p.requires_grad}
    fixed |= {key: buffer.detach().clone() for key, buffer in model.named_buffers()}

    def outputs(trained: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(model, (trained, fixed), (x[None],))
        return result.reshape(-1)

    def jacobians(x: Tensor) -> list[Tensor]:
        """For each parameter [examples, outputs * elements]."""
        parts = vmap(jacrev(outputs), (None, 0))(params, x)
        return [part.flatten(1) for part in parts.values()]

    if chunk_size is None:
        one = sum(part.numel() for part in jacobians(x1[:1]))
        chunk_size = max(1, CHUNK_ELEMENTS // one)
    chunk_size = require_count(name, "chunk_size", chunk_size, least=1)
    columns = x1 if x2 is None else x2
    blocks: list[list[Tensor]] = []
    for r, rows in enumerate(x1.split(chunk_size)):
        left = jacobians(rows)
        blocks.append([])
        for c, others in enumerate(columns.split(chunk_size)):
            if x2 is None and c < r:  # the kernel is symmetric
                blocks[r].append(blocks[c][r].T)
                continue
            diagonal = x2 is None and c == r
            right = left if diagonal else jacobians(others)
            block = torch.stack([a @ b.T for a, b in zip(left, right, strict=True)]).sum(0)
            blocks[r].append((block + block.T) / 2 if diagonal else block)  # to the last bit
    return torch.cat([torch.cat(row, dim=1) for row in blocks])


def kernel_prediction(
    K: Tensor, residual0: Tensor, lr: float, steps: int | Sequence[int]
) -> Tensor:
    """The residuals of a linearized model after steps of gradient descent, in closed form.

    Full-batch gradient descent on the loss 1 / (2 n) sum_i |r_i|^2, half the mean of squares over n
    examples, takes the residuals r = prediction - target to r - lr / n K r in each step if the
    model is linear in its parameters. So r_t = (I - lr / n K)^t r_0, by an eigendecomposition of K.

    Args:
        K: Kernel [n, n] of the training examples, such as `ntk(model, x)`.
        residual0: Prediction less target at the start, [n] or [n, outputs] if K is the kernel of
            each output.
        lr: Learning rate, above 0 and at most 2 n over the largest eigenvalue of K.
        steps: Number of steps, at least 0, or a list of them.

    Returns:
        The residuals, of the shape and dtype of `residual0`; for a list with one more dimension
        in front. Computed in float64.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: K is not a kernel, shapes do not fit, a value is not finite, or the rate
            diverges. The message is `kernel_prediction: <argument> must <property>, got <value>`.

    Example:
        >>> K = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> kernel_prediction(K, torch.tensor([1.0, 1.0]), lr=0.5, steps=2)
        tensor([0.2500, 0.5625])

    Source: Lee et al. 2019, equations 8 and 9, arXiv 1902.06720, for steps instead of a flow.
    """
    name = "kernel_prediction"
    values, vectors = _decomposed(name, K)
    n = len(values)
    if not isinstance(residual0, Tensor):
        refuse(name, "residual0", "be a tensor", type(residual0).__name__, TypeError)
    if residual0.dim() not in (1, 2) or len(residual0) != n:
        must = f"have shape ({n},) or ({n}, outputs)"
        refuse(name, "residual0", must, tuple(residual0.shape))
    if not bool(residual0.isfinite().all()):
        refuse(name, "residual0", "be finite", "NaN or infinity")
    rate = require_rate(name, "lr", lr)
    limit = 2 * n / float(values.max()) if values.max() > 0 else math.inf
    if not 0 < rate <= limit * (1 + 1e-12):
        must = f"be above 0 and at most {limit:.6g}, above which the residual grows"
        refuse(name, "lr", must, rate)
    if isinstance(steps, Sequence):
        counts = [require_count(name, f"steps[{i}]", count) for i, count in enumerate(steps)]
    else:
        counts = [require_count(name, "steps", steps)]
    modes = vectors.T @ residual0.to(torch.float64).reshape(n, -1)
    decay = 1 - rate / n * values
    after = [(vectors @ (decay[:, None] ** count * modes)) for count in counts]
    shaped = [r.reshape(residual0.shape).to(residual0.dtype) for r in after]
    return torch.stack(shaped) if isinstance(steps, Sequence) else shaped[0]


def _decomposed(function: str, K: Any) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a kernel in float64, up to rounding of its own dtype."""
    if not isinstance(K, Tensor):
        refuse(function, "K", "be a tensor", type(K).__name__, TypeError)
    if K.dim() != 2 or K.shape[0] != K.shape[1] or len(K) == 0:
        refuse(function, "K", "be a square matrix", tuple(K.shape))
    if not K.is_floating_point():
        refuse(function, "K", "be floating-point", K.dtype, TypeError)
    if not bool(K.isfinite().all()):
        refuse(function, "K", "be finite", "NaN or infinity")
    rounding = 16 * len(K) * torch.finfo(K.dtype).eps
    kernel = K.detach().to(torch.float64)
    skew = float((kernel - kernel.T).abs().max())
    if skew > rounding * float(kernel.abs().max()):
        refuse(function, "K", "be symmetric", f"a difference of {skew:.3g}")
    values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
    if values[0] < -rounding * values.abs().max():
        refuse(function, "K", "be positive semidefinite", f"the eigenvalue {float(values[0]):.6g}")
    return values.clamp(min=0), vectors
