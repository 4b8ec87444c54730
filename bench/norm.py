"""The group "norm": get_total_norm and clip_grad_norm_ alone, against torch's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

import fusedstep
from bench.case import (
    MAX_NORM,
    Case,
    Shape,
    Side,
    grads_of,
    random_params,
    side_of,
    side_of_function,
)
from bench.step_cases import SETS

# Of max_norm from call to call, so that every call clips. After 1.4 million calls the gradients
# would vanish: the norm would be below the 1e-6 that clip_grad_norm_ adds to it.
SHRINK = 0.99999
LARGE = 1e9  # a max_norm that no norm exceeds
SIZES = {**{name: SETS[name] for name in ("mlp", "400-small", "gpt2")}, "8M": lambda: ((1 << 23,),)}
FORMS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}  # of torch's functions
Form = dict[str, bool]  # arguments


def providers() -> Iterator[tuple[str, Any, Form]]:
    """Names, where the functions are, and how they are called."""
    yield "fusedstep", fusedstep, {}
    for name, form in FORMS.items():
        yield f"torch, {name}", torch.nn.utils, form


def norm_side(
    provider: str, namespace: Any, form: Form, params: list[Tensor], device: torch.device
) -> Side:
    norm = partial(namespace.get_total_norm, grads_of(params), **form)
    return side_of_function(provider, norm, device)


def clip_side(
    provider: str, namespace: Any, form: Form, params: list[Tensor], device: torch.device
) -> Side:
    """The norm exceeds max_norm at every call."""
    max_norm = MAX_NORM

    def call() -> None:
        nonlocal max_norm
        max_norm *= SHRINK
        namespace.clip_grad_norm_(params, max_norm, **form)

    return side_of(provider, call, device, partial(grads_of, params))


def unclipped_side(
    provider: str, namespace: Any, form: Form, params: list[Tensor], device: torch.device
) -> Side:
    """It does at none."""
    clip = partial(namespace.clip_grad_norm_, params, LARGE, **form)
    return side_of_function(provider, clip, device, beside=grads_of(params))


# What each function is called, and its least passes over the gradients: reads, and writes.
FUNCTIONS = {"norm": (norm_side, 1), "clip": (clip_side, 3), "unclipped": (unclipped_side, 1)}
# torch adds up millions of squares in float32: its norms are up to 1e-3 off. Norms of bfloat16
# gradients are bfloat16 numbers there.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 1e-2}


def sides_of(
    function: str, shapes: tuple[Shape, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[Side]:
    """Of one of FUNCTIONS: fusedstep's, and torch's in each of its forms."""
    make, _ = FUNCTIONS[function]
    for provider, namespace, form in providers():
        yield make(provider, namespace, form, random_params(shapes, dtype, device), device)


def case_of(
    name: str, function: str, shapes: tuple[Shape, ...], dtype: torch.dtype = torch.float32
) -> Case:
    """The case of one of FUNCTIONS."""
    _, passes = FUNCTIONS[function]
    elements = sum(map(prod, shapes))
    return Case(
        name=name,
        tensors=len(shapes),
        elements=elements,
        dtype=str(dtype).removeprefix("torch."),
        mode="float32",
        least_bytes=dtype.itemsize * passes * elements,
        operations=0,
        sides=partial(sides_of, function, shapes, dtype),
        tolerance=TOLERANCES[dtype],
        side_bytes=3 * dtype.itemsize * elements,
    )


def cases() -> Iterator[Case]:
    for function in FUNCTIONS:
        for name, shapes_of in SIZES.items():
            yield case_of(f"norm/{function}/{name}", function, shapes_of())
