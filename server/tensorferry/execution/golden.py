"""The golden check: a version must give the outputs that its golden file expects before it is ready.

It asks the model as a caller would: the rows are checked, padded and cut back in the same way, in
requests of at most ``max_batch_size`` rows. Each number may differ from the expected by
``atol + rtol * |expected|``, as in numpy's ``isclose``; integers and booleans not at all. What is run is
the model as it will serve: where it is tuned (autocast, say), the tuned one.

Runs on the thread of the model's stream, so that every copy on every device is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.errors import InvalidRequest, ModelFailed, ModelLoadError
from tensorferry.execution.golden_file import Array, Golden, read_golden
from tensorferry.execution.outcomes import reason_of
from tensorferry.model import Bound, Model, ModelSpec
from tensorferry.tensors import Tensor, array_of, rows_of

__all__ = ["TOLERANCES", "GoldenCheck", "check_golden", "tolerance"]

#: Datatype -> (rtol, atol) where the golden file states none; a datatype that isn't here is exact.
#: Other kernels and other batch sizes add in another order: by some units in the last place.
TOLERANCES: Final = {
    "FP64": (1e-3, 1e-5),
    "FP32": (1e-3, 1e-5),
    "FP16": (1e-2, 1e-3),
    "BF16": (3e-2, 1e-2),
}


def tolerance(datatype: str, autocast: str = "") -> tuple[float, float]:
    """Return (rtol, atol) for a floating output of a model that computes in ``autocast`` ("": in its own).

    An FP32 output that was computed in BF16 is as exact as BF16 is.
    """
    return max(TOLERANCES[datatype], TOLERANCES[autocast or datatype])


def check_golden(model: Model) -> None:
    """Run the inputs of ``model.spec.golden`` and compare the outputs. Does nothing without a file.

    Raises:
        ModelLoadError: the file can't be used, the model fails on its inputs, or an output isn't
            what it should be. Says where, what was expected and allowed and what came.
    """
    if model.spec.golden is None:
        return
    check = GoldenCheck(model.spec, model.spec.golden)
    for bound in check.requests:
        check.answered(bound, _answer(model, bound, check.where))
    check.finish()


class GoldenCheck:
    """A golden file's requests, and what is to be said of their answers.

    For whatever answers requests: send each of ``requests`` in turn and give its outputs to
    ``answered``; then ``finish`` says whether all was right. ``where`` begins every refusal.

    Raises:
        ModelLoadError: on making one, if the file can't be used.
    """

    def __init__(self, spec: ModelSpec, path: Path) -> None:
        self.where = f"model {spec.name!r} version {spec.version}: {path}"
        self._golden = read_golden(path, spec)
        self._has_rows = spec.has_batch_dimension
        self._autocast = spec.tuning.autocast
        self.requests = list(_requests(self._golden, spec, self.where))
        self._differences = {name: _Difference() for name in self._golden.outputs}
        self._first_row = 0
        rows = sum([bound.rows for bound in self.requests])
        for name, expected in self._golden.outputs.items():
            if self._has_rows and expected.shape[:1] != (rows,):
                raise ModelLoadError(
                    f"{self.where}: output {name!r} has shape {list(expected.shape)}, and the inputs have"
                    f" {rows} rows; give it one row for each of theirs"
                )

    def answered(self, bound: Bound, outputs: Sequence[Tensor]) -> None:
        """Compare the answer to the next of ``requests``.

        Raises:
            ModelLoadError: an output has another shape, or can't be compared at all.
        """
        for output in outputs:
            if output.name not in self._differences:
                continue
            expected, at = self._golden.outputs[output.name], None
            if self._has_rows:
                expected, at = expected[self._first_row : self._first_row + bound.rows], self._first_row
            self._differences[output.name].add(self._compared(output, expected, at))
        self._first_row += bound.rows

    def finish(self) -> None:
        """Say whether every answer was right.

        Raises:
            ModelLoadError: a value differs by more than it may, or there was none to compare.
        """
        _refuse(self._differences, self.where)

    def _compared(self, output: Tensor, expected: Array, first_row: int | None) -> _Difference:
        """Compare one output of one request.

        ``first_row`` is the request's first row in the file; None where the first dimension isn't rows.
        """
        got = _checked(output, expected, self.where)
        if got.dtype.kind != "f":
            wrong = np.asarray(got != expected)
            allowed = f"{output.datatype} must be equal"
        else:
            rtol, atol = tolerance(output.datatype, self._autocast)
            rtol = rtol if self._golden.rtol is None else self._golden.rtol
            atol = atol if self._golden.atol is None else self._golden.atol
            got, expected = got.astype(np.float64), expected.astype(np.float64)
            wrong = ~np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
            allowed = f"the tolerance is {atol:g} + {rtol:g} * |expected|"
        different = int(np.count_nonzero(wrong))
        if not different:
            return _Difference(values=got.size)
        index = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        first = (
            f"{_place(index, first_row)}: expected {_shown(expected[index])}, got {_shown(got[index])}"
            f" ({allowed})"
        )
        return _Difference(first, different, got.size, _largest(got[wrong], expected[wrong]))


@dataclass(slots=True)
class _Difference:
    """How one output differs. ``first`` says where and by how much; it is empty where nothing does."""

    first: str = ""
    different: int = 0
    values: int = 0
    largest: float = 0.0

    def add(self, other: _Difference) -> None:
        self.first = self.first or other.first
        self.different += other.different
        self.values += other.values
        self.largest = max(self.largest, other.largest)


def _refuse(differences: dict[str, _Difference], where: str) -> None:
    """Raise ModelLoadError for the first output that differs, or that has nothing to compare."""
    wrong = [name for name, each in differences.items() if each.different]
    if wrong:
        first = differences[wrong[0]]
        most = f", the most by {first.largest:.6g}" if first.largest else ""
        others = f"; {wrong[1:]} differ too" if wrong[1:] else ""
        raise ModelLoadError(
            f"{where}: output {wrong[0]!r}, {first.first}; {first.different} of {first.values} values"
            f" differ{most}{others}. Serve the model that the file was made of, or make it anew if"
            " these outputs are right"
        )
    empty = [name for name, each in differences.items() if not each.values]
    if empty:
        raise ModelLoadError(f"{where}: output {empty[0]!r} has no values; give it at least one")


def _requests(golden: Golden, spec: ModelSpec, where: str) -> Iterator[Bound]:
    """Cut the file's rows into requests, and check them as a caller's."""
    tensors = golden.inputs
    rows = 1
    if spec.has_batch_dimension and tensors and tensors[0].shape:
        rows = tensors[0].shape[0]
        for tensor in tensors:
            if tensor.shape[:1] != (rows,):
                raise ModelLoadError(
                    f"{where}: input {tensor.name!r} has shape {list(tensor.shape)}, and {tensors[0].name!r}"
                    f" has {list(tensors[0].shape)}; the first dimension counts rows and must be the same"
                )
    step = spec.max_batch_size or 1
    for first_row in range(0, max(rows, 1), step):
        count = min(step, rows - first_row)
        piece = [rows_of(each, first_row, count) for each in tensors] if count < rows else tensors
        try:
            yield spec.bind(piece)
        except InvalidRequest as error:
            raise ModelLoadError(f"{where}: {error}") from error


def _answer(model: Model, bound: Bound, where: str) -> Sequence[Tensor]:
    """Run one request alone, as a batch of one, and return its outputs."""
    request = Pending(bound, lambda _: None, parts=[tensor.data for tensor in bound.tensors])
    batch = Batch(model.spec, [request], 0.0)
    try:
        outputs = model.run(batch.inputs()).outputs
        batch.check(outputs)
    except ModelFailed as error:
        raise ModelLoadError(f"{where}: {error}") from error
    except Exception as error:
        reason = reason_of(error).strip()
        raise ModelLoadError(f"{where}: the model raises on its inputs: {reason}") from error
    batch.deliver(outputs)
    return request.outputs


def _checked(output: Tensor, expected: Array, where: str) -> Array:
    """Return an output's values, which can be compared with what the file expects."""
    if output.datatype == "BYTES":
        raise ModelLoadError(f"{where}: output {output.name!r} is BYTES, which can't be compared; remove it")
    if output.shape != expected.shape:
        raise ModelLoadError(
            f"{where}: output {output.name!r} has shape {list(output.shape)}, and the file expects"
            f" {list(expected.shape)}; serve the model that the file was made of, or make the file anew"
        )
    got = array_of(output)
    if got.dtype.kind != "f" and expected.dtype.kind == "f":
        raise ModelLoadError(
            f"{where}: output {output.name!r} is {output.datatype}, and the file has {expected.dtype};"
            " write it as whole numbers, or as true and false"
        )
    return got


def _largest(got: Array, expected: Array) -> float:
    """Return the largest difference; 0 if none of them is a number."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return float(np.fmax.reduce(apart, initial=0.0))


def _place(index: Sequence[np.intp], first_row: int | None) -> str:
    numbers = [int(each) for each in index]
    if first_row is None:
        return f"index {numbers}"
    return f"row {first_row + numbers[0]}, index {numbers[1:]}"


def _shown(value: np.generic) -> str:
    return f"{value:.9g}" if value.dtype.kind == "f" else str(value.item())
