"""Whether the CUDA module is built: finding the toolkit, FUSEDSTEP_CUDA, the default targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.fake_toolkit import headers, script

from python.buildtools import cuda, solvers
from tests.cuda.expected import ARCHS


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that looks like CUDA 13.0: its nvcc answers --version and a dry run."""
    root = tmp_path / "toolkit"
    headers(root / "include", *solvers.HEADERS)
    for name in ("include/cuda_runtime.h", "lib64/libcudart.so"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    answer = f"echo 'Cuda compilation tools, release 13.0, V13.0.88'; echo '#$ _HERE_={root}/bin'"
    script(root / "bin/nvcc", f"{answer} >&2; echo 'release 13.0, V13.0.88'")
    return root


def test_toolkit_is_found_behind_a_wrapper(toolkit: Path, tmp_path: Path) -> None:
    wrapper = script(tmp_path / "elsewhere/bin/nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    assert cuda.find_toolkit({"PATH": str(wrapper.parent)}) == toolkit
    assert cuda.find_toolkit({"PATH": "", "CUDA_HOME": str(wrapper.parents[1])}) == toolkit
    assert cuda.find_toolkit({"PATH": "", "CUDA_PATH": str(toolkit)}) == toolkit


def test_toolkit_without_its_library_is_none(toolkit: Path) -> None:
    (toolkit / "lib64/libcudart.so").unlink()
    assert cuda.find_toolkit({"PATH": str(toolkit / "bin")}) is None


def test_wrong_cuda_home_is_not_replaced_by_path(toolkit: Path, tmp_path: Path) -> None:
    environ = {"PATH": str(toolkit / "bin"), "CUDA_HOME": str(tmp_path / "nowhere")}
    assert cuda.find_toolkit(environ) is None


@pytest.mark.parametrize("setting", ["", "yes", "2", "AUTO", "true"])
def test_setting_other_than_auto_1_0_is_an_error(setting: str) -> None:
    with pytest.raises(ValueError, match=f"FUSEDSTEP_CUDA must be auto, 1 or 0, got '{setting}'"):
        cuda.decide(setting, "2.14.1", "13.0", None)


@pytest.mark.parametrize("setting", ["auto", "1"])
def test_cuda_is_built_where_all_is_there(setting: str, toolkit: Path) -> None:
    plan = cuda.decide(setting, "2.14.1", "13.2", toolkit)  # minor versions go together
    assert plan == cuda.CudaPlan(toolkit, "13.0", "")


@pytest.mark.parametrize(
    ("torch_cuda", "has_toolkit", "reason"),
    [
        (None, True, "torch 2.14.1 is built without CUDA"),
        ("13.0", False, "no CUDA toolkit found"),
        ("12.8", True, "the toolkit is CUDA 13.0, torch 2.14.1 is built for 12.8"),
    ],
)
def test_each_lack_is_recorded_by_auto_and_refused_by_1(
    torch_cuda: str | None, has_toolkit: bool, reason: str, toolkit: Path
) -> None:
    root = toolkit if has_toolkit else None
    plan = cuda.decide("auto", "2.14.1", torch_cuda, root)
    assert plan.root is None
    assert plan.reason.startswith(reason)
    with pytest.raises(RuntimeError, match=re.escape(f"FUSEDSTEP_CUDA=1 but {reason}")):
        cuda.decide("1", "2.14.1", torch_cuda, root)


def test_a_toolkit_without_the_solvers_headers(
    toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toolkit / "include" / "cusolverDn.h").unlink()
    wheel = headers(tmp_path / "wheel", *solvers.HEADERS)
    monkeypatch.setattr(solvers, "wheel_folders", lambda cuda: [wheel])
    assert cuda.decide("1", "2.14.1", "13.0", toolkit).includes == (wheel,)
    monkeypatch.setattr(solvers, "wheel_folders", lambda cuda: [])
    reason = cuda.decide("auto", "2.14.1", "13.0", toolkit).reason
    assert reason.startswith("cusolverDn.h is neither in ")
    with pytest.raises(RuntimeError, match=r"^FUSEDSTEP_CUDA=1 but cusolverDn\.h is neither"):
        cuda.decide("1", "2.14.1", "13.0", toolkit)


def test_0_leaves_cuda_out(toolkit: Path) -> None:
    assert cuda.decide("0", "2.14.1", "13.0", toolkit).reason == "FUSEDSTEP_CUDA=0"


def test_default_architectures_are_those_torch_and_nvcc_share() -> None:
    torch_flags = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
    codes = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]
    assert cuda.default_archs(torch_flags, codes) == "7.5;8.0;9.0;10.0;12.0+PTX"
    assert cuda.default_archs(torch_flags, codes[1:3]) == "8.0;9.0+PTX"
    with pytest.raises(RuntimeError, match="set TORCH_CUDA_ARCH_LIST"):
        cuda.default_archs("sm_70", codes)


def test_what_is_built_for_is_looked_at_by_the_report() -> None:
    """tests/cuda/report.py compiles for each, and allows no spill on any."""
    assert {"sm_" + arch.replace(".", "") for arch in cuda.RELEASE_ARCHS} <= set(ARCHS)
