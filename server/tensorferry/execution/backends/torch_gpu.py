"""What a model on a GPU needs of it: streams, events, copies, graphs, memory. Says nothing of models.

``Gpu`` is all that ``torch_device`` knows of a device, so that its logic runs in tests on an emulated
one (``tensorferry.testing.emulated_gpu``), which checks that no two accesses to the same memory race.
``torch_cuda`` has the real one; it is the only code that needs a GPU to run.

Rules for those who use it: device work is enqueued on a lane and done later, in the lane's order; lanes
are ordered against each other, and against the host, by events alone. Every access to memory that the
device works on goes through these methods.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch

from tensorferry.tensors import Buffer

__all__ = [
    "Captured",
    "Event",
    "Forward",
    "Gpu",
    "Lane",
    "fill_pinned",
    "first_to_lose",
    "gpu_of",
    "is_known_lost",
    "is_real",
    "opened_by",
]

#: Parts of a batch that are smaller than this on average are joined first.
_SMALL_BYTES: Final = 4096

#: A model's forward pass: tensors on the device in, tensors on the device out.
Forward = Callable[..., list[torch.Tensor]]


class Event(Protocol):
    """A point in a lane's work."""

    def synchronize(self) -> None:
        """Block, without the GIL, until the device has come to it."""
        ...

    def elapsed_ns(self, later: Any) -> int:  # noqa: ANN401 - an event of the same device
        """Return the nanoseconds from here to ``later``, both of which the device has come to."""
        ...


class Lane(Protocol):
    """Device work in order: a CUDA stream."""

    def record(self, event: Any) -> None:  # noqa: ANN401 - an event of the same device
        """Put ``event`` behind all that is enqueued here."""
        ...

    def wait(self, event: Any) -> None:  # noqa: ANN401
        """Let what is enqueued here from now on begin after ``event``. Doesn't block."""
        ...


class Captured(Protocol):
    """A forward pass as one graph: it reads the inputs, and writes the outputs, that it was captured with."""

    @property
    def outputs(self) -> list[torch.Tensor]:
        """Where ``Gpu.replay`` leaves the outputs; meaningless before."""
        ...


class Gpu(Protocol):
    """One device, as one copy of a model uses it. Not shared between models.

    Methods may be called on any thread, one at a time, but for ``Event.synchronize``.
    """

    #: Where device tensors are.
    device: torch.device
    #: As NVML names it ("GPU-..."); "" if that isn't known.
    uuid: str

    def attach(self) -> None:
        """Make it the calling thread's device."""
        ...

    def lane(self, runs: bool = False) -> Lane:
        """Return a new lane; one that ``runs`` models is for forward passes and graphs, others for copies."""
        ...

    def event(self, blocking: bool) -> Event:
        """Return a new event, with the time. ``blocking``: who waits for it sleeps; else it spins."""
        ...

    def pinned(self, size: int) -> torch.Tensor:
        """Return ``size`` bytes of pinned host memory, as a tensor of uint8."""
        ...

    def empty(self, lane: Any, size: int) -> torch.Tensor:  # noqa: ANN401
        """Return ``size`` bytes of device memory that ``lane`` uses first, as a tensor of uint8.

        Raises:
            torch.OutOfMemoryError: there is no room.
        """
        ...

    def fill(self, target: torch.Tensor, parts: Sequence[Buffer]) -> None:
        """Copy ``parts``, one after another, into pinned bytes of exactly their size. On the host, now."""
        ...

    def view(self, pinned: torch.Tensor) -> memoryview:
        """Return pinned bytes for the host to read. The view keeps them alive."""
        ...

    def copy(self, lane: Any, target: torch.Tensor, source: torch.Tensor) -> None:  # noqa: ANN401
        """Enqueue a copy between pinned memory and the device, of tensors alike in shape and dtype."""
        ...

    def zero(self, lane: Any, target: torch.Tensor) -> None:  # noqa: ANN401
        """Enqueue filling device memory with zeros."""
        ...

    def call(self, lane: Any, forward: Forward, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:  # noqa: ANN401
        """Enqueue ``forward`` in inference mode; return its outputs, which aren't written yet.

        Raises:
            torch.OutOfMemoryError: there is no room for what it needs.
            Exception: whatever ``forward`` raises.
        """
        ...

    def pool(self) -> Any:  # noqa: ANN401 - torch's handle
        """Return a new pool of memory for graphs that run one after another on one lane."""
        ...

    def capture(self, lane: Any, forward: Forward, inputs: Sequence[torch.Tensor], pool: Any) -> Captured:  # noqa: ANN401
        """Capture ``forward`` on these very input tensors, without running it.

        What ``forward`` allocates is in the pool: outputs that are, a replay of any graph captured
        before may write over.

        Raises:
            Exception: it can't be captured; the lane is as it was.
        """
        ...

    def replay(self, lane: Any, captured: Any) -> None:  # noqa: ANN401
        """Enqueue a captured graph."""
        ...

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is in the device's memory."""
        ...

    def allocated_bytes(self) -> int:
        """Return what this process's tensors hold on the device."""
        ...

    def reserved_bytes(self) -> int:
        """Return what torch has taken of the device: for tensors, for graphs, and to use again."""
        ...

    def peak_bytes(self) -> int:
        """Return the most of ``allocated_bytes`` since ``reset_peak``."""
        ...

    def reset_peak(self) -> None:
        """Begin to watch for the most again."""
        ...

    def release_cached(self) -> None:
        """Give back what torch keeps of freed memory."""
        ...

    def is_lost(self) -> bool:
        """Ask the device, after an error, whether it fails for good. Blocks."""
        ...


def fill_pinned(target: torch.Tensor, parts: Sequence[Buffer]) -> None:
    """Copy ``parts``, one after another, into bytes on the host of exactly their size.

    Many small parts are joined first: a call for each would take longer than a second copy.
    numpy gives the GIL away while it copies.
    """
    array = target.numpy()
    if len(parts) > 1 and len(array) < _SMALL_BYTES * len(parts):
        parts = [b"".join(parts)]
    start = 0
    for part in parts:
        end = start + len(part)
        array[start:end] = np.frombuffer(part, dtype=np.uint8)
        start = end
    assert start == len(array), "the parts are the batch's bytes"


def _real(device: str) -> Gpu:
    from tensorferry.execution.backends.torch_cuda import CudaGpu

    return CudaGpu(device)


_open: Callable[[str], Gpu] = _real

#: Devices that failed for good, as long as this process lives.
_lost: Final[set[str]] = set()
_losing: Final = threading.Lock()


def gpu_of(device: str) -> Gpu:
    """Return ``device`` (``cuda:0``) for one copy of a model.

    Raises:
        RuntimeError: torch can't use it; ``check_device`` says it better.
    """
    return _open(device)


@contextlib.contextmanager
def opened_by(factory: Callable[[str], Gpu]) -> Iterator[None]:
    """Open devices with ``factory`` in the block, and take them to be there: for tests, and rehearsals."""
    global _open
    before, _open = _open, factory
    _lost.clear()
    try:
        yield
    finally:
        _open = before
        _lost.clear()


def first_to_lose(device: str) -> bool:
    """Whether nobody has said yet that ``device`` is lost; from now on somebody has."""
    with _losing:
        is_first = device not in _lost
        _lost.add(device)
        return is_first


def is_known_lost(device: str) -> bool:
    """Whether somebody has said that ``device`` is lost."""
    return device in _lost


def is_real() -> bool:
    """Whether devices are opened by torch."""
    return _open is _real
