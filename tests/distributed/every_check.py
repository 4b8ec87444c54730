"""Imports every file of checks, so that CHECKS lists them all."""

from tests.distributed import (
    check_checkpoints,
    check_grad_sources,
    check_least_squares,
    check_meshes,
    check_mixtures,
    check_norm_groups,
    check_precision,
    check_qk_clip,
    check_refusals,
    check_replicas,
    check_shards,
    check_skips,
    check_swap_in,
    check_swaps,
    check_tensor_parallel,
)
from tests.distributed.ranks import CHECKS

__all__ = [
    "CHECKS",
    "check_checkpoints",
    "check_grad_sources",
    "check_least_squares",
    "check_meshes",
    "check_mixtures",
    "check_norm_groups",
    "check_precision",
    "check_qk_clip",
    "check_refusals",
    "check_replicas",
    "check_shards",
    "check_skips",
    "check_swap_in",
    "check_swaps",
    "check_tensor_parallel",
]
