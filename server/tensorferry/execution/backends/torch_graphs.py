"""CUDA graphs of a model: captured once for each batch size that warm-up ran, checked, chosen by time.

A graph starts all of a run's kernels with one call, where torch starts each by itself: that is what a
small batch's run mostly takes. Its price: a graph is of one batch size, so that batches between two
sizes are padded to the larger; and its memory is kept.

A graph is right only if the model does the same operations whatever its inputs hold. That is checked:
each is replayed on other inputs than it was captured with and held against an ordinary run.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final

import torch

from tensorferry.execution.backends.torch_gpu import Captured, Forward, Gpu
from tensorferry.execution.backends.torch_staging import Lanes, Slot
from tensorferry.execution.backends.torch_tensors import DTYPE_NAMES, DTYPES, first_line
from tensorferry.execution.golden import TOLERANCES
from tensorferry.model import BatchInput

__all__ = ["Bucket", "Form", "Graphs", "capture_graphs", "form_of"]

#: What batches have in common that a graph may serve: each input's datatype and shape without the rows.
Form = tuple[tuple[str, tuple[int, ...]], ...]

#: Sizes times forms: each has a graph in each slot, of some hundred kernels and their arguments.
_MOST_BUCKETS: Final = 256
_TIMED_REPLAYS: Final = 3


@dataclass(frozen=True, slots=True)
class Bucket:
    """The graphs of one batch size: for each slot its inputs and what was captured on them."""

    rows: int
    run_ns: int
    slots: tuple[tuple[list[torch.Tensor], Captured], ...]


class Graphs:
    """The buckets of one model copy, and what ordinary runs took beside them.

    ``eager_ns`` maps form and rows to a run's nanoseconds on the device. ``why_not`` says why there are
    fewer graphs than there might be; "" if there aren't.
    """

    def __init__(self, eager_ns: Mapping[tuple[Form, int], int], why_not: str = "") -> None:
        self.why_not = why_not
        #: Rows of the buckets, ascending; a size that several forms have counts once.
        self.sizes: tuple[int, ...] = ()
        self._buckets: dict[Form, list[Bucket]] = {}
        self._eager: dict[Form, list[tuple[int, int]]] = {}
        for (form, rows), run_ns in sorted(eager_ns.items()):
            self._eager.setdefault(form, []).append((rows, run_ns))

    def add(self, form: Form, bucket: Bucket) -> None:
        """Take in a bucket."""
        buckets = self._buckets.setdefault(form, [])
        buckets.append(bucket)
        buckets.sort(key=lambda each: each.rows)
        self.sizes = tuple(sorted({*self.sizes, bucket.rows}))

    def choose(self, form: Form, rows: int) -> Bucket | None:
        """Return the bucket to run ``rows`` rows in; None where an ordinary run is as quick.

        The bucket of just these rows is always better. Padding costs; whether more than starting each
        kernel by itself is what the times say, between whose sizes lines are drawn.
        """
        buckets = self._buckets.get(form)
        if not buckets:
            return None
        index = bisect_left([each.rows for each in buckets], rows)
        if index == len(buckets):
            return None
        bucket = buckets[index]
        if bucket.rows == rows or bucket.run_ns <= self._eager_ns(form, rows):
            return bucket
        return None

    def close(self) -> None:
        """Drop the graphs."""
        self._buckets.clear()

    def _eager_ns(self, form: Form, rows: int) -> float:
        points = self._eager[form]
        index = bisect_left(points, (rows, 0))
        if index == len(points):
            return float("inf")
        if index == 0 or points[index][0] == rows:
            return points[index][1]
        (below, below_ns), (above, above_ns) = points[index - 1], points[index]
        return below_ns + (above_ns - below_ns) * (rows - below) / (above - below)


def form_of(inputs: Sequence[BatchInput], has_rows: bool) -> Form:
    """Return the form of a batch."""
    return tuple([(each.datatype, each.shape[1:] if has_rows else each.shape) for each in inputs])


def capture_graphs(
    gpu: Gpu, lanes: Lanes, slots: Sequence[Slot], forward: Forward, eager_ns: Mapping[tuple[Form, int], int]
) -> Graphs:
    """Capture ``forward`` for every form and size in ``eager_ns``, for each slot.

    ``rows`` of 0 stand for a model without a batch dimension. What can't be captured, or isn't right,
    isn't in the graphs; nothing is raised for it.
    """
    pool = gpu.pool()
    graphs = Graphs(eager_ns)
    # The largest first: the smaller ones find their memory in the pool then.
    wanted = sorted(eager_ns, key=lambda each: (each[1], str(each[0])), reverse=True)
    for form, rows in wanted[:_MOST_BUCKETS]:
        try:
            graphs.add(form, _captured(gpu, lanes, slots, forward, (form, rows, pool)))
        except torch.OutOfMemoryError:
            graphs.why_not = f"the GPU has no memory for a graph of {rows} rows"
            _settle(slots)
            gpu.release_cached()
        except _WrongError as error:
            graphs.close()
            return Graphs(eager_ns, str(error))
        except Exception as error:
            _settle(slots)
            graphs.close()
            return Graphs(eager_ns, f"the model can't be captured: {first_line(error)}")
    if len(wanted) > _MOST_BUCKETS:
        graphs.why_not = (
            f"{len(wanted)} batch sizes and shapes are more than the {_MOST_BUCKETS} that are kept"
        )
    return graphs


def _settle(slots: Sequence[Slot]) -> None:
    """Wait for what is under way: an error may have come in the middle."""
    for slot in slots:
        slot.settle()


class _WrongError(Exception):
    """A graph doesn't give what the model gives; the message says so."""


def _captured(
    gpu: Gpu, lanes: Lanes, slots: Sequence[Slot], forward: Forward, what: tuple[Form, int, Any]
) -> Bucket:
    form, rows, pool = what
    sample = _sample(form, rows)
    like, expected = _ran(gpu, lanes, slots[0], forward, sample)
    if rows and any(each.shape[:1] != (rows,) for each in like):
        raise _WrongError("the first dimension of its outputs isn't the batch's")
    pairs: list[tuple[list[torch.Tensor], Captured]] = []
    run_ns = 0
    for slot in slots:
        targets = slot.targets(sample)
        for target in targets:  # captured on other inputs than it is checked with
            gpu.zero(lanes.run, target)
        slot.settle()
        captured = gpu.capture(lanes.run, _into(slot.results(like), forward), targets, pool)
        for _ in range(_TIMED_REPLAYS):
            slot.stage(sample, targets)
            got = _outputs(gpu, lanes, slot, partial(_replayed, gpu, lanes, captured))
            took_ns = slot.began.elapsed_ns(slot.ran)
            run_ns = min(run_ns or took_ns, took_ns)
            _compare(like, expected, got)
        pairs.append((targets, captured))
    return Bucket(rows, run_ns, tuple(pairs))


def _into(results: list[torch.Tensor], forward: Forward) -> Forward:
    """Return ``forward`` with its outputs in ``results``."""

    def forward_into(*inputs: torch.Tensor) -> list[torch.Tensor]:
        for result, output in zip(results, forward(*inputs), strict=True):
            result.copy_(output)
        return results

    return forward_into


def _ran(
    gpu: Gpu, lanes: Lanes, slot: Slot, forward: Forward, sample: Sequence[BatchInput]
) -> tuple[list[torch.Tensor], list[bytes]]:
    """Return the outputs of an ordinary run: on the device, to know what they are like, and their bytes."""
    like: list[torch.Tensor] = []
    targets = slot.targets(sample)
    slot.stage(sample, targets)

    def run() -> list[torch.Tensor]:
        like.extend(gpu.call(lanes.run, forward, targets))
        return like

    return like, _outputs(gpu, lanes, slot, run)


def _replayed(gpu: Gpu, lanes: Lanes, captured: Captured) -> list[torch.Tensor]:
    gpu.replay(lanes.run, captured)
    return captured.outputs


def _outputs(gpu: Gpu, lanes: Lanes, slot: Slot, run: Callable[[], list[torch.Tensor]]) -> list[bytes]:
    """Run what is staged in the slot and return the outputs' bytes. Waits for them."""
    lanes.run.wait(slot.arrived)
    lanes.run.record(slot.began)
    outputs = run()
    lanes.run.record(slot.ran)
    returned = slot.bring_back(outputs)
    slot.done.synchronize()
    return [bytes(gpu.view(each)) for each in returned]


def _compare(like: Sequence[torch.Tensor], expected: Sequence[bytes], got: Sequence[bytes]) -> None:
    for each, one, other in zip(like, expected, got, strict=True):
        if one == other:
            continue
        rtol, atol = TOLERANCES.get(DTYPE_NAMES[each.dtype], (0.0, 0.0))
        first, second = (torch.frombuffer(bytearray(data), dtype=each.dtype) for data in (one, other))
        if not torch.allclose(first.double(), second.double(), rtol, atol, equal_nan=True):
            raise _WrongError(
                "a graph of it gives other outputs than a run: what it does depends on what its inputs"
                " hold, or on chance"
            )


def _sample(form: Form, rows: int) -> list[BatchInput]:
    """Return random inputs: numbers from 0 to 1, whole ones and booleans 0 or 1. The same each time."""
    generator = random.Random(rows)
    inputs = []
    for datatype, row_shape in form:
        shape = (rows, *row_shape) if rows else row_shape
        dtype = DTYPES[datatype]
        values = torch.tensor(generator.choices(range(256), k=min(prod(shape), 4096))) / 256
        values = values.repeat(-(-prod(shape) // max(1, len(values))))[: prod(shape)]
        tensor = (values if dtype.is_floating_point else values.round()).to(dtype)
        inputs.append(BatchInput(datatype, datatype, shape, [tensor.view(torch.uint8).numpy().tobytes()]))
    return inputs
