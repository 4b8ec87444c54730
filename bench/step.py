"""The group "step": clip and step by rule, form of state, model, size and number of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from bench.case import Case, NotMade, Shape, Side, Work
from bench.peers import Peer
from bench.step_cases import (
    MODES,
    MUON,
    RULES,
    SETS,
    gpt2_shapes,
    held_bytes,
    least_bytes,
    matrices_of,
    newton_schulz_operations,
    our_side,
)

# How far a step may be from ours, relative to the movement: rounding of parameters; the forms of
# narrow state and where its rounding is random; a bfloat16 parameter beside its master.
TOLERANCES = {"float32": 0.01, "bfloat16": 0.1, "int8": 0.5, "master": 0.1}
MUON_TOLERANCE = 0.05  # its products are in bfloat16
# Rules with other arguments than those of RULES.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "rmsprop-plain": ("rmsprop", {"lr": 1e-3}),
}


def work_of(
    variant: str, shapes: tuple[Shape, ...], mode: str = "float32", clip: bool = True
) -> Work:
    """The step of a rule or a variant of one."""
    rule, arguments = VARIANTS.get(variant) or (variant, RULES[variant].arguments)
    if RULES[rule] is MUON:
        shapes = matrices_of(shapes)
    return Work(rule, arguments, mode, clip, shapes, MODES[mode].dtype)


def selection() -> Iterator[tuple[str, Work]]:
    """What is timed, by name: not every rule on everything, but each axis once."""

    def named(variant: str, of: str, shapes: tuple[Shape, ...], **how: Any) -> tuple[str, Work]:
        work = work_of(variant, shapes, **how)
        return f"step/{variant}/{'clip' if work.clip else 'plain'}/{of}/{work.mode}", work

    # Rules.
    for variant in (*RULES, *VARIANTS):
        for name in ("mlp", "400-small"):
            yield named(variant, name, SETS[name]())
        if variant != MUON.name:
            yield named(variant, "gpt2", SETS["gpt2"]())
    yield named(MUON.name, "gpt2-layer", gpt2_shapes(layers=1)[2:-2])
    # Models.
    for name in ("resnet50", "olmoe-layer", "llama-3.2-1b"):
        yield named("adamw", name, SETS[name]())
    # The step alone.
    for variant in ("adamw", "sgd"):
        for name in ("mlp", "gpt2"):
            yield named(variant, name, SETS[name](), clip=False)
    # Forms of state.
    for mode in MODES:
        if mode != "float32":
            yield named("adamw", "gpt2", SETS["gpt2"](), mode=mode)
    yield named("lion", "gpt2", SETS["gpt2"](), mode="int8")
    # Size: one tensor. Number: small ones.
    for power in range(3, 10):
        yield named("adamw", f"1e{power}", ((10**power,),))
    for count in (1, 10, 100, 1000, 10_000):
        yield named("adamw", f"{count}x64", ((64,),) * count)


def sides_of(peer: Peer, work: Work, device: torch.device) -> Iterator[Side]:
    """The peer's sides; what it raises in place of one says whose it would have been."""
    try:
        yield from peer.sides(work, device)
    except Exception as error:
        raise NotMade(peer.name) from error


def case_of(name: str, work: Work, peers: Sequence[Peer]) -> Case:
    """The case of a step: fusedstep's side, then every peer's."""

    def sides(device: torch.device) -> Iterator[Side]:
        # A chain goes on after a peer that raises; a generator would not.
        return chain(our_side(work, device), *(sides_of(peer, work, device) for peer in peers))

    return Case(
        name=name,
        tensors=len(work.shapes),
        elements=work.elements,
        dtype=str(work.dtype).removeprefix("torch."),
        mode=work.mode,
        least_bytes=least_bytes(work),
        operations=newton_schulz_operations(work.shapes) if work.rule == MUON.name else 0,
        sides=sides,
        tolerance=MUON_TOLERANCE if work.rule == MUON.name else TOLERANCES[work.mode],
        side_bytes=held_bytes(work),
        product=torch.bfloat16,
        renews=True,
    )


def cases(peers: Sequence[Peer]) -> Iterator[Case]:
    """All cases of the group."""
    for name, work in selection():
        yield case_of(name, work, peers)
