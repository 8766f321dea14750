"""A manifest's JSON, read strictly: every field there, of its type, and no other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Final

from tensorferry.errors import ModelConfigError
from tensorferry.repository.source import quoted, suggestion

__all__ = ["Fields", "parse_object"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_RECORD_FIELDS: Final = {"sha256", "size_bytes"}


def parse_object(text: str, path: Path) -> dict[str, object]:
    """Parse ``text``, the content of ``path``: a JSON object in which no name is given twice.

    Raises:
        ModelConfigError: it isn't one; names the line where that is known.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ModelConfigError(f"{quoted(name)} is given twice", path)
            found[name] = value
        return found

    def refuse(constant: str) -> object:
        raise ModelConfigError(f"holds {constant}, which JSON doesn't have", path)

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ModelConfigError(f"not JSON: {error.msg}", path, error.lineno) from None
    except (RecursionError, ValueError) as error:
        raise ModelConfigError(f"not JSON: {quoted(str(error))}", path) from None
    if not isinstance(found, dict):
        raise ModelConfigError("not a JSON object", path)
    return found


class Fields:
    """The fields of a manifest, each taken once. Every method raises ``ModelConfigError``."""

    def __init__(self, path: Path, fields: Mapping[str, object]) -> None:
        self._path = path
        self._left = dict(fields)
        self._known: list[str] = []

    def whole(self, name: str) -> int:
        """Return a whole number."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(name, "must be a whole number", value)
        return value

    def text(self, name: str) -> str:
        """Return a text."""
        value = self._take(name)
        if not isinstance(value, str):
            raise self._error(name, "must be a text", value)
        return value

    def time(self, name: str) -> datetime:
        """Return a time with its zone, from RFC 3339."""
        value = self.text(name)
        try:
            if _RFC_3339.fullmatch(value):
                return datetime.fromisoformat(value)
        except ValueError:
            pass
        raise self._error(name, "must be a time such as 2030-01-31T12:00:00Z", value)

    def numbers(self, name: str) -> dict[str, float]:
        """Return names with finite numbers."""
        found: dict[str, float] = {}
        for key, value in self._object(name).items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self._error(f"{name}.{key}", "must be a number", value)
            try:
                found[key] = float(value)
            except OverflowError:
                found[key] = math.inf
            if not math.isfinite(found[key]):  # JSON has no infinity, but 1e999 is one
                raise self._error(f"{name}.{key}", "must be a finite number", value)
        return found

    def texts(self, name: str) -> dict[str, str]:
        """Return names with texts."""
        found: dict[str, str] = {}
        for key, value in self._object(name).items():
            if not isinstance(value, str):
                raise self._error(f"{name}.{key}", "must be a text", value)
            found[key] = value
        return found

    def records(self, name: str) -> dict[str, tuple[str, int]]:
        """Return files: paths inside the directory with (SHA-256, size in bytes)."""
        return {path: self._record(name, path, value) for path, value in self._object(name).items()}

    def check_all_read(self) -> None:
        """Check that nothing is left that nobody asked for."""
        for name in self._left:
            what = f"the field {quoted(name)} isn't one of a manifest"
            raise ModelConfigError(what + suggestion(name, self._known), self._path)

    def _record(self, name: str, path: str, value: object) -> tuple[str, int]:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or str(parts) != path or path == ".":
            raise self._error(name, "must hold paths inside the directory", path)
        if not isinstance(value, dict) or set(value) != _RECORD_FIELDS:
            raise self._error(f"{name}.{path}", "must have sha256 and size_bytes alone", value)
        sha256, size_bytes = value["sha256"], value["size_bytes"]
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise self._error(f"{name}.{path}", "must have a sha256 of 64 hexadecimal digits", sha256)
        if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
            raise self._error(f"{name}.{path}", "must have a size_bytes of 0 or more", size_bytes)
        return sha256, size_bytes

    def _object(self, name: str) -> dict[str, object]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._error(name, "must be an object", value)
        return value

    def _take(self, name: str) -> object:
        self._known.append(name)
        if name not in self._left:
            raise ModelConfigError(f"{name} is missing; publish the version again", self._path)
        return self._left.pop(name)

    def _error(self, name: str, rule: str, value: object) -> ModelConfigError:
        return ModelConfigError(f"{name} {rule}, and is {quoted(str(value))}", self._path)
