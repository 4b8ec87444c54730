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
from bench.measure import Call
from bench.step_cases import SETS

# Of max_norm from call to call, so that every call clips. After 1.4 million calls the gradients
# would vanish: the norm would be below the 1e-6 that clip_grad_norm_ adds to it.
SHRINK = 0.99999
SIZES = {**{name: SETS[name] for name in ("mlp", "400-small", "gpt2")}, "8M": lambda: ((1 << 23,),)}
FORMS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}  # of torch's functions


def clip(namespace: Any, params: list[Tensor], clips: bool, **form: bool) -> Call:
    """clip_grad_norm_ of a namespace where the norm exceeds max_norm at every call, or at none."""
    max_norm = MAX_NORM if clips else 1e9

    def call() -> None:
        nonlocal max_norm
        max_norm *= SHRINK if clips else 1
        namespace.clip_grad_norm_(params, max_norm, **form)

    return call


def total_norm(namespace: Any, params: list[Tensor], **form: bool) -> Callable[[], Tensor]:
    return partial(namespace.get_total_norm, grads_of(params), **form)


def providers() -> Iterator[tuple[str, Any, dict[str, bool]]]:
    """Names, where the functions are, and their arguments."""
    yield "fusedstep", fusedstep, {}
    for name, form in FORMS.items():
        yield f"torch, {name}", torch.nn.utils, form


def norm_sides(shapes: tuple[Shape, ...], device: torch.device) -> Iterator[Side]:
    for name, namespace, form in providers():
        norm = total_norm(namespace, random_params(shapes, torch.float32, device), **form)
        yield side_of_function(name, norm, device)


def clip_sides(shapes: tuple[Shape, ...], device: torch.device) -> Iterator[Side]:
    for name, namespace, form in providers():
        params = random_params(shapes, torch.float32, device)
        call = clip(namespace, params, clips=True, **form)
        yield side_of(name, call, device, partial(grads_of, params))


def cases() -> Iterator[Case]:
    # Reads of the gradients, and writes.
    for function, make, passes in (("norm", norm_sides, 1), ("clip", clip_sides, 3)):
        for name, shapes_of in SIZES.items():
            shapes = shapes_of()
            elements = sum(map(prod, shapes))
            yield Case(
                group="norm",
                name=f"norm/{function}/{name}",
                tensors=len(shapes),
                elements=elements,
                dtype="float32",
                mode="float32",
                least_bytes=4 * passes * elements,
                operations=0,
                sides=partial(make, shapes),
                # torch adds up millions of squares in float32: its norms are up to 1e-3 off.
                tolerance=2e-3,
                side_bytes=12 * elements,
            )
