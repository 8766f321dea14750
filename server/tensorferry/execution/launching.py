"""What a model on a GPU is to its stream: batches are launched on one thread and waited for on another.

Between the two, the device works on several batches at once: it copies the inputs of one while it runs
another and copies the outputs of a third back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from tensorferry.device import DeviceMemory
from tensorferry.model import BatchInput, Model, RunResult

__all__ = ["DeviceStatus", "Launch", "LaunchingModel"]


class Launch(Protocol):
    """One batch on its way through the device."""

    def wait(self) -> RunResult:
        """Block, without the GIL, until the batch's outputs are in host memory; return them.

        Called once, on any thread, after ``wait`` of the launches before it. Its slot is free again
        when this returns or raises.

        Raises:
            ModelFailed: the model returned what its specification doesn't allow.
            OutOfDeviceMemory: the device has no room for a batch of even one row.
            DeviceLost: the device failed for good.
            Exception: whatever the model raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What one stream's copy of a model has on its device.

    ``graphs`` holds the batch buckets in rows for which a CUDA graph runs; ``no_graphs`` says why there
    is none where there might be. ``gpu_uuid`` is the device's, as NVML names it, or "".
    """

    device: str
    gpu_uuid: str = ""
    memory: DeviceMemory = field(default_factory=DeviceMemory)
    graphs: tuple[int, ...] = ()
    no_graphs: str = ""


@runtime_checkable
class LaunchingModel(Model, Protocol):
    """A model on a GPU.

    ``run`` is ``launch`` and ``wait`` in one, for warm-up and golden checks.
    """

    @property
    def slots(self) -> int:
        """Batches that may be launched and not yet waited for."""
        ...

    @property
    def status(self) -> DeviceStatus:
        """What it has on the device. Settled once ``prepare`` has returned."""
        ...

    def prepare(self) -> None:
        """Capture graphs and take stock of memory; called once, between warm-up and golden check.

        Raises:
            ModelLoadError: ``cuda_graphs`` is on and the model can't be captured.
        """
        ...

    def launch(self, inputs: Sequence[BatchInput]) -> Launch:
        """Stage one batch and hand it to the device; don't wait for it. On the stream's thread alone.

        Raises:
            OutOfDeviceMemory, DeviceLost, Exception: as ``Launch.wait``; no slot is taken then.
        """
        ...
