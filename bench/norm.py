"""The group "norm": get_total_norm and clip_grad_norm_ alone, against torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
SIZES = {**{name: SETS[name] for name in ("mlp", "400-small", "gpt2")}, "8M": lambda: ((1 << 23,),)}
FORMS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}  # of torch's functions


def clip(namespace: Any, params: list[Tensor], clips: bool, **form: bool) -> Callable[[], Tensor]:
    """clip_grad_norm_ of a namespace where the norm exceeds max_norm at every call, or at none."""
    max_norm = MAX_NORM if clips else 1e9

    def call() -> Tensor:
        nonlocal max_norm
        max_norm *= SHRINK if clips else 1
        norm: Tensor = namespace.clip_grad_norm_(params, max_norm, **form)
        return norm

    return call


def total_norm(namespace: Any, params: list[Tensor], **form: bool) -> Callable[[], Tensor]:
    return partial(namespace.get_total_norm, grads_of(params), **form)


def providers() -> Iterator[tuple[str, Any, dict[str, bool]]]:
    """Names, where the functions are, and their arguments."""
    yield "fusedstep", fusedstep, {}
    for name, form in FORMS.items():
        yield f"torch, {name}", torch.nn.utils, form


def norm_sides(
    shapes: tuple[Shape, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[Side]:
    for name, namespace, form in providers():
        norm = total_norm(namespace, random_params(shapes, dtype, device), **form)
        yield side_of_function(name, norm, device)


def clip_sides(
    shapes: tuple[Shape, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[Side]:
    for name, namespace, form in providers():
        params = random_params(shapes, dtype, device)
        call = clip(namespace, params, clips=True, **form)
        yield side_of(name, call, device, partial(grads_of, params))


def unclipped_sides(
    shapes: tuple[Shape, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[Side]:
    for name, namespace, form in providers():
        params = random_params(shapes, dtype, device)
        call = clip(namespace, params, clips=False, **form)
        yield side_of_function(name, call, device, beside=grads_of(params))


# What each function is called, and its least passes over the gradients: reads, and writes.
FUNCTIONS = {"norm": (norm_sides, 1), "clip": (clip_sides, 3), "unclipped": (unclipped_sides, 1)}
# torch adds up millions of squares in float32: its norms are up to 1e-3 off. Norms of bfloat16
# gradients are bfloat16 numbers there.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 1e-2}


def case_of(
    name: str, function: str, shapes: tuple[Shape, ...], dtype: torch.dtype = torch.float32
) -> Case:
    """The case of one of FUNCTIONS."""
    make, passes = FUNCTIONS[function]
    elements = sum(map(prod, shapes))
    return Case(
        name=name,
        tensors=len(shapes),
        elements=elements,
        dtype=str(dtype).removeprefix("torch."),
        mode="float32",
        least_bytes=dtype.itemsize * passes * elements,
        operations=0,
        sides=lambda device: make(shapes, device, dtype),
        tolerance=TOLERANCES[dtype],
        side_bytes=3 * dtype.itemsize * elements,
    )


def cases() -> Iterator[Case]:
    for function in FUNCTIONS:
        for name, shapes_of in SIZES.items():
            yield case_of(f"norm/{function}/{name}", function, shapes_of())
