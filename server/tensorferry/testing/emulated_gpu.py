"""A GPU on the CPU, for tests and rehearsals: the same results, no speed, and every race is found.

``EmulatedGpu`` is a ``Gpu`` (``execution.backends.torch_gpu``). It does every operation at once, on the
calling thread, and keeps account of what a GPU might have done instead: operations of different lanes,
and of the host, are ordered by events alone (``emulated_races``), memory is poisoned until something is
written to it (``emulated_memory``), a capture computes nothing (``emulated_capture``), and time is
arithmetic (``emulated_timeline``). What a GPU leaves to chance raises ``RaceError`` here.

    device = EmulatedDevice("cuda:0", capacity_bytes=1 << 20)
    with torch_gpu.opened_by(lambda name: EmulatedGpu(device)):
        ...
    assert device.races == []

It can't know what a forward pass does inside: that it changes its inputs in place, or state of its own;
and a graph here runs the forward pass's Python again. This module needs torch, so ``tensorferry.testing``
doesn't import it: import it by its own name.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from tensorferry.execution.backends.torch_gpu import Forward, fill_pinned
from tensorferry.tensors import Buffer
from tensorferry.testing.emulated_capture import refusing_host_reads
from tensorferry.testing.emulated_device import EmulatedDevice, emulated_device
from tensorferry.testing.emulated_graphs import EmulatedGraph, GraphPool
from tensorferry.testing.emulated_lanes import EmulatedEvent, EmulatedLane
from tensorferry.testing.emulated_memory import Block, Memory, bytes_of, span
from tensorferry.testing.emulated_races import Access, Agent, RaceError
from tensorferry.testing.emulated_timeline import Engine

__all__ = ["EmulatedDevice", "EmulatedGpu", "RaceError", "emulated_device"]


class EmulatedGpu:
    """A device on the CPU for one copy of a model. See ``Gpu``.

    Args:
        device: ``cuda:<n>``, this process's device of that name; or a device of the test's own.
    """

    def __init__(self, device: str | EmulatedDevice) -> None:
        #: What it shares with the other models there: memory, timeline, faults, races.
        self.emulated = emulated_device(device) if isinstance(device, str) else device
        self.device = torch.device("cpu")
        self.uuid = f"GPU-emulated-{self.emulated.name}"
        self._host = Agent("the host")
        self._lanes = 0

    def attach(self) -> None:
        """Nothing to do."""

    def lane(self, runs: bool = False) -> EmulatedLane:
        """Return a new lane: "lane 0", then "lane 1 (runs)" if it ``runs``."""
        name = f"lane {self._lanes}{' (runs)' if runs else ''}"
        self._lanes += 1
        return EmulatedLane(name, self.emulated, self._host)

    def event(self, blocking: bool) -> EmulatedEvent:
        """Return a new event."""
        return EmulatedEvent(self.emulated, self._host)

    def pinned(self, size: int) -> torch.Tensor:
        """Return memory of the host, poisoned."""
        with self.emulated.noting_races():
            return self._memory.take(size, "pinned memory", None, is_pinned=True)

    def empty(self, lane: EmulatedLane, size: int) -> torch.Tensor:
        """Return memory of the device, poisoned."""
        with lane.entered("empty") as tick:
            self._memory.check_reuse(lane.agent)
            memory = self._memory.take(size, "device memory", lane.agent)
            # What the lane did before may still use it; another lane's first use must come behind that.
            block = lane.block_of("empty", memory)
            block.history.add(Access(lane.agent, tick, "empty", 0, size, writes=True))
            return memory

    def fill(self, target: torch.Tensor, parts: Sequence[Buffer]) -> None:
        """Copy into pinned memory."""
        with self.emulated.noting_races():
            self._touch_host("fill", target, writes=True)
            fill_pinned(target, parts)

    def view(self, pinned: torch.Tensor) -> memoryview:
        """Return pinned memory to read. While a view of it is alive, nothing may write to it."""
        with self.emulated.noting_races():
            block = self._touch_host("view", pinned, writes=False)
            array = pinned.numpy()
            key = id(array)
            block.views[key] = span(pinned)
            weakref.finalize(array, block.views.pop, key, None).atexit = False
            return array.data

    def copy(self, lane: EmulatedLane, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between pinned memory and the device."""
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(
                f"copy of {source.dtype} {list(source.shape)} to {target.dtype} {list(target.shape)}"
            )
        if not _is_one_piece(target, source):
            raise ValueError(
                "copy of tensors that aren't in one piece, alike on both sides: torch would copy"
                " through memory of its own, and wait"
            )
        with lane.entered("copy") as tick:
            is_pinned = [lane.block_of("copy", each).is_pinned for each in (target, source)]
            if is_pinned[0] == is_pinned[1]:
                raise ValueError("a copy is between pinned memory and the device")
            name = "copy out" if is_pinned[0] else "copy in"
            lane.touch(tick, name, source, writes=False)
            lane.touch(tick, name, target, writes=True)
            engine: Engine = "out" if is_pinned[0] else "in"
            lane.take_time(name, engine, self.emulated.costs.of_copy(source.nbytes))
            with torch.inference_mode():
                target.copy_(source)

    def zero(self, lane: EmulatedLane, target: torch.Tensor) -> None:
        """Fill device memory with zeros."""
        with lane.entered("zero") as tick:
            self._check_on_device(lane, "zero", [target])
            lane.touch(tick, "zero", target, writes=True)
            lane.take_time("zero", "zero", self.emulated.costs.zero_ns)
            with torch.inference_mode():
                target.zero_()

    def call(
        self, lane: EmulatedLane, forward: Forward, inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Run a forward pass; its outputs are copied to the device's memory."""
        rows = _rows_of(inputs)
        with lane.entered("call") as tick:
            self._check_on_device(lane, "call", inputs)
            self._memory.check_reuse(lane.agent)
            for each in inputs:
                lane.touch(tick, "call", each, writes=False)
            workspace = self.emulated.call_bytes(rows)
            self._memory.budget.allocate(workspace)
        try:
            with torch.inference_mode():
                results = forward(*inputs)  # without the lock: other models may go on meanwhile
            with self.emulated.noting_races():
                outputs = [self._settled(lane, result) for result in results]
                self._touch_outputs(lane, tick, inputs, outputs)
                lane.take_time("call", "run", self.emulated.costs.call_ns(rows))
        finally:
            with self.emulated.noting_races():
                self._memory.budget.free(workspace)
        return outputs

    def pool(self) -> GraphPool:
        """Return a new pool for graphs."""
        return GraphPool(self.emulated)

    def capture(
        self, lane: EmulatedLane, forward: Forward, inputs: Sequence[torch.Tensor], pool: GraphPool
    ) -> EmulatedGraph:
        """Learn a forward pass's outputs from zeros; they are poisoned. The inputs stay as they are."""
        with lane.entered("capture"):
            self._check_on_device(lane, "capture", inputs)
            if self.emulated.capture_fails is not None:
                raise self.emulated.capture_fails
            pool.grow(self.emulated.call_bytes(_rows_of(inputs)))
            results = self._dry_run(lane, forward, inputs)
            known = [self._memory.block_of(each) is not None for each in results]
            outputs = [self._settled(None, each) for each in results]
            own = [each for each, is_known in zip(outputs, known, strict=True) if not is_known]
            return EmulatedGraph(forward, inputs, outputs, own, pool)

    def replay(self, lane: EmulatedLane, captured: EmulatedGraph) -> None:
        """Run a graph's forward pass on its inputs, into its outputs."""
        with lane.entered("replay") as tick:
            captured.mark(lane, tick)
            rows = _rows_of(captured.inputs)
            lane.take_time("replay", "run", self.emulated.costs.replay_ns(rows))
        captured.compute()
        if self.emulated.after_replay is not None:
            self.emulated.after_replay(captured.outputs)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is in the device's memory; what isn't pinned memory is taken to be."""
        with self.emulated.noting_races():
            block = self._memory.block_of(tensor)
            return tensor.is_cpu and (block is None or not block.is_pinned)

    def allocated_bytes(self) -> int:
        """Return what tensors hold. A model's own weights aren't counted: they aren't ours."""
        with self.emulated.noting_races():
            self._memory.settle()
            return self._memory.budget.allocated

    def reserved_bytes(self) -> int:
        """Return what tensors, graphs, and memory freed and not given back hold."""
        with self.emulated.noting_races():
            self._memory.settle()
            return self._memory.budget.reserved

    def peak_bytes(self) -> int:
        """Return the most that tensors, and the workspace of calls, held since ``reset_peak``."""
        return self._memory.budget.peak

    def reset_peak(self) -> None:
        """Begin to watch for the most again."""
        with self.emulated.noting_races():
            self._memory.settle()
            self._memory.budget.peak = self._memory.budget.allocated

    def release_cached(self) -> None:
        """Give back what was freed."""
        with self.emulated.noting_races():
            self._memory.settle()
            self._memory.budget.cached = 0

    def is_lost(self) -> bool:
        """Whether the device was told to ``lose``."""
        return self.emulated.is_lost

    def makespan_ns(self) -> int:
        """Return when the last operation of the device so far ends on its timeline, in ns."""
        return self.emulated.timeline.end_ns

    @property
    def _memory(self) -> Memory:
        return self.emulated.memory

    def _touch_host(self, operation: str, pinned: torch.Tensor, writes: bool) -> Block:
        self._memory.settle()
        block = self._memory.block_of(pinned)
        if block is None or not block.is_pinned:
            raise RaceError(f"{operation}: the host works on memory that isn't from pinned()")
        block.access(Access(self._host, self._host.tick(), operation, *span(pinned), writes))
        return block

    def _check_on_device(self, lane: EmulatedLane, operation: str, tensors: Sequence[torch.Tensor]) -> None:
        for each in tensors:
            if lane.block_of(operation, each).is_pinned:
                raise RuntimeError(f"{operation}: Expected all tensors to be on the same device")

    def _settled(self, lane: EmulatedLane | None, result: torch.Tensor) -> torch.Tensor:
        """Return an output in memory of the device; a copy, unless it is there."""
        if self._memory.block_of(result) is not None:
            return result
        content = bytes_of(result)
        owner = None if lane is None else lane.agent
        what = "a graph's output" if lane is None else "an output"
        memory = self._memory.take(content.numel(), what, owner)
        if lane is not None:
            memory.copy_(content)
        with torch.inference_mode(mode=False):
            return memory.view(result.dtype).as_strided(result.shape, result.stride())

    def _touch_outputs(
        self,
        lane: EmulatedLane,
        tick: int,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        read = {each.untyped_storage().data_ptr() for each in inputs}
        for each in outputs:
            if each.untyped_storage().data_ptr() not in read:
                lane.touch(tick, "call", each, writes=True)

    def _dry_run(
        self, lane: EmulatedLane, forward: Forward, inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        lane.is_capturing = True
        with torch.inference_mode():
            kept = [each.clone() for each in inputs]
            try:
                for each in inputs:
                    each.zero_()
                with refusing_host_reads():
                    return forward(*inputs)
            finally:
                lane.is_capturing = False
                for each, before in zip(inputs, kept, strict=True):
                    each.copy_(before)


def _rows_of(inputs: Sequence[torch.Tensor]) -> int:
    return inputs[0].shape[0] if inputs and inputs[0].dim() else 1


def _is_one_piece(target: torch.Tensor, source: torch.Tensor) -> bool:
    if target.is_contiguous() and source.is_contiguous():
        return True
    return (
        target.dim() == 4
        and target.is_contiguous(memory_format=torch.channels_last)
        and source.is_contiguous(memory_format=torch.channels_last)
    )
