"""Parameter groups of the GPT recipe: matrices and embeddings decay, biases and norms do not."""

import math

from torch import nn

from fusedstep.checks import refuse, require_number

__all__ = ["param_groups"]


def param_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for an optimizer: parameters of two or more dimensions get `weight_decay`, others 0.

    Every parameter that requires a gradient appears once, in the model's own order, also where
    modules share it (tied embeddings). The result has at most two entries, the decaying one first,
    `{"params": [Parameter, ...], "weight_decay": float}`; one without parameters is left out.

    Raises TypeError where `model` is no `torch.nn.Module` or `weight_decay` no number, ValueError
    where `weight_decay` is negative or not finite, or a lazy parameter has no shape yet.

    Source: Brown et al. 2020, appendix B (weight decay 0.1); Loshchilov and Hutter 2019 (AdamW).
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        refuse("param_groups", "model", "be a torch.nn.Module", kind, TypeError)
    if require_number("param_groups", "weight_decay", weight_decay) == math.inf:
        refuse("param_groups", "weight_decay", "be finite", weight_decay)
    decaying, still = [], []
    for name, parameter in model.named_parameters():  # visits a shared parameter once
        if nn.parameter.is_lazy(parameter):
            must = "have run once, so that every parameter has a shape"
            refuse("param_groups", "model", must, f"lazy parameter {name}")
        if parameter.requires_grad:
            (decaying if parameter.dim() >= 2 else still).append(parameter)
    groups = (
        {"params": decaying, "weight_decay": weight_decay},
        {"params": still, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]
