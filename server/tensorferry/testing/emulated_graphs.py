"""The graphs of an emulated device, and what graphs of one pool do to each other."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Final

import torch

from tensorferry.execution.backends.torch_gpu import Forward
from tensorferry.testing.emulated_device import EmulatedDevice
from tensorferry.testing.emulated_lanes import EmulatedLane
from tensorferry.testing.emulated_memory import POISON, bytes_of
from tensorferry.testing.emulated_races import Access, History

__all__ = ["EmulatedGraph", "GraphPool"]


class GraphPool:
    """Memory that graphs work in, each in what was free of it when it was captured.

    What a graph frees while it is captured, all but its outputs, later graphs use again, for their
    outputs too. So a replay spoils the outputs of every graph that was captured after it ("CUDA
    semantics: Sharing memory across captures": safe if they are always replayed in the order in which
    they were captured, and never at once).
    """

    def __init__(self, device: EmulatedDevice) -> None:
        self._size = [0]
        self._device = device
        self.history = History("a pool of graphs")
        self.graphs: list[weakref.ref[EmulatedGraph]] = []
        device.memory.frees_graphs_with(self, self._size)

    def grow(self, size: int) -> None:
        """Have room for a graph that takes ``size`` bytes beside its outputs.

        Raises:
            torch.OutOfMemoryError: there is no room for that.
        """
        more = max(0, size - self._size[0])
        self._device.memory.budget.check(more)
        self._device.memory.budget.graphs += more
        self._size[0] += more


class EmulatedGraph:
    """A ``Captured``. ``own`` are the outputs that are in the pool, not in memory from elsewhere."""

    def __init__(
        self,
        forward: Forward,
        inputs: Sequence[torch.Tensor],
        outputs: list[torch.Tensor],
        own: list[torch.Tensor],
        pool: GraphPool,
    ) -> None:
        self.inputs: Final = tuple(inputs)
        self.outputs = outputs
        self.number = len(pool.graphs) + 1
        self.pool: Final = pool
        self._forward = forward
        self._own = own
        pool.graphs.append(weakref.ref(self))

    def mark(self, lane: EmulatedLane, tick: int) -> None:
        """Take note of what a replay reads and writes.

        Raises:
            RaceError: it may not.
        """
        name = f"replay of graph {self.number}"
        for each in self.inputs:
            lane.touch(tick, name, each, writes=False)
        self.pool.history.add(Access(lane.agent, tick, name, 0, 1, writes=True))
        for reference in self.pool.graphs[self.number :]:
            later = reference()
            if later is not None:
                later._spoil(lane, tick, name)
        for output in self.outputs:
            if not any(_shares(output, each) for each in self.inputs):
                lane.touch(tick, name, output, writes=True)

    def compute(self) -> None:
        """Do the work of a replay.

        Raises:
            RuntimeError: the forward pass returns tensors unlike those of the capture.
        """
        with torch.inference_mode():
            results = self._forward(*self.inputs)
            if [(each.shape, each.dtype) for each in results] != [
                (each.shape, each.dtype) for each in self.outputs
            ]:
                raise RuntimeError("the forward pass returns other shapes or datatypes than when captured")
            for output, result in zip(self.outputs, results, strict=True):
                if not _shares(output, result):
                    output.copy_(result)

    def _spoil(self, lane: EmulatedLane, tick: int, by: str) -> None:
        name = f"{by}, which may work where graph {self.number}, captured later in one pool, has its outputs,"
        for output in self._own:
            lane.touch(tick, name, output, writes=True)
            lane.block_of(by, output).forget_writes()
            bytes_of(output).fill_(POISON)


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
