"""Sides in a process of their own, for a library with its own threads: both ends of the pipe.

    python -m bench.peers.child bench.peers.optax

serves the sides that this module makes: it reads requests from stdin and writes answers to stdout,
as pickles. Between requests it sleeps, and so do its threads some milliseconds after their work:
`bench.measure.in_rounds` waits for that, so that they never run while another library is timed. A
process is started for the first case and serves all that follow.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from bench.case import Side, Work
from bench.record import ROOT

children: dict[tuple[str, int], Child] = {}


class Child:
    """A running process, seen from the program that times."""

    def __init__(self, module: str, threads: int) -> None:
        counts = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")  # the last is XLA's
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **dict.fromkeys(counts, str(threads))}
        command = [sys.executable, "-m", "bench.peers.child", module]
        self.module = module
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.end)

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Where requests go and where answers come from."""
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        return requests, answers

    def ask(self, *request: Any) -> Any:
        """What the named method of Server answers; RuntimeError if it raised, or the child died."""
        requests, answers = self.pipes
        try:
            pickle.dump(request, requests)
            requests.flush()
            answer, failure = pickle.load(answers)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):  # the last: half an answer
            status = self.process.wait()
            raise RuntimeError(f"the process of {self.module} ended with {status}") from None
        if failure:
            raise RuntimeError(f"in the process of {self.module}: {failure}")
        return answer

    def end(self) -> None:
        """Ends it: its requests are over."""
        atexit.unregister(self.end)
        requests, answers = self.pipes
        with suppress(BrokenPipeError):  # of a request that a dead one has not read
            requests.close()
        self.process.wait()
        answers.close()


def child_of(module: str, threads: int) -> Child:
    """The running one, or a new one."""
    child = children.get((module, threads))
    if child is None or child.process.poll() is not None:
        child = children[module, threads] = Child(module, threads)
    return child


def sides(module: str, work: Work, device: torch.device) -> Iterator[Side]:
    """The sides that `module` makes in its process."""
    if device.type != "cpu":
        return
    child = child_of(module, torch.get_num_threads())
    child.ask("prepare", work)
    while (made := child.ask("make")) is not None:
        key, provider = made
        yield Side(
            provider,
            partial(child.ask, "sample", key),
            partial(result_of, child, key),
            partial(child.ask, "state_bytes", key),
            close=partial(close, child, key),
            process=child.process.pid,
            renew=partial(child.ask, "renew_grads", key),
        )


def result_of(child: Child, key: int) -> list[Tensor]:
    return list(map(torch.from_numpy, child.ask("result", key)))


def close(child: Child, key: int) -> None:
    """Lets the side go, if its process has not ended before."""
    with suppress(RuntimeError):
        child.ask("close", key)


class Server:
    """What the child does for each request."""

    def __init__(self, module: str) -> None:
        self.module = import_module(module)
        self.made: dict[int, Side] = {}
        self.coming: Iterator[Side] = iter(())
        self.count = 0

    def prepare(self, work: Work) -> None:
        self.coming = self.module.sides(work, torch.device("cpu"))

    def make(self) -> tuple[int, str] | None:
        side = next(self.coming, None)
        if side is None:
            return None
        self.count += 1
        self.made[self.count] = side
        return self.count, side.provider

    def sample(self, key: int, calls: int) -> float:
        return self.made[key].sample(calls)

    def result(self, key: int) -> list[np.ndarray]:
        return [tensor.detach().numpy() for tensor in self.made[key].result()]

    def renew_grads(self, key: int) -> None:
        self.made[key].renew_grads()

    def state_bytes(self, key: int) -> int:
        return self.made[key].state_bytes()

    def close(self, key: int) -> None:
        self.made.pop(key).close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the other end, and so this loop
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    server = Server(sys.argv[1])
    while True:
        try:
            method, *values = pickle.load(requests)
        except EOFError:
            return
        answer, failure = None, ""
        try:
            answer = getattr(server, method)(*values)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        pickle.dump((answer, failure), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
