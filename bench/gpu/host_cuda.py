"""torch.cuda without a GPU: one device, one stream, CUDA tensors in the host's memory.

The tensors are those of tests/simt/torch/cuda_tensors.cpp. Work is done when it is asked for, so
streams order nothing; but what would wait for a GPU is counted, a sleep lasts until something
waits, and times are only told to those who waited. A function of torch.cuda that is not here
raises torch's own error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

NAME = "none: a rehearsal on the host"
MEMORY = 8 << 30  # bytes that the device is said to have
CUDA = torch.autograd.DeviceType.CUDA
TorchGenerator, TorchProfile = torch.Generator, torch.profiler.profile

host: Any = None  # the module of tests/simt/torch/module.cpp
asleep_since = -1  # the number of waits at the last sleep, or -1


def is_asleep() -> bool:
    """Whether nothing has waited since the last sleep."""
    return asleep_since == host.waits()


def capturing_is_refused() -> None:
    if host.capturing():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Cuda:
    """Stands in for torch.cuda, name by name."""

    is_available = is_initialized = is_bf16_supported = staticmethod(lambda *_, **__: True)
    init = _lazy_init = empty_cache = ipc_collect = staticmethod(lambda: None)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    get_device_name = staticmethod(lambda device=None: NAME)
    get_device_capability = staticmethod(lambda device=None: (9, 0))
    # Random numbers are the CPU's.
    manual_seed = manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device="cuda": torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device="cuda": torch.set_rng_state(state))
    memory_allocated = memory_reserved = staticmethod(lambda device=None: host.bytes()[0])
    max_memory_allocated = max_memory_reserved = staticmethod(lambda device=None: host.bytes()[1])
    reset_peak_memory_stats = staticmethod(lambda device=None: host.forget_most_bytes())
    mem_get_info = staticmethod(lambda device=None: (MEMORY - host.bytes()[0], MEMORY))
    is_current_stream_capturing = staticmethod(lambda: host.capturing())

    @staticmethod
    def get_device_properties(device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(
            name=NAME, major=9, minor=0, multi_processor_count=2, total_memory=MEMORY
        )

    @staticmethod
    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        if index:
            raise RuntimeError("CUDA error: invalid device ordinal")

    class device:  # a class in torch as well, which torch.load asks for
        def __init__(self, device: Any) -> None:
            torch.cuda.set_device(device)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    @staticmethod
    def synchronize(device: Any = None) -> None:
        capturing_is_refused()
        host.wait()

    @staticmethod
    def _sleep(cycles: int) -> None:
        global asleep_since
        asleep_since = host.waits()

    @staticmethod
    def set_sync_debug_mode(mode: int | str) -> None:
        host.waiting_is_an_error(mode in (2, "error"))

    class Stream:
        """All of them are the same."""

        cuda_stream = 0

        def __init__(self, device: Any = None, priority: int = 0) -> None:
            self.device = torch.device("cuda", 0)

        def query(self) -> bool:
            return not is_asleep()

        def synchronize(self) -> None:
            torch.cuda.synchronize()

        def wait_stream(self, stream: Any) -> None:
            pass

        wait_event = wait_stream

        def record_event(self, event: Any = None) -> Any:
            event = event or torch.cuda.Event()
            event.record(self)
            return event

    current_stream = default_stream = staticmethod(lambda device=None: torch.cuda.Stream())

    @staticmethod
    @contextmanager
    def stream(stream: Any) -> Iterator[None]:
        yield

    class Event:
        """Takes the time when it is recorded; tells it after something has waited."""

        def __init__(self, enable_timing: bool = False, **_: Any) -> None:
            self.enable_timing = enable_timing
            self.time = self.waits = 0.0
            self.asleep = False

        def record(self, stream: Any = None) -> None:
            self.time, self.waits = time.perf_counter(), host.waits()
            self.asleep = is_asleep()

        def query(self) -> bool:
            return not self.asleep or host.waits() > self.waits

        def synchronize(self) -> None:
            torch.cuda.synchronize()

        wait = synchronize

        def elapsed_time(self, end: Any) -> float:
            for event in (self, end):
                if not event.enable_timing or not event.time:
                    raise ValueError("elapsed_time: both events must be recorded with timing")
                if host.waits() == event.waits:
                    raise RuntimeError("CUDA error: device not ready")
            return max(1e3 * (end.time - self.time), 1e-6)

    class CUDAGraph:
        """The harness keeps the kernels, cuda_tensors.cpp torch's ops between them."""

        def __init__(self, keep_graph: bool = False) -> None:
            self._graph = host.Graph()

        def capture_begin(self, *_: Any, **__: Any) -> None:
            capturing_is_refused()
            self._graph.begin()

        def capture_end(self) -> None:
            self._graph.end()

        def replay(self) -> None:
            self._graph.replay()

        def reset(self) -> None:
            self._graph = host.Graph()

    @staticmethod
    @contextmanager
    def graph(cuda_graph: Any, *_: Any, **__: Any) -> Iterator[None]:
        torch.cuda.synchronize()
        cuda_graph.capture_begin()
        try:
            yield
        finally:
            cuda_graph.capture_end()


class GeneratorType(type):
    """torch.Generator("cuda") draws the CPU's numbers, but only for CUDA tensors."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        on_gpu = torch.device(device).type == "cuda"
        return host.generator_for_cuda() if on_gpu else TorchGenerator(device)

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, TorchGenerator)


class Generator(metaclass=GeneratorType):
    """Stands in for torch.Generator."""


def storage(cls: type, *size: Any, **options: Any) -> Any:
    """Stands in for the constructor of torch.UntypedStorage, which deep copies call."""
    if torch.device(options.get("device") or "cpu").type == "cuda":
        return torch.empty(*size, dtype=torch.uint8, device="cuda").untyped_storage()
    return torch._C.StorageBase.__new__(cls, *size, **options)


class Profile:
    """Stands in for torch.profiler.profile where CUDA is to be profiled: counts the work."""

    def __enter__(self) -> Profile:
        self._before = self._counts()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._counts()
        self._work = {name: after[name] - self._before[name] for name in after}

    def events(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name=name, device_type=CUDA, is_user_annotation=False)
            for name, count in self._work.items()
            for _ in range(count)
        ]

    @staticmethod
    def _counts() -> dict[str, int]:
        return {
            "a kernel of fusedstep": host.launches(),
            "a kernel of torch": host.torch_kernels(),
            "Memcpy HtoD": host.copies(),
        }


def profile(*args: Any, activities: Any = (), **options: Any) -> Any:
    """A profiler of the device's work if that is asked for, else torch's."""
    if torch.profiler.ProfilerActivity.CUDA in activities:
        return Profile()
    return TorchProfile(*args, activities=activities, **options)


def take(module: Any) -> None:
    """Puts all this in torch's place, in this process and for good."""
    global host
    host = module
    host.take_cuda()
    for name in vars(Cuda):
        if not name.startswith("__"):
            setattr(torch.cuda, name, getattr(Cuda, name))
    for owner, name, value in (
        (torch, "Generator", Generator),
        (torch.UntypedStorage, "__new__", storage),
        (torch.profiler, "profile", profile),
    ):
        setattr(owner, name, value)
