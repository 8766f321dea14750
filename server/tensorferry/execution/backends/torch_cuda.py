"""The real ``Gpu``: torch.cuda. The only code that needs a GPU to run, and so kept plain.

What it leans on, with sources:

* A copy between pinned memory and the device with ``non_blocking`` is asynchronous; torch's caching host
  allocator doesn't hand freed pinned memory out again while a copy that it saw uses it
  (docs.pytorch.org, "CUDA semantics: Use pinned memory buffers").
* Memory that is allocated on one stream and used on another must be kept until that use is over; those
  who call keep it until they have waited for the event behind it ("CUDA semantics: CUDA streams").
* torch has 32 streams of each priority on a device and hands them out in turns, so that two lanes may be
  the same stream ("CUDA semantics"; c10/cuda/CUDAStream.h). What one of them enqueues while the other is
  captured would become a part of its graph. So the lanes that models run on are streams that no other
  lane has, and copies, of which each direction has one engine anyway, go to streams of another priority.
* Weights are copied to the device, and converted there, on the default stream of the thread that loads
  them, which the lanes aren't ordered behind (torch's streams don't wait for the default one). So
  whoever attaches waits for that stream first.
* Each operation sets the calling thread's stream and leaves it so (``torch.cuda.set_stream``): the
  context manager asks for the one before and puts it back, which takes longer than the rest of a small
  operation. Threads that use a ``CudaGpu`` do no other work on a device.
* The allocator's error for memory that ran out reaches us as a plain RuntimeError through TorchScript's
  interpreter (torch/csrc/jit/runtime/interpreter.cpp) and compiled packages, which don't even keep its
  words; libraries have errors of their own. The allocator's count of such errors tells.
* ``capture_begin`` and ``capture_end`` alone, where ``torch.cuda.graph`` also synchronises the device and
  empties the cache, which would stop the other models. ``thread_local``: what other threads do
  meanwhile (allocate, for one) doesn't spoil the capture (CUDA runtime API, cudaStreamCaptureMode).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

import torch

from tensorferry.execution.backends.torch_gpu import Forward, fill_pinned
from tensorferry.execution.backends.torch_memory import is_out_of_memory, words_of
from tensorferry.tensors import Buffer

__all__ = ["CudaGpu"]

# torch leaves much of this without annotations.
_cuda: Final[Any] = torch.cuda

#: One capture at a time in the process, and no memory given back meanwhile: cudaFree may spoil it.
_capturing: Final = threading.Lock()

#: Streams of one priority that torch has on a device, and those that run models.
_STREAMS: Final = 32
_taken: Final[set[tuple[str, int]]] = set()
_taking: Final = threading.Lock()

#: Before this version a capture that failed left the allocator in the belief that it went on
#: (github.com/pytorch/pytorch/pull/180395), so that giving back memory raised ever after, and likewise
#: the generator of random numbers (aten/src/ATen/cuda/CUDAGeneratorImpl.cpp, capture_epilogue).
_ENDS_FAILED_CAPTURES: Final = (2, 12)


def _new_pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class _Event:
    __slots__ = ("raw",)

    def __init__(self, blocking: bool) -> None:
        self.raw = _cuda.Event(enable_timing=True, blocking=blocking)

    def synchronize(self) -> None:
        self.raw.synchronize()

    def elapsed_ns(self, later: _Event) -> int:
        return int(self.raw.elapsed_time(later.raw) * 1e6)


class _Lane:
    """A stream; ``is_alone`` if no other lane has it."""

    def __init__(self, device: torch.device, runs: bool) -> None:
        self.is_alone = False
        if not runs:
            self.stream = _cuda.Stream(device, priority=-1)
            return
        with _taking:
            for _ in range(_STREAMS):
                self.stream = _cuda.Stream(device)
                name = (str(device), int(self.stream.cuda_stream))
                if name not in _taken:
                    self.is_alone = True
                    _taken.add(name)
                    weakref.finalize(self, _taken.discard, name)
                    return

    def record(self, event: _Event) -> None:
        event.raw.record(self.stream)

    def wait(self, event: _Event) -> None:
        event.raw.wait(self.stream)


class _Graph:
    """``outputs`` are kept, so that no later graph of the same pool is given their memory."""

    __slots__ = ("graph", "inputs", "outputs")

    def __init__(self, graph: Any, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor]) -> None:  # noqa: ANN401
        self.graph = graph
        self.inputs = inputs
        self.outputs = outputs


class CudaGpu:
    """A CUDA device (``cuda:0``) for one copy of a model. See ``Gpu``."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        uuid = getattr(_cuda.get_device_properties(self.device), "uuid", "")
        self.uuid = f"GPU-{uuid}" if uuid else ""
        self._times_full = self._count_times_full()

    def attach(self) -> None:
        """Make it the calling thread's device, and wait for what loading has enqueued there."""
        _cuda.set_device(self.device)
        _cuda.default_stream(self.device).synchronize()

    def lane(self, runs: bool = False) -> _Lane:
        """Return a lane."""
        return _Lane(self.device, runs)

    def event(self, blocking: bool) -> _Event:
        """Return a new event."""
        return _Event(blocking)

    def pinned(self, size: int) -> torch.Tensor:
        """Return pinned memory, from torch's cache where it has some."""
        try:
            return _new_pinned(size)
        except RuntimeError as error:
            raise self._told(error)  # noqa: B904 - it says itself what it comes from

    def empty(self, lane: _Lane, size: int) -> torch.Tensor:
        """Return device memory."""
        _cuda.set_stream(lane.stream)
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def fill(self, target: torch.Tensor, parts: Sequence[Buffer]) -> None:
        """Copy into pinned memory."""
        fill_pinned(target, parts)

    def view(self, pinned: torch.Tensor) -> memoryview:
        """Return pinned memory to read."""
        return pinned.numpy().data

    def copy(self, lane: _Lane, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy."""
        _cuda.set_stream(lane.stream)
        target.copy_(source, non_blocking=True)

    def zero(self, lane: _Lane, target: torch.Tensor) -> None:
        """Enqueue zeros."""
        _cuda.set_stream(lane.stream)
        target.zero_()

    def call(self, lane: _Lane, forward: Forward, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue a forward pass."""
        _cuda.set_stream(lane.stream)
        try:
            with torch.inference_mode():
                return forward(*inputs)
        except RuntimeError as error:
            raise self._told(error)  # noqa: B904 - it says itself what it comes from

    def pool(self) -> Any:  # noqa: ANN401 - torch's handle
        """Return a pool for graphs."""
        return _cuda.graph_pool_handle()

    def capture(self, lane: _Lane, forward: Forward, inputs: Sequence[torch.Tensor], pool: Any) -> _Graph:  # noqa: ANN401
        """Capture a forward pass."""
        if not lane.is_alone:
            raise RuntimeError(f"more than {_STREAMS} model copies share {self.device}")
        try:
            with _capturing:
                _cuda.set_stream(lane.stream)
                return self._captured(forward, inputs, pool)
        except RuntimeError as error:
            raise self._told(error)  # noqa: B904 - it says itself what it comes from

    def replay(self, lane: _Lane, captured: _Graph) -> None:
        """Enqueue a graph."""
        _cuda.set_stream(lane.stream)
        captured.graph.replay()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is on this device."""
        return tensor.device == self.device

    def allocated_bytes(self) -> int:
        """Return what tensors hold."""
        return int(_cuda.memory_allocated(self.device))

    def reserved_bytes(self) -> int:
        """Return what torch has taken."""
        return int(_cuda.memory_reserved(self.device))

    def peak_bytes(self) -> int:
        """Return the most that tensors held since ``reset_peak``."""
        return int(_cuda.max_memory_allocated(self.device))

    def reset_peak(self) -> None:
        """Begin to watch for the most again."""
        _cuda.reset_peak_memory_stats(self.device)

    def release_cached(self) -> None:
        """Give back what torch keeps of freed memory."""
        with _capturing:
            _cuda.empty_cache()

    def is_lost(self) -> bool:
        """Ask the device for a trifle. Errors of a kernel are sticky: everything after fails, too."""
        try:
            torch.ones(1, device=self.device).add_(1).item()
        except torch.OutOfMemoryError:
            return False
        except RuntimeError:
            return True
        return False

    def _captured(self, forward: Forward, inputs: Sequence[torch.Tensor], pool: Any) -> _Graph:  # noqa: ANN401
        """Capture on the thread's stream."""
        graph = _cuda.CUDAGraph()
        # Not in inference mode: torch makes tensors here, for random numbers, that it writes to later.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            with torch.inference_mode():
                outputs = forward(*inputs)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            self._forget_capture(pool)
            raise
        try:
            graph.capture_end()
        except BaseException:
            self._forget_capture(pool)
            raise
        return _Graph(graph, inputs, outputs)

    def _told(self, error: RuntimeError) -> RuntimeError:
        """Return ``error``, or torch's own for memory that ran out if that is what it is."""
        before, self._times_full = self._times_full, self._count_times_full()
        if isinstance(error, torch.OutOfMemoryError):
            return error
        if self._times_full > before or is_out_of_memory(error):
            told = torch.OutOfMemoryError(words_of(error))
            told.__cause__ = error
            return told
        return error

    def _count_times_full(self) -> int:
        """Return how often torch's allocator has found the device full."""
        return int(_cuda.memory_stats(self.device).get("num_ooms", 0))

    def _forget_capture(self, pool: Any) -> None:  # noqa: ANN401
        """Tell torch that a failed capture is over, where its allocator and generator don't notice."""
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if version >= _ENDS_FAILED_CAPTURES or end is None:
            return
        with contextlib.suppress(RuntimeError):
            end(self.device.index or 0, pool)
        # Until a later capture ends well, the generator refuses random numbers to everybody.
        with contextlib.suppress(RuntimeError):
            graph = _cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=self.device)
            graph.capture_end()
