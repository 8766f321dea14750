"""``<version>/manifest.json``: what a version is made of, and where it comes from.

Rules for this file: a version without a manifest is as good as any, and whatever stands in one
ends as a ``Manifest`` or as an error that names the file. Nothing here keeps state, so that any
thread may call it; hashing releases the GIL.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tensorferry.errors import ModelConfigError, ModelLoadError
from tensorferry.repository.manifest_fields import Fields, parse_object
from tensorferry.repository.source import quoted
from tensorferry.repository.versions import MAX_FILES, files_in

__all__ = [
    "FILENAME",
    "About",
    "FileRecord",
    "Manifest",
    "digest_of",
    "read",
    "records_of",
    "verify",
    "write",
]

FILENAME: Final = "manifest.json"

_SCHEMA: Final = 1
# Room for MAX_FILES records of some 200 bytes, and for what people tag.
_MAX_MANIFEST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class About:
    """Where a version comes from. "" and empty mappings where nobody said.

    ``created`` has a time zone. ``git_commit`` and ``training_data`` are as they were given; a file
    that was hashed is ``sha256:<64 hexadecimal digits>``. ``metrics`` are finite numbers.
    """

    model: str
    created: datetime
    author: str = ""
    git_commit: str = ""
    training_data: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file's SHA-256 in hexadecimal, and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version's files by their path inside its directory, sorted, and what is known about it."""

    about: About
    files: Mapping[str, FileRecord]

    @property
    def digest(self) -> str:
        """One SHA-256 over names, sizes and contents: equal for equal versions, wherever they lie."""
        return _digest(self.files)


def read(directory: Path) -> Manifest | None:
    """Read the manifest of a version directory; None if it has none.

    Raises:
        ModelConfigError: it can't be read, or isn't what ``write`` writes.
    """
    path = directory / FILENAME
    if not os.path.lexists(path):
        return None
    fields = Fields(path, parse_object(_read_text(path), path))
    schema = fields.whole("schema")
    if schema != _SCHEMA:
        what = f"schema is {schema}, and this version of Tensorferry knows {_SCHEMA}"
        raise ModelConfigError(f"{what}; publish the model again, or use the newer Tensorferry", path)
    about = About(
        model=fields.text("model"),
        created=fields.time("created"),
        author=fields.text("author"),
        git_commit=fields.text("git_commit"),
        training_data=fields.text("training_data"),
        metrics=fields.numbers("metrics"),
        tags=fields.texts("tags"),
    )
    files = {name: FileRecord(*record) for name, record in sorted(fields.records("files").items())}
    fields.check_all_read()
    return Manifest(about, files)


def write(directory: Path, about: About) -> Manifest:
    """Hash the files of a version directory and write its manifest beside them, through to the disk.

    Raises:
        ModelConfigError: something in the directory is no plain file, or there are too many.
        OSError: a file can't be read, or the manifest can't be written.
    """
    manifest = Manifest(about, records_of(directory))
    content = {
        "schema": _SCHEMA,
        **asdict(about),
        "created": about.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": {name: asdict(record) for name, record in manifest.files.items()},
    }
    with (directory / FILENAME).open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return manifest


def records_of(directory: Path) -> dict[str, FileRecord]:
    """Hash every file of a version directory but the manifest and hidden ones; sorted by path.

    Raises:
        ModelConfigError: something in the directory is no plain file, or there are too many.
        OSError: a file can't be read.
    """
    return {
        name: FileRecord(_sha256(directory / name), size_bytes)
        for name, size_bytes in sorted(_sizes(directory).items())
    }


def verify(directory: Path) -> None:
    """Check a version directory against its manifest; without one there is nothing to check.

    A file that the manifest doesn't name is a fault too: a Python model would import it.

    Raises:
        ModelConfigError: the manifest isn't one.
        ModelLoadError: names the first file that is missing, extra, or not what was published.
    """
    manifest = read(directory)
    if manifest is None:
        return
    try:
        _verify_files(directory, manifest.files)
    except OSError as error:
        raise ModelLoadError(f"{error.filename or directory}: can't be read: {error.strerror}") from None


def digest_of(directory: Path) -> str:
    """Return ``Manifest.digest`` of what lies in a version directory now: reads every file.

    Raises:
        ModelLoadError: a file can't be read.
        ModelConfigError: something in the directory is no plain file, or there are too many.
    """
    try:
        return _digest(records_of(directory))
    except OSError as error:
        raise ModelLoadError(f"{error.filename or directory}: can't be read: {error.strerror}") from None


def _verify_files(directory: Path, expected: Mapping[str, FileRecord]) -> None:
    sizes = _sizes(directory)
    mend = "publish the version again, or remove its manifest"
    # Names and sizes first: they cost nothing, and hashing gigabytes may take seconds.
    for name in sorted({*sizes, *expected}):
        path = directory / name
        if name not in sizes:
            raise ModelLoadError(f"{path}: named in {FILENAME}, and missing; {mend}")
        if name not in expected:
            raise ModelLoadError(f"{path}: not named in {FILENAME}; remove the file, or {mend}")
        if sizes[name] != expected[name].size_bytes:
            what = f"has {sizes[name]} bytes, and {FILENAME} says {expected[name].size_bytes}"
            raise ModelLoadError(f"{path}: {what}; {mend}")
    for name in sorted(expected):
        found = _sha256(directory / name)
        if found != expected[name].sha256:
            what = f"sha256 is {found[:12]}..., and {FILENAME} says {expected[name].sha256[:12]}..."
            raise ModelLoadError(f"{directory / name}: {what}; {mend}")


def _sizes(directory: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, status in files_in(directory):
        if name == FILENAME:
            continue
        if not stat.S_ISREG(status.st_mode):
            what = "a linked directory" if stat.S_ISDIR(status.st_mode) else "not a plain file"
            raise ModelConfigError(f"{what}; a version with a manifest has files alone", directory / name)
        if not name.isprintable():
            raise ModelConfigError(f"the file {quoted(name)} has characters that can't be printed", directory)
        sizes[name] = status.st_size
        if len(sizes) > MAX_FILES:
            raise ModelConfigError(f"holds more than {MAX_FILES} files; keep the model's alone", directory)
    return sizes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(files: Mapping[str, FileRecord]) -> str:
    digest = hashlib.sha256()
    for name, record in sorted(files.items()):
        digest.update(f"{name}\0{record.size_bytes}\0{record.sha256}\n".encode())
    return digest.hexdigest()


def _read_text(path: Path) -> str:
    try:
        # Asked first, because opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelConfigError("not a plain file; a manifest must be one", path)
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ModelConfigError(f"can't be read: {error.strerror}", path) from None
    if len(content) > _MAX_MANIFEST_BYTES:
        raise ModelConfigError(f"larger than {_MAX_MANIFEST_BYTES} bytes, which no manifest is", path)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ModelConfigError("not UTF-8 text; publish the version again", path) from None
