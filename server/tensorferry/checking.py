"""What is wrong with a repository, found without serving it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorferry.control.orders import Order, read_order, read_rollout
from tensorferry.errors import ConfigurationError
from tensorferry.execution.backends import opener
from tensorferry.execution.warmup import warm_up
from tensorferry.model import ModelSpec
from tensorferry.repository import manifest, model_directories
from tensorferry.rollout.state import EMPTY

__all__ = ["CheckedModel", "CheckedVersion", "check_repository"]


@dataclass(frozen=True, slots=True)
class CheckedVersion:
    """A version that could be read. ``fault`` is what is wrong with it; "" if it can be served."""

    spec: ModelSpec
    fault: str


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model. ``faults`` are all that was found, its versions' included; none if it can be served."""

    name: str
    versions: tuple[CheckedVersion, ...]
    faults: tuple[str, ...]


def check_repository(root: Path) -> Iterator[CheckedModel]:
    """Check each version that would be served: its manifest, a load, every batch size, its golden file.

    Raises:
        ConfigurationError: ``root`` isn't a model repository.
    """
    for directory in model_directories(root):
        yield _checked(directory)


def _checked(directory: Path) -> CheckedModel:
    faults: list[str] = []
    rollout = EMPTY
    try:
        rollout = read_rollout(directory)
    except ConfigurationError as error:
        faults.append(str(error))
    entry = read_order(Order(directory.name, directory, None, rollout))
    faults += [str(fault) for fault in entry.faults.values()]
    if entry.error is not None and not entry.faults:
        return CheckedModel(entry.name, (), (*faults, str(entry.error)))
    versions = tuple(CheckedVersion(spec, _fault_of(spec)) for spec in entry.versions)
    faults += [each.fault for each in versions if each.fault]
    return CheckedModel(entry.name, versions, tuple(faults))


def _fault_of(spec: ModelSpec) -> str:
    """Load a version on each kind of device that it asks for and warm it up, as serving would."""
    try:
        manifest.verify(spec.path if spec.steps else spec.path.parent)
        if spec.steps:
            return ""  # an ensemble has no file; its configuration has been checked
        for device in sorted(set(spec.devices)):
            model = opener(spec)(spec, device)
            try:
                model.attach(spec.intra_op_threads or 1)
                warm_up(model)  # and its golden file
            finally:
                model.close()
    except ConfigurationError as error:
        return str(error)
    return ""
