"""Loads the two C++ modules and records what was built and, if so, why CUDA is not in use."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType

import torch

MINIMUM_TORCH = (2, 11)  # as pyproject.toml says, which an installed package does not have


def cuda_mismatch(facts: Mapping[str, str], torch_version: str, torch_cuda: str | None) -> str:
    """Why a build with these `facts` has no CUDA kernels under this torch; "" if it has.

    CUDA promises binary compatibility within a major version, so only that one is compared.
    """
    if facts["cuda_reason"]:
        return f"left out of this build: {facts['cuda_reason']}"
    if torch_cuda is None:
        return f"left alone: torch {torch_version} is without CUDA"
    if torch_cuda.split(".")[0] != facts["cuda"].split(".")[0]:
        return f"left alone: built for CUDA {facts['cuda']}, torch {torch_version} has {torch_cuda}"
    return ""


def _load_cpu() -> ModuleType:
    """Imports _C, or raises ImportError with one sentence that says what to do."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        least = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(f"fusedstep needs torch >= {least}, found {torch.__version__}")
    try:
        return importlib.import_module("fusedstep._C")
    except ModuleNotFoundError as error:
        python = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(
            f"fusedstep has no C++ module for Python {python}: build it with "
            "`pip install --no-build-isolation .` in the source folder"
        ) from error


def _load_cuda(facts: Mapping[str, str]) -> tuple[ModuleType | None, str]:
    """Imports _C_cuda if it can work; else None and the reason."""
    reason = cuda_mismatch(facts, torch.__version__, torch.version.cuda)
    if reason:
        return None, reason
    try:
        module = importlib.import_module("fusedstep._C_cuda")
    except ImportError as error:
        reason = f"_C_cuda does not load: {error}"
        warnings.warn(f"fusedstep: {reason}", RuntimeWarning, stacklevel=2)
        return None, reason
    if module.build_facts() != facts:
        raise ImportError("fusedstep: _C and _C_cuda come from different builds: build again")
    return module, ""


_C = _load_cpu()
FACTS: dict[str, str] = _C.build_facts()
_C_cuda, CUDA_REASON = _load_cuda(FACTS)
_C.use_device("cuda", _C_cuda and _C_cuda.DEVICE, reason=CUDA_REASON)


def require_cuda(device: torch.device) -> None:
    """Raises RuntimeError, in one sentence, if `device` is a CUDA device without kernels."""
    if CUDA_REASON and device.type == "cuda":
        raise RuntimeError(_C.no_cuda(CUDA_REASON))
