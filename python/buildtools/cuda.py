"""Decides whether the CUDA module is built: finds the toolkit, compares versions, picks targets.

No torch import here: CUDA_HOME has to be right before torch.utils.cpp_extension is imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from python.buildtools import solvers

# The oldest that torch's wheels serve, of Turing (T4, RTX 20), and one target for each major
# architecture: code for x.0 runs on x.y, and PTX of the last covers what comes after.
RELEASE_ARCHS = ("7.5", "8.0", "9.0", "10.0", "12.0")

# What makes a folder a toolkit, each line with the places where distributions put it.
TOOLKIT_FILES = (
    ("bin/nvcc",),
    ("include/cuda_runtime.h",),
    ("lib64/libcudart.so", "lib/libcudart.so"),
)


@dataclass(frozen=True)
class CudaPlan:
    """What was decided: the toolkit's root where the CUDA module is built, else why it is not."""

    root: Path | None
    version: str  # of the toolkit, such as "13.0"; empty where CUDA is left out
    reason: str  # why CUDA is left out; empty where it is built
    includes: tuple[Path, ...] = ()  # what must follow the toolkit's own headers


def is_toolkit(root: Path) -> bool:
    """Whether `root` has the compiler, the runtime's header and its library."""
    return all(any((root / name).exists() for name in names) for names in TOOLKIT_FILES)


def toolkit_of_nvcc(nvcc: str) -> Path | None:
    """The toolkit behind an nvcc, which may be a wrapper script far from its toolkit.

    A dry run makes the real compiler print its own folder as `#$ _HERE_=<root>/bin`.
    """
    try:
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    here = re.search(r"^#\$ _HERE_=(.+)$", output.stderr, re.MULTILINE)
    if here is None:
        return None
    root = Path(here.group(1).strip()).parent
    return root if is_toolkit(root) else None


def find_toolkit(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The toolkit's root from CUDA_HOME or CUDA_PATH, else from the nvcc on PATH; None if neither.

    An invalid CUDA_HOME is not replaced by the nvcc on PATH: the user meant another toolkit.
    """
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if home:
        return Path(home) if is_toolkit(Path(home)) else toolkit_of_nvcc(f"{home}/bin/nvcc")
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    return toolkit_of_nvcc(nvcc) if nvcc else None


def nvcc_output(root: Path, flag: str) -> str:
    """What `<root>/bin/nvcc <flag>` prints."""
    command = [str(root / "bin" / "nvcc"), flag]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def toolkit_version(root: Path) -> str:
    """The toolkit's version as major.minor."""
    release = re.search(r"release (\d+\.\d+)", nvcc_output(root, "--version"))
    if release is None:
        raise RuntimeError(f"no release number in the output of {root}/bin/nvcc --version")
    return release.group(1)


def decide(setting: str, torch_version: str, torch_cuda: str | None, root: Path | None) -> CudaPlan:
    """Whether to build the CUDA module, from FUSEDSTEP_CUDA, torch's CUDA version and the toolkit.

    A visible GPU plays no part: machines that build packages have none. ValueError if `setting` is
    not auto, 1 or 0; RuntimeError if it is 1 and something is missing.
    """
    if setting not in ("auto", "1", "0"):
        raise ValueError(f"FUSEDSTEP_CUDA must be auto, 1 or 0, got {setting!r}")
    version = toolkit_version(root) if root and setting != "0" else ""
    if setting == "0":
        lack = "FUSEDSTEP_CUDA=0"
    elif torch_cuda is None:
        lack = f"torch {torch_version} is built without CUDA"
    elif root is None:
        lack = (
            "no CUDA toolkit found: neither CUDA_HOME nor an nvcc on PATH leads to a folder with "
            + ", ".join(names[0] for names in TOOLKIT_FILES)
        )
    elif version.split(".")[0] != torch_cuda.split(".")[0]:
        lack = f"the toolkit is CUDA {version}, torch {torch_version} is built for {torch_cuda}"
    else:
        try:
            others = solvers.wheel_folders(version)
            return CudaPlan(root, version, "", solvers.header_folders(root / "include", others))
        except LookupError as error:
            lack = str(error)
    if setting == "1":
        raise RuntimeError(f"FUSEDSTEP_CUDA=1 but {lack}")
    return CudaPlan(None, "", lack)


def default_archs(torch_flags: str, nvcc_codes: Iterable[str]) -> str:
    """The value for TORCH_CUDA_ARCH_LIST if the user gave none.

    torch's own guess looks at the visible GPUs and fails with an IndexError where there are none.
    `torch_flags` is what torch was built for ("sm_80 sm_90"), `nvcc_codes` what nvcc can compile.
    """
    known = set(torch_flags.split()) & set(nvcc_codes)
    archs = [arch for arch in RELEASE_ARCHS if "sm_" + arch.replace(".", "") in known]
    if not archs:
        raise RuntimeError(
            f"torch's CUDA architectures ({torch_flags}) and the toolkit's have none of "
            f"{', '.join(RELEASE_ARCHS)} in common: set TORCH_CUDA_ARCH_LIST"
        )
    return ";".join(archs) + "+PTX"
