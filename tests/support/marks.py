"""The marks of whole folders, files and users of a fixture: which tests run where, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# Folders and files below tests/.
PLACES = {
    "processes": ("distributed",),
    "compiles": (
        "build/test_every_cpu.py",
        "optim/test_isa.py",
        "optim/test_quantize.py",
        "optim/test_random.py",
        "optim/test_rule_fields.py",
    ),
    # What a second torch runs: loading, ops and their boxed calls, subclassing of torch's
    # optimizers, hooks, checkpoints, autograd functions, torch.compile, DTensors.
    "abi": (
        "build/test_packaging.py",
        "build/test_ops_refuse.py",
        "distributed",
        "linalg/test_gram.py",
        "linalg/test_lstsq.py",
        "linalg/test_pinv.py",
        "linalg/test_pinv_derivatives.py",
        "linalg/test_rank.py",
        "linalg/test_transforms.py",
        "lm_head/test_least_squares.py",
        "lm_head/test_segment_sum.py",
        "lm_head/test_softmax.py",
        "lm_head/test_switches.py",
        "optim/test_any_step.py",
        "optim/test_checkpoint.py",
        "optim/test_clip.py",
        "optim/test_cuda.py",
        "optim/test_cuda_graph.py",
        "optim/test_dtypes.py",
        "optim/test_grad_dtype.py",
        "optim/test_grad_scaler.py",
        "optim/test_grad_sources.py",
        "optim/test_implementation.py",
        "optim/test_loops.py",
        "optim/test_lr_schedulers.py",
        "optim/test_memory.py",
        "optim/test_muon_loops.py",
        "optim/test_ops.py",
        "optim/test_optimizer.py",
        "optim/test_qk_clip.py",
        "optim/test_qk_clip_refused.py",
        "optim/test_symmetric_product.py",
        "optim/test_swap_in.py",
        "optim/test_table_changes.py",
        "optim/test_table_memory.py",
        "optim/test_tables.py",
        "optim/test_torch_database.py",
        "optim/test_traps.py",
        "optim/test_without_memory.py",
        "schedules/test_scheduler.py",
    ),
}

# Fixtures that run a compiler.
FIXTURES = {"compiles": {"opener", "simt"}}


def marks_of(item: pytest.Item) -> Iterator[str]:
    """The marks that `item` has by its file or by its fixtures."""
    for mark, places in PLACES.items():
        if any(item.path.is_relative_to(TESTS / place) for place in places):
            yield mark
    for mark, fixtures in FIXTURES.items():
        if fixtures & set(getattr(item, "fixturenames", ())):
            yield mark
