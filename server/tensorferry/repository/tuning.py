"""How a model is to be run on its device: the parameters and the ``optimization`` message that say so.

Both end up in ``ModelSpec.tuning``. ``optimization`` has Triton's names; where a parameter and a field
of it contradict each other, neither is guessed to be the right one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, cast

from tensorferry.model import ModelSpec
from tensorferry.repository.formats import configured_format
from tensorferry.repository.source import ConfigSource

__all__ = [
    "MAX_STAGING_SLOTS",
    "apply_optimization",
    "autocast",
    "cuda_graphs",
    "memory_format",
    "staging_slots",
]

#: Each slot has staging buffers of its own; three keep both copies and the run busy.
MAX_STAGING_SLOTS: Final = 8

_AT: Final = "optimization"
_PINNED: Final = ("input_pinned_memory", "output_pinned_memory")
_DATATYPES: Final[dict[str, Literal["", "FP16", "BF16"]]] = {"fp16": "FP16", "bf16": "BF16", "off": ""}

#: Formats that torch doesn't run, and what their owners can do instead.
_FOREIGN: Final = {
    "onnxruntime_onnx": ("an ONNX model", "convert the file itself, or serve model.pt or model.pt2"),
    "python": ("a Python model", "do it in its code"),
}


def autocast(spec: ModelSpec, text: str) -> ModelSpec:
    """Read the parameter ``autocast`` into ``spec``.

    Raises:
        ValueError: says what the value must be.
    """
    if text not in _DATATYPES:
        raise ValueError('"fp16", "bf16" or "off"')
    return replace(spec, tuning=replace(spec.tuning, autocast=_DATATYPES[text]))


def memory_format(spec: ModelSpec, text: str) -> ModelSpec:
    """Read the parameter ``memory_format`` into ``spec``.

    Raises:
        ValueError: says what the value must be.
    """
    if text not in ("channels_last", "contiguous"):
        raise ValueError('"channels_last" or "contiguous"')
    return replace(spec, tuning=replace(spec.tuning, channels_last=text == "channels_last"))


def cuda_graphs(spec: ModelSpec, text: str) -> ModelSpec:
    """Read the parameter ``cuda_graphs`` into ``spec``.

    Raises:
        ValueError: says what the value must be.
    """
    if text not in ("auto", "on", "off"):
        raise ValueError('"auto", "on" or "off"')
    if text == "on" and "cpu" in spec.devices:
        raise ValueError(
            '"auto" or "off", as instance_group puts the model on the CPU, which has no CUDA graphs; or put'
            " it on GPUs alone (kind: KIND_GPU)"
        )
    graphs = cast("Literal['auto', 'on', 'off']", text)
    return replace(spec, tuning=replace(spec.tuning, cuda_graphs=graphs))


def staging_slots(spec: ModelSpec, text: str) -> ModelSpec:
    """Read the parameter ``staging_slots`` into ``spec``.

    Raises:
        ValueError: says what the value must be.
    """
    if text not in [str(slots) for slots in range(1, MAX_STAGING_SLOTS + 1)]:
        raise ValueError(f"an integer from 1 to {MAX_STAGING_SLOTS}")
    return replace(spec, tuning=replace(spec.tuning, staging_slots=int(text)))


def apply_optimization(source: ConfigSource, spec: ModelSpec) -> ModelSpec:
    """Return ``spec``, which has its parameters, with what ``optimization`` says.

    Raises:
        ModelConfigError: a field contradicts a parameter, or asks for what this server doesn't do; or a
            parameter asks a format that torch doesn't run for what torch does.
    """
    _check_format(source, spec)
    _check_pinned(source, spec)
    cuda = source.config.optimization.cuda
    tuning = replace(spec.tuning, busy_wait=cuda.busy_wait_events)
    given = _parameter(source, "cuda_graphs")
    if source.sets(_AT, "cuda", "graphs"):
        if cuda.graphs and given == "off":
            raise _contradiction(source, "true", given)
        if not cuda.graphs:
            if given in ("auto", "on"):
                raise _contradiction(source, "false", given)
            tuning = replace(tuning, cuda_graphs="off")
    return replace(spec, tuning=tuning)


def _contradiction(source: ConfigSource, graphs: str, given: str) -> Exception:
    what = f"optimization.cuda.graphs is {graphs}, and the parameter cuda_graphs is {given!r}"
    return source.error(f"{what}; remove one of the two", _AT, "cuda", "graphs")


def _check_pinned(source: ConfigSource, spec: ModelSpec) -> None:
    gpus = [device for device in spec.devices if device != "cpu"]
    for field in _PINNED:
        is_on = getattr(source.config.optimization, field).enable
        if source.sets(_AT, field, "enable") and not is_on and gpus:
            what = f"optimization.{field}.enable is false, and instance_group puts the model on {gpus[0]}"
            why = "whose copies go over pinned memory, as they would hold everything up without; remove it"
            raise source.error(f"{what}, {why}", _AT, field, "enable")


def _check_format(source: ConfigSource, spec: ModelSpec) -> None:
    """Refuse at its line what the format can't do; where the file says the format, loading does."""
    stated = configured_format(source)
    if stated is None:
        return
    foreign, instead = _FOREIGN.get(stated.platform, ("", ""))
    if not foreign and stated.platform == "torch_aoti" and spec.torch_export_mode == "aoti":
        foreign, instead = "a program that torch_export_mode has compiled", "set torch_export_mode to graph"
    if not foreign:
        return
    tuning = spec.tuning
    for name, value, is_asked, remedy in (
        ("autocast", tuning.autocast.lower(), bool(tuning.autocast), instead),
        ("memory_format", "channels_last", tuning.channels_last, instead),
        ("ENABLE_WEIGHT_SHARING", "true", tuning.shares_weights, "lower the count of instance_group"),
        ("cuda_graphs", "on", tuning.cuda_graphs == "on" and stated.platform in _FOREIGN, "say auto"),
    ):
        if is_asked:
            what = f"the parameter {name} is {value}, which {foreign} can't have; remove it, or {remedy}"
            raise source.error(what, "parameters", name)


def _parameter(source: ConfigSource, name: str) -> str:
    """Return a parameter's text, "" where it isn't given."""
    given = source.config.parameters
    return given[name].string_value.strip() if name in given else ""
