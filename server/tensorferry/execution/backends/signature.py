"""What a model file says of its own tensors, held against the configuration or in place of one.

Rules for this file: no torch and no onnxruntime; every backend may use it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.model import BatchingSpec, ModelSpec, TensorSpec
from tensorferry.tensors import DATATYPES

__all__ = [
    "Signature",
    "SignatureTensor",
    "check_output",
    "check_output_count",
    "checked",
    "from_signature",
    "input_order",
    "positions",
]

_INDEXED: Final = re.compile(r".*__(\d+)")


@dataclass(frozen=True, slots=True)
class SignatureTensor:
    """An input or output as the file describes it.

    ``datatype`` is the protocol's name, or "" where the file doesn't say. ``shape`` has the batch
    dimension, if there is one, and -1 for a size that isn't fixed; None where the file doesn't say.
    """

    name: str
    datatype: str = ""
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        shape = "" if self.shape is None else f" {list(self.shape)}"
        return f"{self.name!r} {self.datatype}{shape}".rstrip()


@dataclass(frozen=True, slots=True)
class Signature:
    """A file's inputs and outputs, in its own order. ``max_rows`` is the most that it takes; 0: any."""

    inputs: tuple[SignatureTensor, ...]
    outputs: tuple[SignatureTensor, ...]
    max_rows: int = 0

    @property
    def has_batch_dimension(self) -> bool:
        """Whether the first dimension of every tensor that the file describes can be any size."""
        return all(each.shape is None or each.shape[:1] == (-1,) for each in (*self.inputs, *self.outputs))


def from_signature(spec: ModelSpec, signature: Signature) -> ModelSpec:
    """Return ``spec``, which had no configuration, with the file's own tensors.

    A model whose tensors don't all begin with a dimension of any size has no batch dimension.
    """
    rows = spec.max_batch_size if signature.has_batch_dimension else 0
    if rows and signature.max_rows:
        rows = min(rows, signature.max_rows)
    return replace(
        spec,
        inputs=tuple(_spec_of(each, rows) for each in signature.inputs),
        outputs=tuple(_spec_of(each, rows) for each in signature.outputs),
        max_batch_size=rows,
        batching=spec.batching if rows else BatchingSpec(enabled=False),
    )


def checked(
    spec: ModelSpec, signature: Signature, order: Sequence[int], where: str, remedy: str
) -> ModelSpec:
    """Return ``spec``, whose configuration fits the file.

    Args:
        spec: A specification with tensors.
        signature: What the file says.
        order: For each of the file's inputs, the index in ``spec.model_inputs`` that it takes.
        where: The beginning of every error.
        remedy: How to write a file of this format whose batch dimension can be any size.

    Raises:
        ModelLoadError: a datatype, a shape or the batch dimension isn't what the configuration says.
    """
    for own, index in zip(signature.inputs, order, strict=True):
        _check_fits(spec, spec.model_inputs[index], own, "input", where, remedy)
    if 0 < signature.max_rows < spec.max_batch_size:
        raise ModelLoadError(
            f"{where}: the file takes at most {signature.max_rows} rows, and max_batch_size is"
            f" {spec.max_batch_size}; lower it, or {remedy}"
        )
    return spec


def input_order(spec: ModelSpec, arguments: Sequence[str], where: str, takes: str) -> list[int]:
    """Return, for each argument of the model, the index of the input that it takes.

    By name if the names are the arguments', else by ``__<n>`` if every name ends so, else in order.

    Raises:
        ModelLoadError: the configuration names another number of inputs, or indices that can't be.
    """
    names = [each.name for each in spec.model_inputs]
    if len(names) != len(arguments):
        raise ModelLoadError(
            f"{where}: {takes} {len(arguments)} inputs {list(arguments)}, and the configuration names"
            f" {len(names)} {names}"
        )
    if set(names) == set(arguments):
        return [names.index(argument) for argument in arguments]
    found = positions(spec.model_inputs)
    if sorted(found) != list(range(len(names))):
        raise ModelLoadError(
            f"{where}: the inputs' indices {names} must be 0 to {len(arguments) - 1}, each once"
        )
    return sorted(range(len(names)), key=found.__getitem__)


def positions(tensors: Sequence[TensorSpec]) -> list[int]:
    """Return the position that each name states by ``__<n>``, if all do; otherwise the order they are in."""
    matches = [_INDEXED.fullmatch(each.name) for each in tensors]
    if all(matches):
        return [int(match[1]) for match in matches if match]
    return list(range(len(tensors)))


def check_output_count(spec: ModelSpec, signature: Signature, where: str, returns: str) -> None:
    """Check that the file has the outputs that the configuration names, by key or by position.

    Raises:
        ModelLoadError: it hasn't.
    """
    own = [each.name for each in signature.outputs]
    names = [each.name for each in spec.outputs]
    by_key = not any(_INDEXED.fullmatch(name) for name in own)
    if (by_key and not set(names) <= set(own)) or (not by_key and max(positions(spec.outputs)) >= len(own)):
        listed = f" {own}" if by_key else ""
        raise ModelLoadError(
            f"{where}: {returns} {len(own)} outputs{listed}, and the configuration names {names}"
        )


def check_output(spec: ModelSpec, expected: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
    """Check an output of a run.

    Raises:
        ModelFailed: says what the configuration wants and what came.
    """
    what = f"model {spec.name!r}: output {expected.name!r}"
    if expected.datatype is not None and datatype != expected.datatype.name:
        raise ModelFailed(f"{what} is {datatype}, and its configuration says {expected.datatype.name}")
    if expected.dims is None:
        return
    row_shape = shape[1:] if spec.has_batch_dimension else shape
    if not _dims_fit(expected.dims, row_shape):
        after = " after the batch dimension" if spec.has_batch_dimension else ""
        raise ModelFailed(
            f"{what} has shape {list(shape)}, and its configuration says {list(expected.dims)}{after}"
        )


def _spec_of(tensor: SignatureTensor, rows: int) -> TensorSpec:
    datatype = DATATYPES.get(tensor.datatype)
    if tensor.shape is None:
        return TensorSpec(tensor.name, datatype)
    return TensorSpec(tensor.name, datatype, tensor.shape[1:] if rows else tensor.shape)


def _check_fits(
    spec: ModelSpec, expected: TensorSpec, own: SignatureTensor, kind: str, where: str, remedy: str
) -> None:
    if own.datatype and expected.datatype is not None and own.datatype != expected.datatype.name:
        raise ModelLoadError(
            f"{where}: the configuration says that {kind} {expected.name!r} is {expected.datatype.name}, and"
            f" in the file it is {own.datatype}; make them equal"
        )
    if own.shape is None or expected.dims is None:
        return
    if spec.max_batch_size > 1 and own.shape[:1] != (-1,):
        fixed = f"fixed at {own.shape[0]}" if own.shape else "not there"
        raise ModelLoadError(
            f"{where}: max_batch_size is {spec.max_batch_size}, and the batch dimension of {kind}"
            f" {expected.name!r} is {fixed} in the file; {remedy}"
        )
    own_dims = own.shape[1:] if spec.has_batch_dimension else own.shape
    # A size that the configuration leaves open must be open in the file too, and the reverse does no harm.
    if not _dims_fit(own_dims, expected.dims):
        raise ModelLoadError(
            f"{where}: the configuration says that {kind} {expected.name!r} has dims {list(expected.dims)},"
            f" and in the file they are {list(own_dims)}; make them equal"
        )


def _dims_fit(dims: Sequence[int], sizes: Sequence[int]) -> bool:
    return len(dims) == len(sizes) and all(dim in (-1, size) for dim, size in zip(dims, sizes, strict=True))
