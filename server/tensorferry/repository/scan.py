"""The directory tree: which models there are, which versions each has, and which of them are served.

Rules for this file: a model that can't be served is an entry with its reason, never an
exception, so that it takes no other model with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tensorferry.errors import ConfigurationError, ModelConfigError
from tensorferry.model import ModelSpec
from tensorferry.repository.config_file import read_config
from tensorferry.repository.source import ConfigSource
from tensorferry.repository.spec import build_spec, complete_config, without_config
from tensorferry.wire.model_config_pb2 import ModelConfig

__all__ = ["RepositoryModel", "read_model", "scan"]

# 18 digits fit the configuration's int64.
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """A model directory, as far as it could be understood.

    ``config`` is what the ModelConfig call serves: the file's content with defaults filled in;
    with an error, whatever had been read by then. ``versions`` are those that the version policy
    serves, ascending, and empty where ``error`` says why there are none. ``available`` are all
    version numbers on disk, ascending.
    """

    name: str
    config: ModelConfig
    versions: tuple[ModelSpec, ...]
    error: ModelConfigError | None
    available: tuple[int, ...] = ()


def scan(root: Path) -> list[RepositoryModel]:
    """Read every model in ``root``, sorted by name. Hidden directories and plain files are passed over.

    Raises:
        ConfigurationError: ``root`` is missing, no directory, unreadable, or holds no model directory.
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
    if not directories:
        raise ConfigurationError(f"{root}: holds no model; add <model>/<version>/model.pt")
    return sorted((read_model(directory) for directory in directories), key=lambda model: model.name)


def read_model(directory: Path) -> RepositoryModel:
    """Read one model directory. Whatever is wrong with its content ends in the entry's ``error``."""
    name = _printable(directory.name)
    config = ModelConfig(name=name)
    available: tuple[int, ...] = ()
    try:
        _check_name(directory)
        available = _available_versions(directory)
        source = read_config(directory) or without_config(directory)
        config = source.config
        config = complete_config(source, name)
        spec = build_spec(source, config)
        versions = tuple(
            replace(spec, version=version, path=_model_file(directory, version, config))
            for version in _served_versions(source, config, available)
        )
    except ModelConfigError as error:
        return RepositoryModel(name, config, (), error, available)
    return RepositoryModel(name, config, versions, None, available)


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


def _model_file(directory: Path, version: int, config: ModelConfig) -> Path:
    path = directory / str(version) / config.default_model_filename
    if os.path.isdir(path):
        raise ModelConfigError("is a directory, and must be the model's file", path)
    if not os.path.isfile(path):
        what = f"version {version} of the model has no such file; put the TorchScript file there"
        raise ModelConfigError(what, path)
    return path
