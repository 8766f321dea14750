"""A batch between its launch and its result."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from tensorferry.device import DeviceRun
from tensorferry.execution.backends.torch_staging import Slot
from tensorferry.execution.backends.torch_tensors import DTYPE_NAMES
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor

if TYPE_CHECKING:
    from tensorferry.execution.backends.torch_device import DeviceModel

__all__ = ["InFlight"]


class InFlight:
    """The ``Launch`` of a ``DeviceModel``. Its ``outputs`` are enqueued, and their way back from here on."""

    __slots__ = (
        "_model",
        "_outputs",
        "_pinned",
        "_slot",
        "_staged_ns",
        "_started_ns",
        "bytes_in",
        "is_graph",
        "padded_rows",
        "row_limit",
        "staged_ns",
    )

    def __init__(self, model: DeviceModel, slot: Slot, outputs: list[torch.Tensor], started_ns: int) -> None:
        self.bytes_in = self.padded_rows = self.row_limit = self.staged_ns = 0
        self.is_graph = False
        self._model = model
        self._slot = slot
        # Kept until they are copied: the device's memory would be used again before.
        self._outputs = outputs
        self._pinned = slot.bring_back(outputs)
        self._started_ns = started_ns

    def wait(self) -> RunResult:
        """Block until the outputs are there; give the slot back."""
        try:
            result = self.collect()
        except BaseException as error:
            self._model.reraise(self._slot, error)
        self._model.give_back(self._slot)
        return result

    def collect(self) -> RunResult:
        """Block until the outputs are there."""
        slot = self._slot
        slot.done.synchronize()
        outputs = [
            Tensor(each.name, DTYPE_NAMES[output.dtype], tuple(output.shape), self._model.view(pinned))
            for each, output, pinned in zip(
                self._model.spec.outputs, self._outputs, self._pinned, strict=True
            )
        ]
        device = DeviceRun(
            copy_in_ns=slot.staged.elapsed_ns(slot.arrived),
            run_ns=slot.began.elapsed_ns(slot.ran),
            copy_out_ns=slot.leaving.elapsed_ns(slot.done),
            bytes_in=self.bytes_in,
            bytes_out=sum([len(each.data) for each in outputs]),
            is_graph=self.is_graph,
            padded_rows=self.padded_rows,
            row_limit=self.row_limit,
            staged_ns=self.staged_ns,
        )
        self._outputs = []
        total_ns = time.perf_counter_ns() - self._started_ns
        infer_ns = min(device.run_ns, total_ns)
        output_ns = min(device.copy_out_ns, total_ns - infer_ns)
        return RunResult(outputs, total_ns - infer_ns - output_ns, infer_ns, output_ns, device)
