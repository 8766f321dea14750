"""The models of an ensemble: what it needs of them, and whether they fit each other.

Rules for this file: it looks and says what is missing, and changes nothing. What it says holds for this
moment: a model may be swapped in the next, so that each request is checked again as it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from tensorferry.batching.pending import Intake, Pending
from tensorferry.errors import TensorferryError
from tensorferry.model import EnsembleStep, ModelSpec, TensorSpec

__all__ = ["MAX_DEPTH", "Member", "Resolve", "members_first", "missing"]

#: Ensembles within each other, the outermost included. Whoever needs more has made a circle.
MAX_DEPTH: Final = 4


class Member(Protocol):
    """What an ensemble knows of a live version: ``LiveModel`` is one."""

    @property
    def spec(self) -> ModelSpec:
        """The version's specification."""
        ...

    @property
    def intake(self) -> Intake | None:
        """Where requests go in; None while the version isn't ready."""
        ...

    def check_ready(self) -> Intake:
        """Return where requests go in.

        Raises:
            ModelNotReady: the version isn't ready; says why.
        """
        ...

    def cancel(self, request: Pending) -> None:
        """Give up a request that was submitted here."""
        ...


#: Finds the live version for a model's name, a version as a request writes it ("" for none), and the key
#: that chooses among those that the model's requests are divided among (None: the one that stands for
#: the model).
Resolve = Callable[[str, str, bytes | None], Member]

#: Datatype (None: any) and whole shape (-1: any size; None: any shape) of a tensor.
_Kind = tuple[str | None, tuple[int, ...] | None]


def members_first(specs: Iterable[ModelSpec]) -> list[ModelSpec]:
    """Return specifications so that models come before the ensembles that call them, else in order."""
    left = list(specs)
    ordered: list[ModelSpec] = []
    while left:
        names = {spec.name for spec in left}
        free = [spec for spec in left if not any(step.model in names for step in spec.steps)]
        # Ensembles in a circle: in any order, and ``missing`` says why they can't be ready.
        ordered += free or left
        left = [spec for spec in left if spec not in free] if free else []
    return ordered


def missing(spec: ModelSpec, resolve: Resolve) -> list[str]:
    """Say why the ensemble can't answer now: models that aren't ready or don't fit. Empty if it can."""
    reasons: list[str] = []
    kinds = {each.name: _kind(each, spec) for each in spec.inputs}
    for number, step in enumerate(spec.steps, 1):
        label = f"step {number} (model {step.model!r})"
        try:
            live = resolve(step.model, step.version, None)
            live.check_ready()
        except TensorferryError as error:
            reasons.append(f"{label}: {error}")
            continue
        reasons += [f"{label} {what}" for what in _misfits(spec, step, live.spec, kinds)]
        outputs = {each.name: each for each in live.spec.outputs}
        kinds |= {name: _kind(outputs[own], live.spec) for own, name in step.outputs if own in outputs}
        if live.spec.steps and (what := _circle(spec, live.spec, resolve)):
            reasons.append(f"{label} {what}")
    for output in spec.outputs:
        if output.name in kinds and not _agree(_kind(output, spec), kinds[output.name]):
            shown, made = _shown(_kind(output, spec)), _shown(kinds[output.name])
            reasons.append(f"the output {output.name!r} is {shown} in the configuration, and {made} comes")
    return reasons


def _misfits(spec: ModelSpec, step: EnsembleStep, member: ModelSpec, kinds: dict[str, _Kind]) -> list[str]:
    """Say in what a step's model differs from what its step says of it."""
    takes = {each.name: each for each in member.inputs}
    gives = [each.name for each in member.outputs]
    reads = dict(step.inputs)
    misfits = [f"has no input {name!r}; it takes {list(takes)}" for name in reads if name not in takes]
    misfits += [f"takes an input {name!r}, which input_map leaves out" for name in takes if name not in reads]
    misfits += [f"has no output {own!r}; it gives {gives}" for own, _ in step.outputs if own not in gives]
    if spec.max_batch_size and not member.max_batch_size:
        misfits.append("has no batch dimension, and the ensemble's max_batch_size is above 0")
    elif spec.max_batch_size > member.max_batch_size > 0 and not member.batching.split_oversized:
        what = f"takes {member.max_batch_size} rows, fewer than the ensemble's max_batch_size"
        misfits.append(f"{what} {spec.max_batch_size}; lower that, or raise the model's")
    for own, name in step.inputs:
        if own in takes and name in kinds and not _agree(_kind(takes[own], member), kinds[name]):
            wanted, comes = _shown(_kind(takes[own], member)), _shown(kinds[name])
            misfits.append(f"takes {wanted} as {own!r}, and {name!r} is {comes}")
    return misfits


def _circle(spec: ModelSpec, member: ModelSpec, resolve: Resolve) -> str:
    """Say how an ensemble among the members leads back, or that it is too deep; "" if neither."""
    level = [member]
    for _ in range(1, MAX_DEPTH):
        steps = [step for each in level for step in each.steps]
        if any(step.model == spec.name for step in steps):
            return f"is an ensemble that calls {spec.name!r} in turn, which would never end"
        # Each once, however many steps call it.
        called = dict.fromkeys((step.model, step.version) for step in steps)
        level = [found for each in called if (found := _ensemble(*each, resolve)) is not None]
        if not level:
            return ""
    return f"is an ensemble of ensembles more than {MAX_DEPTH} deep; use fewer levels"


def _ensemble(name: str, version: str, resolve: Resolve) -> ModelSpec | None:
    try:
        spec = resolve(name, version, None).spec
    except TensorferryError:
        return None  # the ensemble that it is a step of says so itself
    return spec if spec.steps else None


def _kind(tensor: TensorSpec, of: ModelSpec) -> _Kind:
    dims = tensor.dims
    if dims is not None and of.has_batch_dimension:
        dims = (-1, *dims)
    return (None if tensor.datatype is None else tensor.datatype.name), dims


def _agree(one: _Kind, other: _Kind) -> bool:
    """Whether some tensor is of both kinds."""
    if None not in (one[0], other[0]) and one[0] != other[0]:
        return False
    if one[1] is None or other[1] is None:
        return True
    return len(one[1]) == len(other[1]) and all(
        mine == theirs or -1 in (mine, theirs) for mine, theirs in zip(one[1], other[1], strict=True)
    )


def _shown(kind: _Kind) -> str:
    datatype, dims = kind
    return f"{datatype or 'any datatype'} {list(dims) if dims is not None else 'of any shape'}"
