"""A model's configuration as it was written: the message, and the line of every field that is set.

Rules for this file: no parsing and no judgement. Both file formats produce a ``ConfigSource``,
and the checks read it, so that they know neither format.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from tensorferry.errors import ModelConfigError
from tensorferry.wire.model_config_pb2 import ModelConfig

__all__ = ["ConfigSource", "FieldPath", "quoted", "suggestion", "unsupported_field"]

#: From the root to a field: names, indexes into lists, keys of maps; ``("input", 0, "dims")``.
FieldPath = tuple[str | int, ...]

# What a message quotes from a file. A file may hold one word of a million letters.
_MAX_QUOTED_CHARS = 80


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """A configuration and where it comes from.

    ``path`` is the file, or the model's directory where there is none (``is_file`` is False then).
    ``lines`` counts from 1 and holds each field that the file sets, also to its default.
    """

    path: Path
    config: ModelConfig
    lines: Mapping[FieldPath, int]
    is_file: bool = True

    def sets(self, *field: str | int) -> bool:
        """Whether the file sets the field. The message can't tell: proto3 drops an explicit 0."""
        return field in self.lines

    def error(self, message: str, *field: str | int) -> ModelConfigError:
        """Return the error about ``field``, at its line or at that of the nearest field around it."""
        while field and field not in self.lines:
            field = field[:-1]
        return ModelConfigError(message, self.path, self.lines.get(field))


def quoted(text: str) -> str:
    """Return ``text`` in quotes and printable, cut if it is long."""
    return repr(text if len(text) <= _MAX_QUOTED_CHARS else text[:_MAX_QUOTED_CHARS] + "...")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or ``""``."""
    names = list(known)
    folded = {known_name.lower(): known_name for known_name in names}
    close = difflib.get_close_matches(name[:_MAX_QUOTED_CHARS].lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def unsupported_field(name: str, descriptor: Descriptor) -> str:
    """Return the message for a field that isn't declared: a typo, or one that only Triton has."""
    close = suggestion(name, descriptor.fields_by_name)
    return f"Tensorferry doesn't support the field {quoted(name)} in {descriptor.name}; remove it{close}"
