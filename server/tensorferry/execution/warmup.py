"""Warm-up: run every batch size that will come until the time of a run has settled.

The first runs of a TorchScript model compile: at a new batch size up to 70 ms where a warm run
takes 0.02 ms (measured on a 30-64-1 MLP). So each size is run until a run takes no more than
half as long again as the best so far, and not less than ``_LEAST_RUNS`` times. A model whose
requests are padded is run so at each of its buckets. A quick model,
whose time decides where it runs, is run more often: other models load at the same time, and each
hand-over of the GIL in a run makes it look slow.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from tensorferry.batching.padding import check_padding
from tensorferry.errors import ConfigurationError, ModelLoadError, OutOfDeviceMemory, TensorferryError
from tensorferry.execution.golden import check_golden
from tensorferry.execution.launching import LaunchingModel
from tensorferry.execution.out_of_memory import refusing_out_of_memory
from tensorferry.execution.outcomes import reason_of
from tensorferry.model import BatchInput, Model, ModelSpec, RunResult, TensorSpec, WarmupSpec, batch_buckets

__all__ = ["WarmupReport", "warm_up"]

_LEAST_RUNS: Final = 4
_MOST_RUNS: Final = 40
_QUICK_S: Final = 1e-3
_LEAST_QUICK_RUNS: Final = 20
#: Stop warming one size, at all its buckets, after this long, settled or not: a large model's run
#: is its own warm-up.
_BUDGET_S: Final = 2.0
_SETTLED: Final = 1.5
#: Runs of each size once all is prepared.
_TIMED_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """What was run. ``run_s`` maps a batch size (rows) to the time of its best run, in seconds.

    The best, because a neighbour on the machine only ever adds to a run. Where requests are padded,
    the best of the bucket that takes longest.

    ``skipped`` says why nothing was run, and is empty otherwise.
    """

    run_s: dict[int, float]
    skipped: str = ""

    @property
    def slowest_s(self) -> float | None:
        """The longest of them; None if nothing was run."""
        return max(self.run_s.values(), default=None)


def warm_up(model: Model) -> WarmupReport:
    """Run ``model`` at every batch size, on the calling thread, until the times settle.

    A model on a GPU is prepared then, and timed anew with the graphs that it has captured. A model that
    has a golden file must at last give what it expects, with those graphs; see ``check_golden``.

    Raises:
        ModelLoadError: the model fails on an input that its configuration allows, or its outputs
            aren't those of its golden file, or its device has no room for its largest batch.
    """
    if not isinstance(model, LaunchingModel):
        report = _run_all(model)
    else:
        with refusing_out_of_memory(model.spec, model.status.device):
            report = _run_all(model)
            model.prepare()
            report = replace(report, run_s=_timed_again(model))
    check_golden(model)
    return report


def _run_all(model: Model) -> WarmupReport:
    spec = model.spec
    _check_pad_value(spec)
    run_s: dict[int, float] = {}
    for warmup in spec.warmups:
        inputs = _configured(warmup, spec)
        for _ in range(warmup.count):
            run_s[warmup.batch_size] = _timed(model, inputs, f"its warm-up {warmup.name!r}")
    buckets = _buckets(spec)
    if not buckets:
        reason = "" if run_s else "its inputs' shapes vary; give it a model_warmup in its configuration"
        return WarmupReport(run_s, reason)
    for rows in batch_buckets(spec.max_batch_size, spec.batching.preferred_batch_sizes):
        run_s[rows] = max(_warm_up_at(model, rows, length, _BUDGET_S / len(buckets)) for length in buckets)
    return WarmupReport(run_s)


def _warm_up_at(model: Model, rows: int, length: int, budget_s: float) -> float:
    inputs = _zeros(model.spec, rows, length)
    padded = f" padded to {length}" if model.spec.padding is not None else ""
    return _settle(model, inputs, f"a batch of {rows} rows of zeros{padded}", budget_s)


def _timed_again(model: Model) -> dict[int, float]:
    """Return the best of a few runs of each size, as ``WarmupReport.run_s``: with what was prepared."""
    run_s: dict[int, float] = {}
    for rows, inputs in _batches(model.spec):
        best = min([_timed(model, inputs, f"a batch of {rows} rows") for _ in range(_TIMED_RUNS)])
        run_s[rows] = max(best, run_s.get(rows, 0.0))
    return run_s


def _batches(spec: ModelSpec) -> Iterator[tuple[int, list[BatchInput]]]:
    """Yield each batch of warm-up once, with its rows."""
    for warmup in spec.warmups:
        yield warmup.batch_size, _configured(warmup, spec)
    for length in _buckets(spec):
        for rows in batch_buckets(spec.max_batch_size, spec.batching.preferred_batch_sizes):
            yield rows, _zeros(spec, rows, length)


def _zeros(spec: ModelSpec, rows: int, length: int) -> list[BatchInput]:
    inputs = [_input(_at_length(tensor, length), rows, spec, is_random=False) for tensor in spec.inputs]
    return inputs + _lengths(spec, rows, length)


def _check_pad_value(spec: ModelSpec) -> None:
    try:
        check_padding(spec)
    except ConfigurationError as error:
        raise ModelLoadError(str(error)) from error


def _buckets(spec: ModelSpec) -> tuple[int, ...]:
    """Return the lengths to run each batch size at: (0,) where none varies, () where anything may."""
    if spec.is_fixed:
        return (0,)
    if spec.padding is None or any(
        not each.is_fixed and each.name not in spec.padding.inputs for each in spec.inputs
    ):
        return ()
    return spec.padding.buckets


def _at_length(tensor: TensorSpec, length: int) -> TensorSpec:
    if tensor.is_fixed or tensor.dims is None:
        return tensor
    return replace(tensor, dims=tuple([length if dim == -1 else dim for dim in tensor.dims]))


def _configured(warmup: WarmupSpec, spec: ModelSpec) -> list[BatchInput]:
    """Return a configured warm-up's inputs, padded as a request of its shapes would be."""
    declared = {each.name: each for each in spec.inputs}
    rows, length = warmup.batch_size, 0
    inputs = []
    for tensor, is_random in warmup.inputs:
        own = declared[tensor.name]
        if spec.padding is not None and own.name in spec.padding.inputs and own.dims and tensor.dims:
            length = tensor.dims[own.dims.index(-1)]
            tensor = _at_length(own, spec.padding.bucket_of(length) or length)
        inputs.append(_input(tensor, rows, spec, is_random))
    return inputs + _lengths(spec, rows, length)


def _lengths(spec: ModelSpec, rows: int, length: int) -> list[BatchInput]:
    """Return the input of true lengths, all the same, in a list; an empty one if there is none."""
    lengths = spec.padding.lengths if spec.padding is not None else None
    if lengths is None or lengths.datatype is None:
        return []
    shape = (rows, 1) if spec.has_batch_dimension else (1,)
    data = length.to_bytes(lengths.datatype.itemsize, "little") * shape[0]
    return [BatchInput(lengths.name, lengths.datatype.name, shape, [data])]


def _settle(model: Model, inputs: list[BatchInput], what: str, budget_s: float) -> float:
    best = last = float("inf")
    started = time.perf_counter()
    for run in range(_MOST_RUNS):
        last = _timed(model, inputs, what)
        best = min(best, last)
        least_runs = _LEAST_QUICK_RUNS if best < _QUICK_S else _LEAST_RUNS
        if run + 1 >= least_runs and last <= best * _SETTLED:
            break
        if time.perf_counter() - started > budget_s:
            break
    return best


def _timed(model: Model, inputs: list[BatchInput], what: str) -> float:
    started = time.perf_counter()
    try:
        result = model.run(inputs)
        _check_room(model, result)
    except TensorferryError as error:
        raise ModelLoadError(f"{error} (on {what})") from error
    except Exception as error:
        raise ModelLoadError(
            f"model {model.spec.name!r} version {model.spec.version} raises on {what}: {reason_of(error)}"
        ) from error
    return time.perf_counter() - started


def _check_room(model: Model, result: RunResult) -> None:
    """Refuse to learn now that batches have to be run in pieces: there is time yet to mend it.

    Raises:
        OutOfDeviceMemory: the batch was run in pieces.
    """
    if result.device is not None and result.device.out_of_memory:
        raise OutOfDeviceMemory(
            f"model {model.spec.name!r} version {model.spec.version}: the device has no room for it at once"
        )


def _input(tensor: TensorSpec, rows: int, spec: ModelSpec, is_random: bool) -> BatchInput:
    assert tensor.datatype is not None, "warm-up inputs have a datatype"
    assert tensor.dims is not None, "warm-up inputs have dims"
    shape = (rows, *tensor.dims) if spec.has_batch_dimension else tensor.dims
    size = tensor.datatype.itemsize
    for dim in shape:
        size *= dim
    data: bytes = bytes(size)
    if is_random:
        # Bytes that are small numbers in every datatype; booleans must be 0 or 1.
        data = bytes(random.Random(0).choices((0, 1), k=size))
    return BatchInput(tensor.name, tensor.datatype.name, shape, [data])
