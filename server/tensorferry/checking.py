"""``tensorferry check``: what is wrong with a repository, found without serving it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorferry.errors import ConfigurationError
from tensorferry.execution.backends import opener
from tensorferry.execution.warmup import warm_up
from tensorferry.model import ModelSpec
from tensorferry.repository import scan

__all__ = ["check_repository"]


def check_repository(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each model's name and what is wrong with it; nothing, if it can be served.

    Raises:
        ConfigurationError: ``root`` isn't a model repository.
    """
    for entry in scan(root):
        if entry.error is not None:
            yield entry.name, [str(entry.error)]
        else:
            yield entry.name, [fault for spec in entry.versions if (fault := _fault_of(spec))]


def _fault_of(spec: ModelSpec) -> str:
    """Load a version on each kind of device that it asks for and warm it up, as serving would."""
    try:
        for device in sorted(set(spec.devices)):
            model = opener(spec)(spec, device)
            model.attach(spec.intra_op_threads or 1)
            warm_up(model)
            model.close()
    except ConfigurationError as error:
        return str(error)
    return ""
