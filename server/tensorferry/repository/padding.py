"""The checks on ``allow_ragged_batch``, ``batch_input`` and ``batch_output``, and what they become.

The buckets and the pad value are parameters (``parameters.py``), which are read in between:
``padding_spec`` makes the specification without them, ``check_padding`` judges the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from tensorferry.model import ModelSpec, PaddingSpec, TensorSpec, WarmupSpec
from tensorferry.repository.source import ConfigSource, FieldPath, quoted, suggestion
from tensorferry.wire.model_config_pb2 import BatchInput, BatchOutput, DataType

__all__ = ["check_padding", "padding_spec"]

_LengthsDatatype = Literal["INT64", "INT32", "FP32"]

_LENGTHS_DATATYPES: Final[dict[int, _LengthsDatatype]] = {
    DataType.TYPE_INT32: "INT32",
    DataType.TYPE_INT64: "INT64",
    DataType.TYPE_FP32: "FP32",
}


def padding_spec(
    source: ConfigSource, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> PaddingSpec | None:
    """Return how requests are padded, still without buckets; None where no input asks for it.

    Raises:
        ModelConfigError: a ragged tensor without one variable dimension, or a ``batch_input`` or
            ``batch_output`` that isn't supported or names no such tensor.
    """
    ragged = [spec for spec, raw in zip(inputs, source.config.input, strict=False) if raw.allow_ragged_batch]
    for field in ("batch_input", "batch_output"):
        if source.sets(field, 0) and not ragged:
            what = f"{field} is for padded batches, and no input says allow_ragged_batch: true"
            raise source.error(f"{what}; add that to an input, or remove {field}", field, 0)
    if not ragged:
        return None
    for index, spec in enumerate(inputs):
        if spec in ragged:
            at = ("input", index, "allow_ragged_batch")
            _check_variable(source, spec, f"input {quoted(spec.name)} says allow_ragged_batch", at)
            if not source.config.max_batch_size:
                what = "allow_ragged_batch needs a max_batch_size above 0; set one, or remove it"
                raise source.error(what, *at)
    names = [spec.name for spec in ragged]
    lengths_input, lengths_datatype = _lengths_input(source, names, [spec.name for spec in inputs])
    cut = _cut_outputs(source, names, outputs)
    return PaddingSpec(
        inputs=tuple(names),
        outputs=tuple(spec.name for spec in outputs if spec.name in cut),
        buckets=(),
        lengths_input=lengths_input,
        lengths_datatype=lengths_datatype,
    )


def check_padding(source: ConfigSource, spec: ModelSpec) -> None:
    """Check what can be seen only once the parameters are read.

    Raises:
        ModelConfigError: no buckets, or a warm-up request that they don't fit.
    """
    padding = spec.padding
    if padding is None:
        return
    if not padding.buckets:
        index = [each.name for each in spec.inputs].index(padding.inputs[0])
        what = f"input {quoted(padding.inputs[0])} says allow_ragged_batch, which needs the parameter"
        what += ' ragged_buckets: the lengths to pad to, such as "16,32,64"'
        raise source.error(what, "input", index, "allow_ragged_batch")
    for index, warmup in enumerate(spec.warmups):
        _check_warmup(source, spec, padding, index, warmup)


def _check_warmup(
    source: ConfigSource, spec: ModelSpec, padding: PaddingSpec, index: int, warmup: WarmupSpec
) -> None:
    first, longest = None, padding.buckets[-1]
    for declared, (sample, _) in zip(spec.inputs, warmup.inputs, strict=True):
        if declared.name not in padding.inputs:
            continue
        length = (sample.dims or ())[(declared.dims or ()).index(-1)]
        first = length if first is None else first
        what = f"{quoted(declared.name)} of warm-up {quoted(warmup.name)} has the length {length}"
        at = ("model_warmup", index, "inputs", declared.name, "dims")
        if length != first:
            why = f"{quoted(padding.inputs[0])} has {first}; the lengths of ragged inputs must be equal"
            raise source.error(f"{what}, and {why}", *at)
        if length > longest:
            why = f"the last of ragged_buckets is {longest}; shorten it, or add a bucket"
            raise source.error(f"{what}, and {why}", *at)


def _check_variable(source: ConfigSource, spec: TensorSpec, what: str, at: FieldPath) -> None:
    dims = spec.dims or ()
    if dims.count(-1) != 1:
        needs = f"which needs exactly one -1 in dims, and they are {list(dims)}"
        raise source.error(f"{what}, {needs}; give the other dimensions a size", *at)


def _lengths_input(
    source: ConfigSource, ragged: list[str], inputs: list[str]
) -> tuple[str, _LengthsDatatype]:
    """Return the name and the datatype of the input that takes the lengths; the name is "" without one."""
    declared = source.config.batch_input
    if not declared:
        return "", "INT64"
    if len(declared) > 1:
        what = f"there are {len(declared)} batch_input; only one is supported, with the rows' lengths"
        raise source.error(f"{what}: keep one", "batch_input", 1)
    one, at = declared[0], ("batch_input", 0)
    if one.kind != BatchInput.BATCH_ELEMENT_COUNT:
        what = "only the kind BATCH_ELEMENT_COUNT is supported in batch_input (each row's own length)"
        raise source.error(f"{what}; use that, or remove it", *at, "kind")
    if len(one.target_name) != 1 or not one.target_name[0]:
        raise source.error(
            "batch_input needs one target_name: the model's input for the lengths", *at, "target_name"
        )
    target = one.target_name[0]
    if target in inputs:
        what = f"batch_input fills in {quoted(target)}, which is an input that callers send, too"
        raise source.error(f"{what}; remove it from input", *at, "target_name")
    if one.data_type not in _LENGTHS_DATATYPES:
        allowed = ", ".join(f"TYPE_{name}" for name in _LENGTHS_DATATYPES.values())
        what = f"the data_type of batch_input {quoted(target)} must be one of {allowed}"
        raise source.error(what, *at, "data_type")
    _check_source(source, one, ragged, at)
    return target, _LENGTHS_DATATYPES[one.data_type]


def _cut_outputs(source: ConfigSource, ragged: list[str], outputs: Sequence[TensorSpec]) -> set[str]:
    """Return the names of the outputs that are cut back to each request's own length."""
    known = {spec.name: spec for spec in outputs}
    cut: set[str] = set()
    for index, one in enumerate(source.config.batch_output):
        at = ("batch_output", index)
        if one.kind != BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE:
            what = "only the kind BATCH_SCATTER_WITH_INPUT_SHAPE is supported in batch_output"
            raise source.error(f"{what}; use that, or remove it", *at, "kind")
        if not one.target_name:
            raise source.error("batch_output has no target_name; name the outputs to cut back", *at)
        _check_source(source, one, ragged, at)
        for position, name in enumerate(one.target_name):
            here = (*at, "target_name", position)
            if name not in known:
                what = f"batch_output names {quoted(name)}, which is no output of the model"
                raise source.error(f"{what}{suggestion(name, known)}", *here)
            if name in cut:
                raise source.error(f"batch_output names {quoted(name)} twice; keep one", *here)
            _check_variable(source, known[name], f"batch_output cuts back {quoted(name)}", here)
            cut.add(name)
    return cut


def _check_source(
    source: ConfigSource, one: BatchInput | BatchOutput, ragged: list[str], at: tuple[str, int]
) -> None:
    if len(one.source_input) == 1 and one.source_input[0] in ragged:
        return
    what = f"{at[0]} needs one source_input that says allow_ragged_batch: true"
    raise source.error(f"{what}; one of {', '.join(map(quoted, ragged))}", *at, "source_input")
