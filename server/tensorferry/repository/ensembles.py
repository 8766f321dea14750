"""The checks on ``ensemble_scheduling``, and the steps that it becomes.

An ensemble is a chain of models behind one name. Its tensors have names of their own: the inputs are
the caller's, each step reads some and writes others, and the outputs are what the caller gets. That
the models exist and take what they are given is for the engine to see: they come and go by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tensorferry.errors import ModelConfigError
from tensorferry.model import EnsembleStep
from tensorferry.repository.formats import ENSEMBLE, configured_format
from tensorferry.repository.parameters import PARAMETERS
from tensorferry.repository.source import ConfigSource, FieldPath, quoted, suggestion
from tensorferry.wire.model_config_pb2 import ModelEnsembling

__all__ = ["MAX_STEPS", "ensemble_steps", "is_ensemble"]

#: More than this is a slip of the finger: every step is a model, with a queue of its own.
MAX_STEPS: Final = 64

_AT: Final = "ensemble_scheduling"

#: What an ensemble can't have, and why the steps' models should.
_FOREIGN: Final[Mapping[str, str]] = {
    "dynamic_batching": "which runs nothing itself: the model of each step batches, for all who call it",
    "instance_group": "which runs nothing itself: the models of its steps have the instances",
    "model_warmup": "which runs nothing itself: the models of its steps warm up, each by itself",
    "optimization": "which runs nothing itself: the models of its steps say how they run",
    "batch_input": "which pads nothing itself: the model of a step does",
    "batch_output": "which pads nothing itself: the model of a step does",
    "default_model_filename": "which has no file of its own",
    "backend": "which has no file of its own, and so nothing to run it with",
}

#: Each tensor that a step writes, with the step's index and the tensor's name in its model.
_Writers = dict[str, tuple[int, str]]


def is_ensemble(source: ConfigSource) -> bool:
    """Whether a configuration whose format has been checked is an ensemble's."""
    return configured_format(source) == ENSEMBLE


def ensemble_steps(source: ConfigSource, name: str) -> tuple[EnsembleStep, ...]:
    """Check the ensemble called ``name``; return its steps in an order in which they can run.

    () for a model that is no ensemble. Steps that don't depend on each other stay in the file's order.

    Raises:
        ModelConfigError: a setting that only a model can have, a step without model or tensors, or
            tensors that don't lead from the inputs to the outputs.
    """
    if not is_ensemble(source):
        return ()
    steps = source.config.ensemble_scheduling.step
    if not steps:
        what = "the platform 'ensemble' needs ensemble_scheduling with at least one step"
        raise source.error(f"{what}; add it, or remove the platform", *_step_or_platform(source))
    if len(steps) > MAX_STEPS:
        what = f"ensemble_scheduling has {len(steps)} steps, and {MAX_STEPS} is the most; use fewer"
        raise source.error(what, _AT, "step")
    for index, step in enumerate(steps):
        _check_step(source, step, index, name)
    _check_foreign(source)
    writers = _writers(source)
    _check_reads(source, writers)
    _check_ends(source, writers)
    return tuple(_built(steps[index]) for index in _in_order(source, writers))


def _step_or_platform(source: ConfigSource) -> FieldPath:
    return (_AT,) if source.sets(_AT) else ("platform",)


def _check_foreign(source: ConfigSource) -> None:
    whose = _models(source)
    for field, why in _FOREIGN.items():
        if source.sets(field):
            raise source.error(f"{field} is set for an ensemble, {why}; move it to {whose}", field)
    if source.config.response_cache.enable:
        what = (
            "response_cache is on for an ensemble, and its answers would outlive a change of a step's model"
        )
        raise source.error(f"{what}; enable it in {whose}", "response_cache")
    for name in sorted(source.config.parameters):
        if name in PARAMETERS:
            what = f"the parameter {name} is set for an ensemble, and only a model has it"
            raise source.error(f"{what}; move it to {whose}", "parameters", name)
    for index, tensor in enumerate(source.config.input):
        if tensor.allow_ragged_batch:
            what = f"input {quoted(tensor.name)} of an ensemble says allow_ragged_batch; only a model pads"
            raise source.error(f"{what}: move it to {whose}", "input", index, "allow_ragged_batch")


def _models(source: ConfigSource) -> str:
    """Name the steps' models, whose configuration should have what an ensemble's can't."""
    names = dict.fromkeys(quoted(step.model_name) for step in source.config.ensemble_scheduling.step)
    few = list(names)[:4]
    more = ", ..." if len(names) > len(few) else ""
    return f"the configuration of the step's model ({', '.join(few)}{more})"


def _check_step(source: ConfigSource, step: ModelEnsembling.Step, index: int, name: str) -> None:
    at = (_AT, "step", index)
    if not step.model_name:
        raise source.error(f"step {index + 1} has no model_name; give it one", *at)
    label = f"step {index + 1} ({quoted(step.model_name)})"
    if step.model_name == name:
        what = f"{label} is the ensemble itself, which would never end; name another model"
        raise source.error(what, *at, "model_name")
    version = step.model_version
    is_stated = source.sets(*at, "model_version")
    if version < -1 or (version == 0 and is_stated):
        what = f"{label} has model_version {version}; use -1 for the latest, or a version from 1 on"
        raise source.error(what, *at, "model_version")
    for field, names in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not names:
            example = 'key: "<name in the model>" value: "<name in the ensemble>"'
            raise source.error(f"{label} has no {field}; add {field} {{ {example} }}", *at)
        for own in sorted(names):
            if not own or not names[own]:
                what = f"{field} of {label} has an empty key or value; name the model's tensor and the"
                raise source.error(f"{what} ensemble's", *at, field, own)


def _writers(source: ConfigSource) -> _Writers:
    """Return who writes each tensor.

    Raises:
        ModelConfigError: a tensor is written twice, or is the caller's.
    """
    inputs = {tensor.name for tensor in source.config.input}
    writers: _Writers = {}
    for index, step in enumerate(source.config.ensemble_scheduling.step):
        for own in sorted(step.output_map):
            tensor, at = step.output_map[own], (_AT, "step", index, "output_map", own)
            what = f"step {index + 1} ({quoted(step.model_name)}) writes {quoted(tensor)}"
            if tensor in inputs:
                raise source.error(f"{what}, which is an input of the ensemble; choose another name", *at)
            if tensor in writers:
                what += f", which step {writers[tensor][0] + 1} writes too"
                raise source.error(f"{what}; choose another name for one of them", *at)
            writers[tensor] = (index, own)
    return writers


def _check_reads(source: ConfigSource, writers: _Writers) -> None:
    known = [*(tensor.name for tensor in source.config.input), *writers]
    for index, step in enumerate(source.config.ensemble_scheduling.step):
        for own in sorted(step.input_map):
            tensor = step.input_map[own]
            if tensor not in known:
                what = (
                    f"step {index + 1} ({quoted(step.model_name)}) reads {quoted(tensor)}, which is no input"
                )
                what += f" of the ensemble and which no step writes{suggestion(tensor, known)}"
                raise source.error(what, _AT, "step", index, "input_map", own)


def _check_ends(source: ConfigSource, writers: _Writers) -> None:
    """Check that the outputs are written, and that the inputs and whatever else is written are used."""
    for index, output in enumerate(source.config.output):
        if output.name not in writers:
            what = f"no step writes the output {quoted(output.name)}; add it to an output_map, or remove it"
            raise source.error(what + suggestion(output.name, writers), "output", index)
    read = {tensor for step in source.config.ensemble_scheduling.step for tensor in step.input_map.values()}
    for index, given in enumerate(source.config.input):
        if given.name not in read:
            what = f"no step reads the input {quoted(given.name)}; add it to an input_map, or remove it"
            raise source.error(what + suggestion(given.name, read), "input", index)
    used = read | {output.name for output in source.config.output}
    for tensor, (index, own) in writers.items():
        if tensor not in used:
            what = f"{quoted(tensor)} is written and neither read nor an output of the ensemble"
            what = f"{what}; remove it from output_map, which drops it{suggestion(tensor, used)}"
            raise source.error(what, _AT, "step", index, "output_map", own)


def _in_order(source: ConfigSource, writers: _Writers) -> list[int]:
    """Return the steps' indexes so that each reads only what is written before it.

    Raises:
        ModelConfigError: steps wait for each other.
    """
    steps = source.config.ensemble_scheduling.step
    needs = [{writers[name][0] for name in step.input_map.values() if name in writers} for step in steps]
    order: list[int] = []
    while len(order) < len(steps):
        ready = [index for index in range(len(steps)) if index not in order and needs[index] <= set(order)]
        if not ready:
            raise _cycle(source, needs, order)
        order.append(ready[0])
    return order


def _cycle(source: ConfigSource, needs: Sequence[set[int]], order: Sequence[int]) -> ModelConfigError:
    """Return the error about steps of which none can be the first."""
    at = next(index for index in range(len(needs)) if index not in order)
    path: list[int] = []
    while at not in path:
        path.append(at)
        at = min(needs[at] - set(order))
    circle = path[path.index(at) :]
    steps = source.config.ensemble_scheduling.step
    names = " needs ".join(f"step {index + 1} ({quoted(steps[index].model_name)})" for index in [*circle, at])
    what = "itself" if len(circle) == 1 else "each other"
    return source.error(
        f"steps wait for {what}: {names}; a step can read only what steps before it write",
        _AT, "step", circle[0], "input_map",
    )  # fmt: skip


def _built(step: ModelEnsembling.Step) -> EnsembleStep:
    # Sorted, as the message doesn't keep the file's order.
    return EnsembleStep(
        model=step.model_name,
        version=str(step.model_version) if step.model_version > 0 else "",
        inputs=tuple((own, step.input_map[own]) for own in sorted(step.input_map)),
        outputs=tuple((own, step.output_map[own]) for own in sorted(step.output_map)),
    )
