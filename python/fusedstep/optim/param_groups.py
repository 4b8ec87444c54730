"""Parameter groups of the GPT recipe: matrices and embeddings decay, biases and norms do not."""

from __future__ import annotations

from typing import Any

from torch import nn

from fusedstep.checks import refuse, require_rate

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module, weight_decay: float, *, named: bool = False
) -> list[dict[str, Any]]:
    """Makes groups for an optimizer: only parameters of two or more dimensions decay.

    Each parameter that requires a gradient appears once, in the model's order, even if modules
    share it (tied embeddings: under the first name). Parameters unfrozen later are not included.
    Call it before FSDP1, which flattens parameters to one dimension and so disables decay.

    Args:
        model: Module whose parameters are trained.
        weight_decay: Decay of parameters of two or more dimensions, finite and 0 or more; the
            others get 0.
        named: Return each parameter as `(name, Parameter)`; optimizers keep the names in
            `param_names`.

    Returns:
        At most two groups, the decaying one first, each
        `{"params": [Parameter, ...], "weight_decay": float}`. A group without parameters is left
        out.

    Raises:
        TypeError: `model` is not a torch.nn.Module, `weight_decay` is not a number, or `named` is
            not a bool.
        ValueError: `weight_decay` is negative or not finite, or a lazy parameter has no shape yet.
            The message is `param_groups: <argument> must <property>, got <value>`.

    Example:
        >>> groups = fusedstep.param_groups(torch.nn.Linear(4, 3), weight_decay=0.1)
        >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
        [(0.1, [(3, 4)]), (0.0, [(3,)])]
        >>> optimizer = fusedstep.AdamW(groups, lr=6e-4)

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B (weight decay
    0.1); Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        refuse("param_groups", "model", "be a torch.nn.Module", kind, TypeError)
    decay = require_rate("param_groups", "weight_decay", weight_decay)
    if not isinstance(named, bool):
        refuse("param_groups", "named", "be a bool", type(named).__name__, TypeError)
    decaying: list[Any] = []
    still: list[Any] = []
    for name, parameter in model.named_parameters():  # visits a shared parameter once
        if nn.parameter.is_lazy(parameter):
            must = "have run once, so that every parameter has a shape"
            refuse("param_groups", "model", must, f"lazy parameter {name}")
        if parameter.requires_grad:
            entry = (name, parameter) if named else parameter
            (decaying if parameter.dim() >= 2 else still).append(entry)
    groups = ({"params": decaying, "weight_decay": decay}, {"params": still, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
