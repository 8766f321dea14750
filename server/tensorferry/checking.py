"""What is wrong with a repository, found without serving it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorferry.errors import ConfigurationError
from tensorferry.execution.backends import opener
from tensorferry.execution.golden import check_golden
from tensorferry.execution.warmup import warm_up
from tensorferry.model import ModelSpec
from tensorferry.repository import scan

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
    """Check each model: read it, load it, run it at every batch size, compare it with its golden file.

    Raises:
        ConfigurationError: ``root`` isn't a model repository.
    """
    for entry in scan(root):
        if entry.error is not None and not entry.faults:
            yield CheckedModel(entry.name, (), (str(entry.error),))
            continue
        versions = tuple(CheckedVersion(spec, _fault_of(spec)) for spec in entry.versions)
        faults = [str(fault) for fault in entry.faults.values()]
        faults += [each.fault for each in versions if each.fault]
        yield CheckedModel(entry.name, versions, tuple(faults))


def _fault_of(spec: ModelSpec) -> str:
    """Load a version on each kind of device that it asks for and warm it up, as serving would."""
    if spec.steps:
        return ""  # an ensemble has no file; its configuration has been checked
    try:
        for device in sorted(set(spec.devices)):
            model = opener(spec)(spec, device)
            try:
                model.attach(spec.intra_op_threads or 1)
                warm_up(model)
                check_golden(model)
            finally:
                model.close()
    except ConfigurationError as error:
        return str(error)
    return ""
