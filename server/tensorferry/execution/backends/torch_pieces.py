"""What is done when a GPU's memory doesn't suffice for a batch: it is run in smaller pieces.

How large a piece may be is learned by halving, and holds for later batches: they don't run into the
same wall. After a while a larger one is tried: the memory may have been another model's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
import torch

from tensorferry.device import DeviceRun
from tensorferry.errors import ModelFailed, OutOfDeviceMemory
from tensorferry.execution.backends.torch_staging import Slot
from tensorferry.model import BatchInput, RunResult
from tensorferry.tensors import Tensor

if TYPE_CHECKING:
    from tensorferry.execution.backends.torch_device import DeviceModel

__all__ = ["RowLimit", "run_in_pieces"]

_log = structlog.get_logger("tensorferry.execution")

#: A limit is doubled when it has held for so long.
_HOLDS_S: Final = 300.0


class RowLimit:
    """The most rows that are run at once; 0 for no limit. Used on the launching thread."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows = 0
        self._until = 0.0

    def at(self, now: float) -> int:
        """Return the limit at ``now``, in seconds."""
        while self._rows and now >= self._until:
            self._rows *= 2
            self._until += _HOLDS_S
            if self._rows >= self._max_rows:
                self._rows = 0
        return self._rows

    def learn(self, rows: int, now: float) -> None:
        """Run no more than ``rows`` (at least 1) at once."""
        self._rows = rows
        self._until = now + _HOLDS_S


class _Done:
    """A ``Launch`` that is over."""

    def __init__(self, result: RunResult) -> None:
        self._result = result

    def wait(self) -> RunResult:
        """Return the result."""
        return self._result


def run_in_pieces(
    model: DeviceModel,
    slot: Slot,
    inputs: Sequence[BatchInput],
    limit: RowLimit,
    now: float,
    started_ns: int,
) -> _Done:
    """Run a batch piece by piece in one slot, waiting for each; then give the slot back.

    ``now`` is in the limit's seconds, ``started_ns`` when the batch was launched.

    Raises:
        OutOfDeviceMemory: not even a row (or a batch of a model without a batch dimension) fits.
        Exception: what the model raises; the slot is the caller's then.
    """
    rows = inputs[0].shape[0] if model.spec.has_batch_dimension else 1
    known = limit.at(now)
    size = min(known, rows) if known else max(1, rows // 2)
    results: list[RunResult] = []
    ran_out = not known
    if ran_out:
        model.release_cached()
    first = 0
    while first < rows:
        count = min(size, rows - first)
        piece = inputs if count == rows else _piece(inputs, first, count)
        try:
            results.append(model.enqueue(slot, piece, time.perf_counter_ns()).collect())
        except torch.OutOfMemoryError as error:
            slot.settle()
            model.release_cached()
            ran_out = True
            if count == 1:
                raise _no_room(model, rows) from error
            size = count // 2
            continue
        first += count
    if ran_out and size < rows:
        limit.learn(size, now)
        _log.warning(
            "GPU out of memory; model runs smaller batches",
            model=model.spec.name,
            version=model.spec.version,
            rows=rows,
            row_limit=size,
        )
    result = _joined(model, results, started_ns)
    device = replace(_summed(results), row_limit=limit.at(now), out_of_memory=ran_out)
    model.give_back(slot)
    return _Done(replace(result, device=device))


def _no_room(model: DeviceModel, rows: int) -> OutOfDeviceMemory:
    what = "one row" if model.spec.has_batch_dimension else "a request"
    return OutOfDeviceMemory(
        f"model {model.spec.name!r}: {model.status.device} has no memory to run even {what} of a batch of"
        f" {rows}; try again later, send smaller inputs, or unload another model"
    )


def _piece(inputs: Sequence[BatchInput], first: int, count: int) -> list[BatchInput]:
    pieces = []
    for each in inputs:
        data = memoryview(b"".join(each.parts))
        row_bytes = len(data) // each.shape[0]
        part = data[first * row_bytes : (first + count) * row_bytes]
        pieces.append(BatchInput(each.name, each.datatype, (count, *each.shape[1:]), [part]))
    return pieces


def _joined(model: DeviceModel, results: Sequence[RunResult], started_ns: int) -> RunResult:
    outputs = []
    for parts in zip(*[result.outputs for result in results], strict=True):
        first = parts[0]
        if len(parts) == 1:
            outputs.append(first)
            continue
        if any(part.shape[1:] != first.shape[1:] for part in parts):
            raise ModelFailed(
                f"model {model.spec.name!r}: output {first.name!r} has another shape in each piece of a batch"
                " that the GPU had no memory to run at once"
            )
        rows = sum([part.shape[0] for part in parts])
        data = memoryview(b"".join([part.data for part in parts]))
        outputs.append(Tensor(first.name, first.datatype, (rows, *first.shape[1:]), data))
    total_ns = time.perf_counter_ns() - started_ns
    infer_ns = min(total_ns, sum([result.infer_ns for result in results]))
    output_ns = min(total_ns - infer_ns, sum([result.output_ns for result in results]))
    return RunResult(outputs, total_ns - infer_ns - output_ns, infer_ns, output_ns)


def _summed(results: Sequence[RunResult]) -> DeviceRun:
    runs = [result.device for result in results if result.device is not None]
    return DeviceRun(
        copy_in_ns=sum([run.copy_in_ns for run in runs]),
        run_ns=sum([run.run_ns for run in runs]),
        copy_out_ns=sum([run.copy_out_ns for run in runs]),
        bytes_in=sum([run.bytes_in for run in runs]),
        bytes_out=sum([run.bytes_out for run in runs]),
        is_graph=all(run.is_graph for run in runs),
        padded_rows=sum([run.padded_rows for run in runs]),
    )
