"""The libraries that the step is timed against, one file each; a library may be absent.

Nothing here imports them: a peer's file does, when it is asked for sides. Left out, because no rule
of fusedstep computes the same: `schedulefree`, optimi's StableAdamW, heavyball's RMSprop (with
bias correction) and Muon (with other coefficients).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch

from bench.case import Side, Work

Sides = Callable[[Work, torch.device], Iterator[Side]]


@dataclass(frozen=True)
class Peer:
    """A library that people could use instead."""

    name: str  # as `--peers` takes it; the names of its sides begin with it
    packages: tuple[str, ...]  # distributions it needs; their versions are recorded
    # None where it does not do this work; may be several. Each is made when it is asked for.
    sides: Sides


def in_this_process(module: str) -> Sides:
    """The sides of a file here, which is imported at the first use."""

    def sides(work: Work, device: torch.device) -> Iterator[Side]:
        yield from import_module(f"bench.peers.{module}").sides(work, device)

    return sides


def in_a_child(module: str) -> Sides:
    """The same in a process of its own, for a library that has its own threads."""

    def sides(work: Work, device: torch.device) -> Iterator[Side]:
        yield from import_module("bench.peers.child").sides(f"bench.peers.{module}", work, device)

    return sides


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", ("torch",), in_this_process("torch")),
        Peer("deepspeed", ("deepspeed",), in_this_process("deepspeed")),
        Peer("torchao", ("torchao",), in_this_process("torchao")),
        Peer("bitsandbytes", ("bitsandbytes",), in_this_process("bitsandbytes")),
        Peer("optimi", ("torch-optimi",), in_this_process("optimi")),
        Peer("heavyball", ("heavyball",), in_this_process("heavyball")),
        Peer("optax", ("optax", "jax"), in_a_child("optax")),
        Peer("numba", ("numba",), in_a_child("numba_loops")),
        # On a GPU alone.
        Peer("apex", ("apex",), in_this_process("apex")),
        Peer(
            "transformerengine",
            ("transformer-engine",),
            in_this_process("transformer_engine"),
        ),
        Peer("flashoptim", ("flashoptim",), in_this_process("flashoptim")),
        Peer("cupy", ("cupy-cuda13x",), in_this_process("cupy")),
    )
}
