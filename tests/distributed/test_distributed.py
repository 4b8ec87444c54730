"""Several gloo processes on the CPU against a single one: tests/distributed holds the checks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

from tests.distributed import check_checkpoints, worker
from tests.distributed.every_check import CHECKS
from tests.distributed.side_by_side import SideBySide

DEADLINE = 600  # seconds for all checks of one number of processes
# Torch is imported once, by the server that every rank is forked from, with what optimizers import.
RANKS = multiprocessing.get_context("forkserver")
RANKS.set_forkserver_preload(["torch._dynamo", "tests.distributed.worker"])


class Launches:
    """Starts each number of processes once, for all its checks, and keeps what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs: dict[int, str] = {}

    def run(self, world: int) -> str:
        """Runs the checks of `world` processes, unless they have run; what the ranks printed.

        Once more, with a warning, where a rank died of a signal or waited in vain. Once in dozens
        of launches gloo's own thread dies (pt_gloo_runloop, inside malloc, where malloc's checks
        find nothing wrong). A fault of ours fails the second launch as well.
        """
        if world not in self.outputs:
            logs = [self.folder / f"log.{world}.{rank}" for rank in range(world)]
            reasons = self._launch(logs)
            if reasons:
                warnings.warn(f"launched again: of {world} ranks, ended by {reasons}", stacklevel=1)
                for file in (*self.folder.glob(f"*.{world}.*"), self.folder / f"store-of-{world}"):
                    file.unlink(missing_ok=True)
                self._launch(logs)
            self.outputs[world] = "\n".join(log.read_text() for log in logs if log.exists())
        return self.outputs[world]

    def _launch(self, logs: list[Path]) -> list[str]:
        """A process for each log, until all have ended; signals and time-outs that ended some."""
        world = len(logs)
        ranks = [
            RANKS.Process(target=worker.main, args=(rank, world, self.folder, log))
            for rank, log in enumerate(logs)
        ]
        with pytest.MonkeyPatch.context() as environment:  # of the server, if it starts now
            environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            environment.setenv("OMP_NUM_THREADS", "1")
            for rank in ranks:
                rank.start()
        signals = self._wait(ranks)
        written = [*logs, *self.folder.glob(f"*.{world}.*")]  # logs, and what failed of each check
        in_vain = any("Timed out waiting" in path.read_text() for path in written if path.exists())
        return [*signals, *["a time-out"] * in_vain]

    @staticmethod
    def _wait(ranks: list[Any]) -> list[str]:
        """Where one failed, the others wait for it in vain and are ended."""
        until = time.monotonic() + DEADLINE
        while any(rank.is_alive() for rank in ranks) and time.monotonic() < until:
            if any(rank.exitcode for rank in ranks):
                time.sleep(2)  # the others may be about to write down why they fail, too
                break
            time.sleep(0.02)
        codes = [rank.exitcode or 0 for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.join()
        return [signal.Signals(-code).name for code in codes if code < 0]

    def outcome(self, world: int, name: str) -> str:
        """ "" where the check passed on every rank, else why it did not."""
        output = self.run(world)
        files = [self.folder / f"{name}.{world}.{rank}" for rank in range(world)]
        told = [file.read_text() for file in files if file.exists()]
        if len(told) < world and not any(told):
            return f"not finished by {world - len(told)} of {world} ranks, which printed:\n{output}"
        return "\n".join(filter(None, told))


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("world", "name"), [(world, name) for world, checks in CHECKS.items() for name in checks]
)
def test_ranks(world: int, name: str, launches: Launches) -> None:
    outcome = launches.outcome(world, name)
    assert not outcome, outcome


def test_one_process_loads_what_several_saved(launches: Launches) -> None:
    """The same checkpoint, without torch.distributed's processes."""
    assert not launches.outcome(2, "saved_by_two_loaded_by_three")
    models = SideBySide(lambda model: model)
    for _ in range(check_checkpoints.STEPS):
        models.step_alone()
    check_checkpoints.load(launches.folder / "checkpoint", models.spread, models.optimizer)
    models.step()
