"""Prints, as JSON, the GPU that torch sees first and the versions around it.

A separate program, so that the process that runs the parts holds no memory on the GPU.
"""

from __future__ import annotations

import json

import torch

from bench.record import driver


def facts() -> dict[str, object]:
    """Name "" where torch sees no GPU."""
    found: dict[str, object] = {
        "name": "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "driver": driver(),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(facts()))
