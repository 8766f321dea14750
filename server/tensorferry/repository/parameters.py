"""The keys of the ``parameters`` map that Tensorferry knows.

Rules for this file: ``PARAMETERS`` is the only list of them, in the order in which they are read.
A parser takes the specification so far and the value's text, and returns the specification with
the value in it; it raises ``ValueError`` with what the value must be.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

from tensorferry.model import MAX_PIECES, ModelSpec, PaddingSpec
from tensorferry.repository import tuning
from tensorferry.repository.source import ConfigSource, quoted, suggestion

__all__ = ["PARAMETERS", "Parameter", "apply_parameters"]

ParameterParser = Callable[[ModelSpec, str], ModelSpec]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter's parser, and what its documentation says: unit ("" for none), default and meaning."""

    parse: ParameterParser
    unit: str
    default: str
    meaning: str


# More threads than any machine has cores; torch takes any number and dies of it later.
_MAX_THREADS: Final = 1024

#: From a microsecond, which no model can meet, to an hour, which no caller waits.
_OBJECTIVE_MS: Final = (0.001, 3_600_000.0)

_MAX_BUCKETS: Final = 256
#: Lengths up to here are exact in FP32, the narrowest datatype that tells them to a model.
_MAX_LENGTH: Final = 2**24

# Python's float() also takes "1_000", "nan" and other alphabets' digits.
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?\d{1,40}", re.ASCII)

_FLOAT_LIMITS: Final = {"FP16": 65504.0, "BF16": 3.3895313892515355e38, "FP32": 3.4028234663852886e38}


def _intra_op_threads(spec: ModelSpec, text: str) -> ModelSpec:
    threads = _length(text, _MAX_THREADS)
    if threads is None:
        raise ValueError(f"an integer from 1 to {_MAX_THREADS}")
    return replace(spec, intra_op_threads=threads)


def _inter_op_threads(spec: ModelSpec, text: str) -> ModelSpec:
    if _length(text, _MAX_THREADS) is None:
        raise ValueError(f"an integer from 1 to {_MAX_THREADS}")
    return spec


def _inference_mode(spec: ModelSpec, text: str) -> ModelSpec:
    if not _switch(text, '"true" (this server runs every model in inference mode), or left out'):
        raise ValueError('"true" (this server runs every model in inference mode), or left out')
    return spec


def _tuning_switch(spec: ModelSpec, text: str) -> ModelSpec:
    _switch(text)
    return spec


def _weight_sharing(spec: ModelSpec, text: str) -> ModelSpec:
    return replace(spec, tuning=replace(spec.tuning, shares_weights=_switch(text)))


def _gpu_switch(spec: ModelSpec, text: str) -> ModelSpec:
    if _switch(text) and any(device != "cpu" for device in spec.devices):
        raise ValueError('"false", or left out, as the server can\'t do it for a model on a GPU')
    return spec


def _latency_objective_ms(spec: ModelSpec, text: str) -> ModelSpec:
    least, most = _OBJECTIVE_MS
    objective_ms = _number(text)
    if objective_ms is None or not least <= objective_ms <= most:
        raise ValueError(f"a number of milliseconds from {least:g} to {most:.0f}")
    return replace(spec, batching=replace(spec.batching, latency_objective_ms=objective_ms))


def _run_timeout_ms(spec: ModelSpec, text: str) -> ModelSpec:
    least, most = _OBJECTIVE_MS
    timeout_ms = _number(text)
    if timeout_ms is None or (timeout_ms != 0.0 and not least <= timeout_ms <= most):
        raise ValueError(f"0 for none, or a number of milliseconds from {least:g} to {most:.0f}")
    return replace(spec, run_timeout_ms=timeout_ms)


def _split_oversized(spec: ModelSpec, text: str) -> ModelSpec:
    if text.lower() not in ("true", "false"):
        raise ValueError('"true" or "false"')
    splits = text.lower() == "true"
    if splits and not spec.max_batch_size:
        raise ValueError('"false", or left out, as max_batch_size is 0 and there are no rows to split')
    return replace(spec, batching=replace(spec.batching, split_oversized=splits))


def _execution(spec: ModelSpec, text: str) -> ModelSpec:
    if text not in ("auto", "inline", "thread"):
        raise ValueError('"auto", "inline" or "thread"')
    if text == "inline" and len(spec.devices) > 1:
        raise ValueError(f'"auto" or "thread", as instance_group asks for {len(spec.devices)} worker streams')
    if text == "inline" and spec.devices[0] != "cpu":
        raise ValueError(f'"auto" or "thread", as instance_group puts the model on {spec.devices[0]}')
    return replace(spec, execution=cast("Literal['auto', 'inline', 'thread']", text))


def _ragged_buckets(spec: ModelSpec, text: str) -> ModelSpec:
    padding = _padding(spec)
    parts = text.split(",")
    lengths = [_length(part.strip(), _MAX_LENGTH) for part in parts[: _MAX_BUCKETS + 1]]
    buckets = tuple(length for length in lengths if length is not None)
    if len(buckets) != len(parts) or len(parts) > _MAX_BUCKETS:
        raise ValueError(
            f'1 to {_MAX_BUCKETS} integers from 1 to {_MAX_LENGTH} with commas between, such as "16,32,64"'
        )
    if any(left >= right for left, right in itertools.pairwise(buckets)):
        raise ValueError("ascending, each length once")
    return replace(spec, padding=replace(padding, buckets=buckets))


def _ragged_max_length(spec: ModelSpec, text: str) -> ModelSpec:
    padding = _padding(spec)
    length = _length(text, _MAX_LENGTH)
    if length is None:
        raise ValueError(f"an integer from 1 to {_MAX_LENGTH}")
    if padding.buckets and length > padding.buckets[-1]:
        what = f"at most {padding.buckets[-1]}, the last of ragged_buckets"
        raise ValueError(f"{what}, as a longer request is refused; add a bucket that covers it")
    return spec


def _ragged_pad_value(spec: ModelSpec, text: str) -> ModelSpec:
    padding = _padding(spec)
    value = _number(text)
    if value is None:
        raise ValueError("a finite number")
    for each in spec.inputs:
        if each.name in padding.inputs and each.datatype is not None:
            _check_holds(each.datatype.name, value, text)
    return replace(spec, padding=replace(padding, pad_value=value))


def _torch_export_mode(spec: ModelSpec, text: str) -> ModelSpec:
    if text not in ("auto", "graph", "aoti"):
        raise ValueError('"auto", "graph" or "aoti"')
    return replace(spec, torch_export_mode=cast("Literal['auto', 'graph', 'aoti']", text))


# Switches of Triton's PyTorch backend for how a model is executed: its answers mean the same either way.
_NO_EFFECT: Final = "taken for Triton's sake, without effect"
_CPU_ONLY: Final = f"{_NO_EFFECT}; `true` is refused for a model on a GPU, where it would have one"

#: Name to parameter, for every parameter that is supported. ``ragged_max_length`` looks at the buckets.
PARAMETERS: Final[Mapping[str, Parameter]] = {
    **{
        name: Parameter(_gpu_switch, "", "`false`", _CPU_ONLY)
        for name in ("DISABLE_CUDNN", "ENABLE_CACHE_CLEANING")
    },
    **{
        name: Parameter(_tuning_switch, "", default, f"{_NO_EFFECT}: this server sets how the JIT executes")
        for name, default in (
            ("DISABLE_OPTIMIZED_EXECUTION", "`false`"),
            ("ENABLE_JIT_EXECUTOR", "`true`"),
            ("ENABLE_JIT_PROFILING", "`true`"),
            ("ENABLE_NVFUSER", "`false`"),
            ("ENABLE_TENSOR_FUSER", "`false`"),
        )
    },
    "ENABLE_WEIGHT_SHARING": Parameter(
        _weight_sharing,
        "",
        "`false`",
        "`true`: the worker streams of one device share one copy of a torch model, where running it leaves it"
        " as it is; see [formats](formats.md#tuning)",
    ),
    "INFERENCE_MODE": Parameter(
        _inference_mode, "", "`true`", "taken for Triton's sake: every model runs in inference mode"
    ),
    "INTER_OP_THREAD_COUNT": Parameter(
        _inter_op_threads,
        "threads",
        "none",
        f"{_NO_EFFECT}: worker streams run a model's operations in their order",
    ),
    "INTRA_OP_THREAD_COUNT": Parameter(
        _intra_op_threads,
        "threads",
        "the cores divided among the streams",
        "threads inside one operation, for each worker stream",
    ),
    "autocast": Parameter(
        tuning.autocast,
        "",
        "`off`",
        "`fp16` or `bf16`: torch runs matrix products and convolutions in that datatype; what it changes is"
        " checked at load; torch models alone, and no compiled packages: [formats](formats.md#tuning)",
    ),
    "cuda_graphs": Parameter(
        tuning.cuda_graphs,
        "",
        "`auto`",
        "`auto`: batches on a GPU run as CUDA graphs where the model can be captured; `on`: the model is"
        " refused where it can't; `off`: none are captured; without effect on the CPU, where `on` is refused",
    ),
    "execution": Parameter(
        _execution,
        "",
        "`auto`",
        "where batches run: `inline` on the event loop, `thread` on worker streams, `auto` as the measured"
        " run time says; `inline` needs a single stream on the CPU",
    ),
    "latency_objective_ms": Parameter(
        _latency_objective_ms,
        "ms",
        "none",
        "answer within this time of receipt: batches are sized to it, and a request that would be late is"
        " refused at once; holds without `dynamic_batching` too",
    ),
    "memory_format": Parameter(
        tuning.memory_format,
        "",
        "`contiguous`",
        "`channels_last`: 4-dimensional weights and inputs of a torch model are laid out with the channels"
        " last, which convolutions on GPUs like; callers see no difference: [formats](formats.md#tuning)",
    ),
    "run_timeout_ms": Parameter(
        _run_timeout_ms,
        "ms",
        "none",
        "a run that takes longer is given up and its batch fails: the model's process is killed and started"
        " again; for models in a process of their own alone (such as Python models), warm-up included",
    ),
    "staging_slots": Parameter(
        tuning.staging_slots,
        "batches",
        "`3`",
        f"1 to {tuning.MAX_STAGING_SLOTS}: batches that a worker stream on a GPU holds at once, each with"
        " staging buffers of its own; from 2 on copies overlap with runs; without effect on the CPU",
    ),
    "split_oversized": Parameter(
        _split_oversized,
        "",
        "`false`",
        f"`true`: a request of up to {MAX_PIECES} times `max_batch_size` rows is split, and its reply"
        " rejoined; `false`: it is refused",
    ),
    "ragged_buckets": Parameter(
        _ragged_buckets,
        "elements",
        "none",
        "lengths that ragged inputs are padded to, ascending, as in `16,32,64`; a request longer than the"
        " last is refused",
    ),
    "ragged_max_length": Parameter(
        _ragged_max_length,
        "elements",
        "none",
        "longest request that callers send; loading fails where the last bucket is shorter",
    ),
    "ragged_pad_value": Parameter(
        _ragged_pad_value,
        "",
        "`0`",
        "what fills the padding; the datatype of every ragged input must hold it",
    ),
    "torch_export_mode": Parameter(
        _torch_export_mode,
        "",
        "`auto`",
        "how an exported program (`model.pt2`) runs: `graph` as it is, `aoti` compiled by AOTInductor at"
        " every load, in 5 to 30 s; `auto` is `graph`; a compiled package runs as what it is",
    ),
}


def apply_parameters(source: ConfigSource, spec: ModelSpec) -> ModelSpec:
    """Return ``spec`` with the configuration's parameters in it.

    Raises:
        ModelConfigError: an unknown parameter, or a value that it doesn't take.
    """
    given = source.config.parameters
    for name in sorted(given):
        if name not in PARAMETERS:
            what = f"Tensorferry doesn't know the parameter {quoted(name)}; remove it"
            raise source.error(what + suggestion(name, PARAMETERS), "parameters", name)
    for name, parameter in PARAMETERS.items():
        if name not in given:
            continue
        text = given[name].string_value
        try:
            spec = parameter.parse(spec, text.strip())
        except ValueError as error:
            what = f"the parameter {name} is {quoted(text)}; it must be {error}"
            raise source.error(what, "parameters", name) from None
    return spec


def _padding(spec: ModelSpec) -> PaddingSpec:
    if spec.padding is None:
        raise ValueError("left out, as no input says allow_ragged_batch: true")
    return spec.padding


def _number(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _switch(text: str, wanted: str = '"true" or "false"') -> bool:
    """Return what a switch of Triton's says; it takes 1 and 0, too.

    Raises:
        ValueError: something else, with ``wanted``.
    """
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise ValueError(wanted)
    return values[text.lower()]


def _length(text: str, most: int) -> int | None:
    """Return the integer from 1 to ``most`` that ``text`` is; None if it is something else."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    return int(text) if 1 <= int(text) <= most else None


def _check_holds(datatype: str, value: float, text: str) -> None:
    """Refuse a value that the datatype would change: a fraction, or one out of its range.

    Raises:
        ValueError: says what the value must be.
    """
    if datatype in _FLOAT_LIMITS or datatype == "FP64":
        limit = _FLOAT_LIMITS.get(datatype, math.inf)
        if abs(value) > limit:
            raise ValueError(f"from {-limit:g} to {limit:g}, as a ragged input is {datatype}")
        return
    if datatype == "BOOL":
        least, most = 0, 1
    else:
        bits = int(datatype.removeprefix("U").removeprefix("INT"))
        least, most = (
            (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
    if not value.is_integer() or not least <= int(value) <= most:
        raise ValueError(f"an integer from {least} to {most}, as a ragged input is {datatype}")
    if _INTEGER.fullmatch(text) and int(text) != int(value):
        raise ValueError(f"an integer that FP64 holds exactly; the nearest is {int(value)}")
