"""Which of a model's outputs holds scores, and the scores of one answered request."""

from __future__ import annotations

from struct import Struct
from typing import Final

import numpy as np

from tensorferry.batching.pending import Pending
from tensorferry.errors import InvalidRequest, TensorferryError
from tensorferry.model import ModelSpec
from tensorferry.rollout.counts import Scores
from tensorferry.tensors import Tensor, array_of

__all__ = ["score_output_index", "scores_of"]

_FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})

#: Those that are read without numpy, which takes a microsecond more.
_FORMATS: Final = {"FP32": Struct("<f"), "FP64": Struct("<d")}


def score_output_index(spec: ModelSpec, name: str = "") -> int:
    """Return the index of the output ``name``, or of the first that may be of floating point; -1 if none is.

    Raises:
        InvalidRequest: the model has no output of that name, or it isn't of floating point.
    """
    for index, output in enumerate(spec.outputs):
        is_float = output.datatype is None or output.datatype.name in _FLOATS
        if (output.name == name or not name) and is_float:
            return index
    if not name:
        return -1
    names = [output.name for output in spec.outputs]
    raise InvalidRequest(
        f"model {spec.name!r} version {spec.version}: score_output {name!r} is not an output of floating"
        f" point; the outputs are {names}"
    )


def scores_of(request: Pending, index: int) -> Scores:
    """Return an answered request's scores, one for each row: of many, a view of the batch's output ``index``.

    Where a row has several values, its last is the score: of a classifier's two columns that is the
    probability of class 1. Without a batch dimension the whole answer is one row. Empty if there is
    no such output, or it isn't of floating point: this runs on an answer's way and doesn't raise.
    """
    outputs = request.batch_outputs
    if not 0 <= index < len(outputs) or outputs[index].datatype not in _FLOATS:
        return ()
    output = outputs[index]
    format_ = _FORMATS.get(output.datatype)
    if format_ is None:
        return _read_by_numpy(output, request)
    data = output.data
    rows = request.bound.rows if request.batch_rows else 1
    row_bytes = len(data) // (request.batch_rows or 1)
    if not row_bytes or row_bytes % format_.size:
        return ()  # not what its shape says; whoever encodes the answer will say so
    end = (request.first_row + rows) * row_bytes
    if rows == 1:
        score: tuple[float] = format_.unpack_from(data, end - format_.size)
        return score
    own = memoryview(data)[end - rows * row_bytes : end]
    values = own.cast("f") if output.datatype == "FP32" else own.cast("d")
    width = row_bytes // format_.size
    return values if width == 1 else values[width - 1 :: width]


def _read_by_numpy(output: Tensor, request: Pending) -> Scores:
    try:
        whole = array_of(output).reshape(request.batch_rows or 1, -1)
    except (TensorferryError, ValueError):
        return ()
    first = request.first_row
    own = whole[first : first + request.bound.rows] if request.batch_rows else whole
    return [float(each) for each in own[:, -1].astype(np.float64)] if own.shape[1] else ()
