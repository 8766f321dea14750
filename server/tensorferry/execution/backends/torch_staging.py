"""Where a batch is on its way through a GPU: staging memory, and the events that say how far it is.

A slot belongs to one batch at a time, from its first byte in pinned memory until its outputs are back.
Its life, with the lane (CUDA stream) that each step is on and the event behind it::

    host      parts of requests -> pinned inputs
    copy in   [staged]  pinned inputs -> device inputs        [arrived]
    run       waits for arrived; [began]  the model           [ran]
    copy out  waits for ran; [leaving]  outputs -> pinned     [done]

Why no two of these race: the slot's own memory is touched again only by whoever has waited, on the
host, for ``done``, which is behind everything else. Batches in different slots share the lanes, and
nothing but read-only weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import torch

from tensorferry.execution.backends.torch_gpu import Gpu
from tensorferry.execution.backends.torch_tensors import DTYPES
from tensorferry.execution.memory_needs import input_bytes
from tensorferry.model import BatchInput, ModelSpec

__all__ = ["Lanes", "Slot", "largest_input_bytes"]

#: Buffers of inputs of any size grow to powers of two, from here on.
_LEAST_BYTES: Final = 4096


class Lanes:
    """One worker stream's three lanes: a copy each way overlaps with a run."""

    def __init__(self, gpu: Gpu) -> None:
        self.copy_in = gpu.lane()
        self.run = gpu.lane(runs=True)
        self.copy_out = gpu.lane()

    def __iter__(self) -> Any:  # noqa: ANN401
        return iter((self.copy_in, self.run, self.copy_out))


class Slot:
    """Staging memory for one batch. ``sizes`` are the bytes to begin with, for each input."""

    def __init__(self, gpu: Gpu, lanes: Lanes, index: int, sizes: Sequence[int], blocking: bool) -> None:
        self.index = index
        self.staged = gpu.event(blocking)
        self.arrived = gpu.event(blocking)
        self.began = gpu.event(blocking)
        self.ran = gpu.event(blocking)
        self.leaving = gpu.event(blocking)
        self.done = gpu.event(blocking)
        self._gpu = gpu
        self._lanes = lanes
        self._pinned = [gpu.pinned(size) for size in sizes]
        self._device = [gpu.empty(lanes.copy_in, size) for size in sizes]
        self._results: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes of its inputs, on the device and as much again in pinned memory."""
        return sum([len(each) for each in self._device])

    @property
    def result_bytes(self) -> int:
        """Bytes of the outputs of its graphs."""
        return sum([len(each) for each in self._results])

    def targets(self, inputs: Sequence[BatchInput], rows: int | None = None) -> list[torch.Tensor]:
        """Return where on the device inputs like these go; with ``rows``, as many instead of their own.

        Raises:
            torch.OutOfMemoryError: the device has no room for larger ones than before.
        """
        targets = []
        for index, each in enumerate(inputs):
            shape = each.shape if rows is None else (rows, *each.shape[1:])
            size = prod(shape) * DTYPES[each.datatype].itemsize
            self._grow(index, size)
            targets.append(self._device[index][:size].view(DTYPES[each.datatype]).view(shape))
        return targets

    def results(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return where a graph of this slot leaves outputs like these.

        Not in the memory that graphs have for themselves: what one frees while it is captured, later
        ones use again, for their outputs too, and a replay of it would write over those while they are
        copied back (docs.pytorch.org, "CUDA semantics: Sharing memory across captures").

        Raises:
            torch.OutOfMemoryError: the device has no room.
        """
        results = []
        for index, each in enumerate(like):
            if index == len(self._results):
                self._results.append(self._gpu.empty(self._lanes.run, each.nbytes))
            if len(self._results[index]) < each.nbytes:  # smaller graphs keep the one they have
                self._results[index] = self._gpu.empty(self._lanes.run, each.nbytes)
            results.append(self._results[index][: each.nbytes].view(each.dtype).view(each.shape))
        return results

    def stage(self, inputs: Sequence[BatchInput], targets: Sequence[torch.Tensor]) -> int:
        """Copy inputs into pinned memory and enqueue their way to ``targets``; return their bytes.

        A target may have more rows than its input: those are zeros.
        """
        gpu, lane = self._gpu, self._lanes.copy_in
        sources = []
        total = 0
        for pinned, each in zip(self._pinned, inputs, strict=False):
            size = prod(each.shape) * DTYPES[each.datatype].itemsize
            source = pinned[:size]
            gpu.fill(source, each.parts)
            sources.append(source)
            total += size
        lane.record(self.staged)
        for source, each, target in zip(sources, inputs, targets, strict=True):
            own = target
            if target.shape != each.shape:
                own = target[: each.shape[0]]
                gpu.zero(lane, target[each.shape[0] :])
            gpu.copy(lane, own, source.view(own.dtype).view(own.shape))
        lane.record(self.arrived)
        return total

    def bring_back(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue copies of device tensors to new pinned memory, which they fill once ``done`` has come.

        The caller keeps ``outputs`` until then.
        """
        gpu, lane = self._gpu, self._lanes.copy_out
        lane.wait(self.ran)
        lane.record(self.leaving)
        returned = []
        for output in outputs:
            pinned = gpu.pinned(output.nbytes)
            gpu.copy(lane, pinned.view(output.dtype).view(output.shape), output)
            returned.append(pinned)
        lane.record(self.done)
        return returned

    def settle(self) -> None:
        """Wait until nothing that was enqueued for the slot is under way, after an error in between."""
        for lane in self._lanes:
            lane.record(self.done)
            self.done.synchronize()

    def _grow(self, index: int, size: int) -> None:
        while len(self._device) <= index:
            self._device.append(self._gpu.empty(self._lanes.copy_in, _LEAST_BYTES))
            self._pinned.append(self._gpu.pinned(_LEAST_BYTES))
        if len(self._device[index]) < size:
            larger = max(_LEAST_BYTES, 1 << (size - 1).bit_length())
            # The old one may be a graph's, which keeps it. Both before either is replaced.
            device, pinned = self._gpu.empty(self._lanes.copy_in, larger), self._gpu.pinned(larger)
            self._device[index], self._pinned[index] = device, pinned


def largest_input_bytes(spec: ModelSpec) -> list[int]:
    """Return the bytes of each of the model's inputs in the largest batch; [] where they aren't all known."""
    known = [size for size in input_bytes(spec) if size is not None]
    return known if len(known) == len(spec.model_inputs) else []
