"""The directory tree: which models there are, which versions each has, and which of them are served.

Rules for this file: a model that can't be served is an entry with its reason, never an
exception, so that it takes no other model with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tensorferry.errors import ConfigurationError, ModelConfigError
from tensorferry.model import ModelSpec
from tensorferry.repository.config_file import read_config
from tensorferry.repository.formats import configured_format
from tensorferry.repository.source import ConfigSource
from tensorferry.repository.spec import build_spec, complete_config, without_config
from tensorferry.repository.versions import version_spec
from tensorferry.wire.model_config_pb2 import ModelConfig

__all__ = ["Pinned", "RepositoryModel", "model_directories", "read_model", "scan"]

# 18 digits fit the configuration's int64.
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """A model directory, as far as it could be understood.

    ``config`` is what the ModelConfig call serves: the file's content with defaults filled in;
    with an error, whatever had been read by then. ``versions`` are those that the version policy
    serves, ascending, and empty where ``error`` says why there are none; ``faults`` has those that
    it would serve and that are wrong in themselves. ``available`` are all version numbers on disk,
    ascending. ``directory`` is the model's.
    """

    name: str
    config: ModelConfig
    versions: tuple[ModelSpec, ...]
    error: ModelConfigError | None
    available: tuple[int, ...] = ()
    faults: Mapping[int, ModelConfigError] = field(default_factory=dict)
    directory: Path = Path()


@dataclass(frozen=True, slots=True)
class Pinned:
    """Versions that are served whatever the version policy says; nothing else if ``is_exclusive``.

    A policy of ``all`` or ``specific`` versions is the owner's word and holds beside an exclusive pin;
    ``latest``, which would take a version live that nobody has rolled out, doesn't. ``accepted`` stands
    for what the policy says, where that has been looked at before: what came since isn't served.
    """

    versions: frozenset[int] = frozenset()
    is_exclusive: bool = False
    accepted: frozenset[int] | None = None


_NOTHING_PINNED: Final = Pinned()


def scan(root: Path, may_be_empty: bool = False) -> list[RepositoryModel]:
    """Read every model in ``root``, sorted by name. Hidden directories and plain files are passed over.

    Raises:
        ConfigurationError: ``root`` is missing, no directory, unreadable, or holds no model directory.
    """
    return [read_model(directory) for directory in model_directories(root, may_be_empty)]


def model_directories(root: Path, may_be_empty: bool = False) -> list[Path]:
    """Return every model's directory in ``root``, sorted by the model's name.

    Raises:
        ConfigurationError: as ``scan``.
    """
    if not os.path.lexists(root):
        raise ConfigurationError(f"{root}: no such directory; create it, or correct the path")
    if not os.path.isdir(root):
        raise ConfigurationError(f"{root}: not a directory; give one with a directory for each model")
    try:
        entries = [root / name for name in os.listdir(root) if not name.startswith(".")]
    except OSError as error:
        raise ConfigurationError(f"{root}: can't be read: {error.strerror}") from None
    # A link to nothing is kept: somebody meant it to be a model.
    directories = [entry for entry in entries if os.path.isdir(entry) or not os.path.exists(entry)]
    if not directories and not may_be_empty:
        raise ConfigurationError(f"{root}: holds no model; add <model>/<version>/model.pt")
    return sorted(directories, key=lambda directory: _printable(directory.name))


def read_model(
    directory: Path, pinned: Pinned = _NOTHING_PINNED, override: ConfigSource | None = None
) -> RepositoryModel:
    """Read one model directory. Whatever is wrong with its content ends in ``error`` or ``faults``.

    ``override`` stands in for the directory's own configuration.
    """
    name = _printable(directory.name)
    config = ModelConfig(name=name)
    available: tuple[int, ...] = ()
    try:
        _check_name(directory)
        available = _available_versions(directory)
        source = override or read_config(directory) or without_config(directory)
        config = source.config
        config = complete_config(source, name, directory / str(available[-1]) if available else directory)
        spec = build_spec(source, config)
        wanted = _wanted_versions(source, config, available, pinned)
        versions, faults = _read_versions(source, spec, directory, wanted)
    except ModelConfigError as fault:
        return RepositoryModel(name, config, (), fault, available, directory=directory)
    error = None if versions else next(iter(faults.values()))
    return RepositoryModel(name, config, versions, error, available, faults, directory)


def _read_versions(
    source: ConfigSource, spec: ModelSpec, directory: Path, wanted: Sequence[int]
) -> tuple[tuple[ModelSpec, ...], dict[int, ModelConfigError]]:
    fixed = configured_format(source)
    versions: list[ModelSpec] = []
    faults: dict[int, ModelConfigError] = {}
    for version in wanted:
        try:
            versions.append(version_spec(spec, directory, version, source.config, fixed))
        except ModelConfigError as error:
            faults[version] = error
    return tuple(versions), faults


def _wanted_versions(
    source: ConfigSource, config: ModelConfig, available: Sequence[int], pinned: Pinned
) -> Sequence[int]:
    is_latest = config.version_policy.WhichOneof("policy_choice") == "latest"
    if pinned.is_exclusive and is_latest:
        return sorted(pinned.versions)
    if pinned.accepted is not None:
        return sorted(pinned.accepted | pinned.versions)
    return sorted({*_served_versions(source, config, available), *pinned.versions})


def _printable(name: str) -> str:
    """Return a name that any terminal and any protobuf string takes; the same name if it is printable."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _check_name(directory: Path) -> None:
    if not directory.name:
        raise ModelConfigError("a model's directory needs a name", directory)
    if not directory.name.isprintable():
        what = f"the directory {_printable(directory.name)} has characters in its name that can't be printed"
        raise ModelConfigError(f"{what}; rename it", directory.parent)


def _available_versions(directory: Path) -> tuple[int, ...]:
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise ModelConfigError(f"the model's directory can't be read: {error.strerror}", directory) from None
    return tuple(
        sorted(int(name) for name in names if _VERSION.fullmatch(name) and os.path.isdir(directory / name))
    )


def _served_versions(source: ConfigSource, config: ModelConfig, available: Sequence[int]) -> Sequence[int]:
    if not available:
        what = f"has no version directory; put the model's file into 1/{config.default_model_filename}"
        raise ModelConfigError(what, source.path.parent if source.is_file else source.path)
    policy = config.version_policy
    if policy.WhichOneof("policy_choice") == "all":
        return available
    if policy.WhichOneof("policy_choice") == "specific":
        return _specific_versions(source, policy.specific.versions, available)
    at = ("version_policy", "latest", "num_versions")
    if source.sets(*at) and not policy.latest.num_versions:
        raise source.error("num_versions is 0, which would serve nothing; use 1 or more", *at)
    return available[-max(1, policy.latest.num_versions) :]


def _specific_versions(
    source: ConfigSource, wanted: Sequence[int], available: Sequence[int]
) -> Sequence[int]:
    at = ("version_policy", "specific", "versions")
    if not wanted:
        raise source.error("specific names no version; list them in versions", *at)
    seen: set[int] = set()
    for index, version in enumerate(wanted):
        if version not in available:
            what = f"version {version} isn't there; there are {', '.join(map(str, available))}"
            raise source.error(f"{what}: add its directory, or correct the list", *at, index)
        if version in seen:
            raise source.error(f"version {version} is listed twice; keep one", *at, index)
        seen.add(version)
    return sorted(wanted)
