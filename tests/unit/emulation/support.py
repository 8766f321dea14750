"""An emulated device with the three lanes of a worker stream."""

from __future__ import annotations

import numpy as np
import torch

from tensorferry.testing.emulated_device import EmulatedDevice
from tensorferry.testing.emulated_gpu import EmulatedGpu

BYTES = 32


class Bench:
    """Lanes to copy in, to run and to copy out; floats on the device, and twice in pinned memory."""

    def __init__(self, capacity_bytes: int = 1 << 20) -> None:
        self.device = EmulatedDevice("cuda:0", capacity_bytes)
        self.gpu = EmulatedGpu(self.device)
        self.copy_in, self.run, self.copy_out = (self.gpu.lane(), self.gpu.lane(runs=True), self.gpu.lane())
        self.source = self.floats(self.gpu.pinned(BYTES))
        self.target = self.floats(self.gpu.pinned(BYTES))
        self.input = self.floats(self.gpu.empty(self.copy_in, BYTES))
        self.mark(self.copy_in).synchronize()  # any lane may use it first

    @staticmethod
    def floats(memory: torch.Tensor) -> torch.Tensor:
        return memory.view(torch.float32).view(-1, 2)

    def fill(self, start: float = 0.0) -> None:
        content = np.arange(start, start + BYTES // 4, dtype=np.float32).tobytes()
        self.gpu.fill(self.source.view(torch.uint8).view(-1), [content])

    def read(self, pinned: torch.Tensor) -> list[float]:
        return list(self.gpu.view(pinned.view(torch.uint8).view(-1)).cast("f"))

    def mark(self, lane):
        """Return an event behind all that is enqueued on the lane."""
        event = self.gpu.event(blocking=True)
        lane.record(event)
        return event

    def order(self, later, earlier) -> None:
        later.wait(self.mark(earlier))

    def bring_in(self, start: float = 0.0) -> None:
        """Put numbers on the device, with the lane that runs behind them."""
        self.fill(start)
        self.gpu.copy(self.copy_in, self.input, self.source)
        self.order(self.run, self.copy_in)


def doubled(x: torch.Tensor) -> list[torch.Tensor]:
    return [x * 2]
