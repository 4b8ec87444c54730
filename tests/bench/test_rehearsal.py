"""Rehearsals: "cuda" goes through the harness, the CPU does not; what a GPU refuses is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.rehearsal import NOT_REHEARSED
from bench.record import ROOT

pytestmark = pytest.mark.slow

BEGINNING = """
import copy
import pytest
import torch
import fusedstep
from bench.gpu.rehearsal import take

host = take()

def launches(call):
    before = host.launches()
    call()
    return host.launches() - before
"""

PATHS = """
def stepped(device):
    torch.manual_seed(0)
    params = [torch.randn(n).to(device).requires_grad_() for n in (1, 300, 40000)]
    for param in params:
        param.grad = param.detach() * 3
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    optimizer.step()  # which also sends its table
    count = launches(optimizer.step)
    assert optimizer.grad_norm.device == params[0].device
    return [*params, optimizer.grad_norm], count

on_cpu, launched_for_cpu = stepped("cpu")
on_gpu, launched_for_gpu = stepped("cuda")
assert (launched_for_cpu, launched_for_gpu) == (0, 2)
for a, b in zip(on_cpu, on_gpu):
    assert (a.device.type, str(b.device), b.is_cuda) == ("cpu", "cuda:0", True)
    assert b.cpu().device.type == "cpu" and torch.equal(a, b.cpu())

# The harness's device is what makes the difference: without it there is none.
previous = fusedstep._C.use_device("cuda", None, reason="for this test")
with pytest.raises(RuntimeError, match="for this test"):
    fusedstep.get_total_norm([torch.ones(3, device="cuda")])
fusedstep._C.use_device("cuda", previous)

A = torch.randn(3, 50, 40)
assert launches(lambda: fusedstep.pinv(A)) == 0
calls = host.library_calls()
P = fusedstep.pinv(A.cuda(), driver="eigh")
assert host.library_calls() > calls
torch.testing.assert_close(P.cpu(), fusedstep.pinv(A))
"""

TORCH = """
x = torch.randn(5, 7)
y = x.cuda()
assert torch.equal((y @ y.mT + 1).cpu(), x @ x.mT + 1)
y.mul_(2)[1:3].fill_(4.0)
assert torch.equal(y.cpu(), torch.cat([2 * x[:1], torch.full((2, 7), 4.0), 2 * x[3:]]))
lists = [x.cuda(), y.clone()]
torch._foreach_mul_(lists, 3.0)
assert torch.equal(lists[0].cpu(), 3 * x)
torch.add(x.cuda(), 1, out=(out := torch.empty(0, device="cuda")))
assert torch.equal(out.cpu(), x + 1)

z = x.cuda().requires_grad_()
(z ** 2).sum().backward()
assert z.grad.is_cuda and torch.equal(z.grad.cpu(), 2 * x)

twin = copy.deepcopy(y)
assert twin.is_cuda and twin.data_ptr() != y.data_ptr() and torch.equal(twin, y)
generator = torch.Generator("cuda").manual_seed(1)
assert torch.randn(3, generator=generator, device="cuda").is_cuda
before = torch.cuda.memory_allocated()
kept = torch.empty(1000, device="cuda")
assert torch.cuda.memory_allocated() - before == 4000
"""

REFUSED = """
x, y = torch.ones(3), torch.ones(3, device="cuda")
with pytest.raises(RuntimeError, match="same device"):
    x + y
with pytest.raises(RuntimeError, match="same device"):
    y.add_(x)
with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
    torch.randn(3, generator=torch.Generator(), device="cuda")
with pytest.raises(TypeError, match="convert cuda:0 device type tensor to numpy"):
    y.numpy()

begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
begin.record(), end.record()
with pytest.raises(RuntimeError, match="not ready"):
    begin.elapsed_time(end)
end.synchronize()
assert begin.elapsed_time(end) > 0

torch.cuda._sleep(1000)
assert not torch.cuda.current_stream().query()
torch.cuda.set_sync_debug_mode("error")
y.add_(1)
for waits in (lambda: float(y[0]), y.cpu, y.nonzero, lambda: y[y > 0]):
    with pytest.raises(RuntimeError, match="synchronizing"):
        waits()
torch.cuda.set_sync_debug_mode("default")
assert not torch.cuda.current_stream().query()
y.cpu()
assert torch.cuda.current_stream().query()
"""

GRAPHS = """
x = torch.arange(5.0, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    doubled = x * 2
    x.add_(1)
    norm = fusedstep.get_total_norm([x])
    with pytest.raises(RuntimeError, match="stream is capturing"):
        float(x[0])
assert torch.equal(x.cpu(), torch.arange(5.0))  # the capture itself does nothing
for times in (1, 2):
    graph.replay()
    now = torch.arange(5.0) + times
    assert torch.equal(x.cpu(), now) and torch.equal(doubled.cpu(), 2 * (now - 1))
    assert torch.equal(norm.cpu(), fusedstep.get_total_norm([now]))
"""


def rehearse(module: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`module` may be in `folder`."""
    path = [str(ROOT / "python"), str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "bench.gpu.rehearsal", module, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.parametrize("part", [PATHS, TORCH, REFUSED, GRAPHS], ids=range(4))
def test_the_devices_are_two_paths(simt: Any, part: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"{BEGINNING}{part}\nprint('to the end')\n")
    ended = rehearse("program", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "to the end\n"


@pytest.mark.parametrize(
    ("last", "status"), [("raise SystemExit(7)", 7), ("1 / 0", 1), ("print(__name__)", 0)]
)
def test_the_exit_status_is_the_programs(simt: Any, last: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        f"import sys\nassert sys.argv[1:] == ['-x', '3']\n{last}\n"
    )
    ended = rehearse("program", "-x", "3", folder=tmp_path)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ("" if status else "__main__\n")


def test_tests_for_a_gpu_are_run(simt: Any, tmp_path: Path) -> None:
    tests = ["tests/optim/test_cuda.py", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    names = "lr_on_the_device or more_than_2 or same_bits_every_time"
    ended = rehearse("pytest", *tests, "-k", names, folder=tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "1 passed, 1 skipped" in ended.stdout  # and one that is left out


def test_tests_that_are_left_out_exist() -> None:
    for name in NOT_REHEARSED:
        path, function = name.partition("[")[0].split("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text()
