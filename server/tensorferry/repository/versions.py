"""One version directory: the model's file, its format, its golden file, and what its files look like.

Rules for this file: a version that can't be served is its own fault, and no other version's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tensorferry.errors import ModelConfigError
from tensorferry.model import ModelSpec
from tensorferry.repository.formats import ENSEMBLE, FORMATS, Format, format_in
from tensorferry.wire.model_config_pb2 import ModelConfig

__all__ = ["GOLDEN_NAMES", "MAX_FILES", "content_of", "files_in", "version_spec"]

#: A version's own test: inputs with the outputs that it must give.
GOLDEN_NAMES: Final = ("golden.npz", "golden.json")

#: A Python model may bring a package with it; a version directory with more files is a mistake.
MAX_FILES: Final = 10_000


def version_spec(
    spec: ModelSpec, directory: Path, version: int, config: ModelConfig, fixed: Format | None
) -> ModelSpec:
    """Return the specification of one version of the model in ``directory``.

    ``fixed`` is the format that the configuration states; without one, the version's file says it.

    Raises:
        ModelConfigError: the version has no model file, or two golden files.
    """
    where = directory / str(version)
    if not os.path.isdir(where):
        raise ModelConfigError(f"version {version} of the model isn't there; add its directory", directory)
    own = fixed or format_in(where, _possible(config))
    path = _model_file(where, version, own, config) if own.filename else where
    golden = _golden(where)
    if golden is not None and own is ENSEMBLE:
        raise ModelConfigError(
            "an ensemble's golden file isn't checked; give one to the models of its steps", golden
        )
    return replace(
        spec,
        version=version,
        path=path,
        platform=own.platform,
        backend=own.backend,
        golden=golden,
        content=content_of(where),
    )


def content_of(where: Path) -> str:
    """Say what the files in a directory look like from outside: changes when one is replaced.

    Names, sizes, times of change and inodes; not the bytes, which would have to be read.

    Raises:
        ModelConfigError: the directory can't be read, or holds more files than a model has.
    """
    digest = hashlib.sha256()
    try:
        for count, (name, status) in enumerate(files_in(where)):
            if count >= MAX_FILES:
                raise ModelConfigError(f"holds more than {MAX_FILES} files; keep the model's alone", where)
            digest.update(
                f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode(
                    errors="surrogateescape"
                )
            )
    except OSError as error:
        raise ModelConfigError(f"can't be read: {error.strerror}", where) from None
    return digest.hexdigest()[:16]


def files_in(where: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the relative path and status of every file of a version, but hidden ones and ``__pycache__``.

    Links to files are followed; a link to a directory is yielded as what it is, and not entered.

    Raises:
        OSError: the directory, or a file in it, can't be read.
    """
    for root, directories, names in os.walk(where, onerror=_raise):
        # What running a Python model leaves behind is not the model.
        directories[:] = sorted(each for each in directories if each != "__pycache__" and each[0] != ".")
        links = [each for each in directories if os.path.islink(os.path.join(root, each))]
        for name in sorted([*names, *links]):
            if name.startswith("."):
                continue
            path = os.path.join(root, name)
            yield os.path.relpath(path, where), os.stat(path)


def _raise(error: OSError) -> None:
    raise error


def _possible(config: ModelConfig) -> tuple[Format, ...]:
    if not config.backend:
        return FORMATS
    return tuple(each for each in FORMATS if each.backend == config.backend)


def _model_file(where: Path, version: int, own: Format, config: ModelConfig) -> Path:
    path = where / (config.default_model_filename or own.filename)
    if os.path.isdir(path):
        raise ModelConfigError("is a directory, and must be the model's file", path)
    if not os.path.isfile(path):
        what = f"version {version} of the model has no such file; put the model's file there"
        raise ModelConfigError(what, path)
    return path


def _golden(where: Path) -> Path | None:
    found = [where / name for name in GOLDEN_NAMES if os.path.lexists(where / name)]
    if len(found) > 1:
        raise ModelConfigError(f"{' and '.join(GOLDEN_NAMES)} are both there; keep one", where)
    return found[0] if found else None
