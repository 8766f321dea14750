"""The checks on ``model_warmup``, and what it becomes."""

from __future__ import annotations

from collections.abc import Sequence

from tensorferry.model import TensorSpec, WarmupSpec
from tensorferry.repository.source import ConfigSource, quoted, suggestion
from tensorferry.repository.tensor_specs import checked_datatype

__all__ = ["warmup_specs"]


def warmup_specs(source: ConfigSource, inputs: Sequence[TensorSpec]) -> tuple[WarmupSpec, ...]:
    """Check the warm-up requests against the model's inputs.

    A ``batch_size`` that is left out is 1, and so is a ``count`` of 0.

    Raises:
        ModelConfigError: too many rows, an input missing or unknown, or one that the model wouldn't take.
    """
    specs: list[WarmupSpec] = []
    for index, warmup in enumerate(source.config.model_warmup):
        name = warmup.name or f"warmup_{index}"
        rows = _rows(source, index, name)
        _check_names(source, index, name, [spec.name for spec in inputs])
        samples = tuple(_sample(source, spec, index, name) for spec in inputs)
        specs.append(WarmupSpec(name, rows, warmup.count or 1, samples))
    return tuple(specs)


def _rows(source: ConfigSource, index: int, name: str) -> int:
    at = ("model_warmup", index, "batch_size")
    rows = source.config.model_warmup[index].batch_size
    most = source.config.max_batch_size
    if not rows and (not most or not source.sets(*at)):
        return 1
    if not 1 <= rows <= max(most, 1):
        allowed = f"1 to max_batch_size {most}" if most else "1, as max_batch_size is 0"
        what = f"warm-up {quoted(name)} has batch_size {rows}; allowed is {allowed}"
        raise source.error(what, *at)
    return rows


def _check_names(source: ConfigSource, index: int, name: str, wanted: list[str]) -> None:
    given = source.config.model_warmup[index].inputs
    at = ("model_warmup", index, "inputs")
    for unknown in sorted(set(given) - set(wanted)):
        what = f"warm-up {quoted(name)} has {quoted(unknown)}, which is no input of the model"
        hint = suggestion(unknown, wanted) or f"; it takes {', '.join(map(quoted, wanted))}"
        raise source.error(what + hint, *at, unknown)
    for missing in wanted:
        if missing not in given:
            what = f"warm-up {quoted(name)} lacks the input {quoted(missing)}; it must give every input"
            raise source.error(what, *at)


def _sample(source: ConfigSource, spec: TensorSpec, index: int, name: str) -> tuple[TensorSpec, bool]:
    """Return what to send for one input, and whether its values are random (zero otherwise)."""
    sample = source.config.model_warmup[index].inputs[spec.name]
    at = ("model_warmup", index, "inputs", spec.name)
    label = f"{quoted(spec.name)} of warm-up {quoted(name)}"
    datatype = checked_datatype(source, sample.data_type, label, at)
    if spec.datatype is not None and datatype is not spec.datatype:
        what = f"{label} is {datatype.name}, and the model's input is {spec.datatype.name}; use that"
        raise source.error(what, *at, "data_type")
    dims, wanted = tuple(sample.dims), spec.dims or ()
    if any(dim < 1 for dim in dims):
        raise source.error(f"{label} has dims {list(dims)}; each must be 1 or more", *at, "dims")
    if len(dims) != len(wanted) or any(want not in (-1, dim) for want, dim in zip(wanted, dims, strict=True)):
        what = f"{label} has dims {list(dims)}, and the model's input has {list(wanted)}"
        raise source.error(f"{what}; make them fit (without the batch dimension)", *at, "dims")
    if sample.WhichOneof("input_data_type") is None:
        what = f"{label} doesn't say what to send; add zero_data: true or random_data: true"
        raise source.error(what, *at)
    return TensorSpec(spec.name, datatype, dims), sample.random_data
