"""Tensors whose memory tells what was written to it: private mappings of files.

The kernel copies a page of such a mapping when it is first written, whatever the value.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor


def mapped(path: Path, values: Tensor) -> Tensor:
    """A copy of `values` in a private mapping of the new file `path`."""
    values.contiguous().view(torch.uint8).numpy().tofile(path)
    return torch.from_file(str(path), shared=False, size=values.numel(), dtype=values.dtype)


def bytes_written(path: Path) -> int:
    """How many bytes lie in those pages of the file's mappings that were written."""
    written, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Anonymous:"):
            written += 1024 * int(line.split()[1])
    return written
