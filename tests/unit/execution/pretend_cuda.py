"""``torch.cuda`` in miniature, on the CPU: enough for ``torch_cuda.CudaGpu`` to run its every line.

Calls must fit the signatures of the real ones. Operations of torch's are done at once, and told with the
stream that was the thread's own then; a graph does the operations that it captured again. What orders
the work of one stream before another's isn't looked at here: the emulated GPU is for that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

UUID = "8f2c6d1e-0000-4000-8000-123456789abc"


def as_torch(function: Callable) -> Callable:
    """Call ``function`` only as the function of ``torch.cuda`` with its name can be called."""
    signature = inspect.signature(getattr(torch.cuda, function.__name__))

    def checked(*args, **kwargs):
        signature.bind(*args, **kwargs)
        return function(*args, **kwargs)

    return checked


class PretendCuda(TorchDispatchMode):
    """Used as a context: operations are noticed within it, on the thread that entered it.

    ``story`` has what was done on which stream, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.story: list[tuple[str, str]] = []
        self.current = self._default = PretendStream(self, "default")
        self.capturing: PretendGraph | None = None
        self.devices: list[torch.device] = []
        self.is_replaying = False
        self.times_full = 0
        self.given_back = 0
        self.fails_to_end: RuntimeError | None = None
        self._made: dict[str, int] = {}
        self._known: dict[str, PretendStream] = {}
        self.module = SimpleNamespace(
            Stream=self._new_stream,
            Event=lambda enable_timing=False, blocking=False: PretendEvent(self, enable_timing),
            CUDAGraph=lambda: PretendGraph(self),
            memory_allocated=as_torch(self.memory_allocated),
            memory_reserved=as_torch(self.memory_reserved),
            max_memory_allocated=as_torch(self.max_memory_allocated),
            reset_peak_memory_stats=as_torch(self.reset_peak_memory_stats),
            memory_stats=as_torch(self.memory_stats),
            empty_cache=as_torch(self.empty_cache),
            get_device_properties=as_torch(self.get_device_properties),
            set_device=as_torch(self.set_device),
            set_stream=as_torch(self.set_stream),
            stream=as_torch(self.stream),
            default_stream=as_torch(self.default_stream),
            graph_pool_handle=as_torch(self.graph_pool_handle),
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.is_replaying:
            return result
        name = func.overloadpacket.__name__
        if name in ("copy_", "zero_"):
            how = (
                " at once"
                if name == "copy_" and not (kwargs.get("non_blocking") or args[2:] == (True,))
                else ""
            )
            self.story.append((self.current.name, name + how))
        if self.capturing is not None:
            assert self.current is self.capturing.stream, "captured on another stream"
            self.capturing.operations.append((func, args, kwargs, result))
        return result

    def _new_stream(self, device=None, priority=0, **more) -> PretendStream:
        assert isinstance(device, torch.device)
        assert not more
        kind = {0: "run", -1: "copy"}[priority]
        number = self._made.get(kind, 0)
        self._made[kind] = number + 1
        name = f"{kind} {number % 32}"
        return self._known.setdefault(name, PretendStream(self, name))

    def set_device(self, device) -> None:
        self.devices.append(device)

    def set_stream(self, stream) -> None:
        assert isinstance(stream, PretendStream)
        self.current = stream

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def default_stream(self, device=None) -> PretendStream:
        return self._default

    def get_device_properties(self, device=None):
        return SimpleNamespace(uuid=UUID)

    def graph_pool_handle(self):
        return (0, 1)

    def memory_allocated(self, device=None):
        return 1000

    def memory_reserved(self, device=None):
        return 4096

    def max_memory_allocated(self, device=None):
        return 1500

    def reset_peak_memory_stats(self, device=None):
        pass

    def memory_stats(self, device=None):
        return {"num_ooms": self.times_full} if self.times_full else {}

    def empty_cache(self):
        assert self.capturing is None, "memory is given back during a capture"
        self.given_back += 1


class PretendStream:
    def __init__(self, cuda: PretendCuda, name: str) -> None:
        self.cuda = cuda
        self.name = name
        self.cuda_stream = id(self)

    def synchronize(self) -> None:
        self.cuda.story.append((self.name, "synchronize"))


class PretendEvent:
    def __init__(self, cuda: PretendCuda, enable_timing: bool) -> None:
        assert enable_timing
        self.cuda = cuda
        self.at = -1

    def record(self, stream: PretendStream) -> None:
        assert isinstance(stream, PretendStream)
        self.at = len(self.cuda.story)
        self.cuda.story.append((stream.name, "record"))

    def wait(self, stream: PretendStream) -> None:
        assert self.at >= 0, "waits for an event that nothing has recorded"
        self.cuda.story.append((stream.name, "wait"))

    def synchronize(self) -> None:
        assert self.at >= 0
        self.cuda.story.append(("host", "synchronize"))

    def elapsed_time(self, end_event: PretendEvent) -> float:
        assert 0 <= self.at <= end_event.at
        return (end_event.at - self.at) / 1000


class PretendGraph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self, cuda: PretendCuda) -> None:
        self.cuda = cuda
        self.operations: list = []
        self.stream: PretendStream | None = None
        self.is_ended = False

    def capture_begin(self, pool=None, capture_error_mode="global") -> None:
        assert self.cuda.capturing is None, "two captures at once"
        assert self.cuda.current.name.startswith("run"), "captured on a stream that isn't for that"
        assert not torch.is_inference_mode_enabled(), "the generator's tensors would be inference tensors"
        assert capture_error_mode == "thread_local"
        self.stream = self.cuda.current
        self.cuda.capturing = self
        self.cuda.story.append((self.stream.name, "capture"))

    def capture_end(self) -> None:
        assert self.cuda.capturing is self
        assert self.cuda.current is self.stream
        self.cuda.capturing = None
        self.cuda.story.append((self.stream.name, "captured"))
        if self.cuda.fails_to_end is not None:
            raise self.cuda.fails_to_end
        self.is_ended = True

    def replay(self) -> None:
        assert self.is_ended
        self.cuda.story.append((self.cuda.current.name, "replay"))
        now: dict[int, torch.Tensor] = {}

        def of_now(value):
            return now.get(id(value), value)

        self.cuda.is_replaying = True
        for func, args, kwargs, result in self.operations:
            made = func(
                *[of_now(each) for each in args], **{key: of_now(each) for key, each in kwargs.items()}
            )
            if made is not result:
                now[id(result)] = made
        self.cuda.is_replaying = False
