"""Parameter groups of the GPT recipe: matrices and embeddings decay, biases and norms do not."""

from torch import nn

from fusedstep.checks import refuse
from fusedstep.schedules.arguments import require_rate

__all__ = ["param_groups"]


def param_groups(model: nn.Module, weight_decay: float, *, named: bool = False) -> list[dict]:
    """Groups for an optimizer: parameters of two or more dimensions get `weight_decay`, others 0.

    Every parameter that requires a gradient now appears once, in the model's own order, also where
    modules share it (tied embeddings, under the first of its names); one that is unfrozen later is
    not among them. The result has at most two entries, the decaying one first,
    `{"params": [Parameter, ...], "weight_decay": float}`; one without parameters is left out. With
    `named=True` they are `(name, Parameter)`, which torch's optimizers and ours keep in
    `param_names`. Call it before a wrapper that makes one flat parameter of many (FSDP's first
    version): nothing flat would decay.

    Raises TypeError where `model` is no `torch.nn.Module`, `weight_decay` no number or `named` no
    bool, ValueError where `weight_decay` is negative or not finite, or a lazy parameter has no
    shape yet.

    Source: Brown et al. 2020, appendix B (weight decay 0.1); Loshchilov and Hutter 2019 (AdamW).
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        refuse("param_groups", "model", "be a torch.nn.Module", kind, TypeError)
    decay = require_rate("param_groups", "weight_decay", weight_decay)
    if not isinstance(named, bool):
        refuse("param_groups", "named", "be a bool", type(named).__name__, TypeError)
    decaying, still = [], []
    for name, parameter in model.named_parameters():  # visits a shared parameter once
        if nn.parameter.is_lazy(parameter):
            must = "have run once, so that every parameter has a shape"
            refuse("param_groups", "model", must, f"lazy parameter {name}")
        if parameter.requires_grad:
            entry = (name, parameter) if named else parameter
            (decaying if parameter.dim() >= 2 else still).append(entry)
    groups = ({"params": decaying, "weight_decay": decay}, {"params": still, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
