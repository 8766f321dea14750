"""``config.pbtxt``: protobuf's text format, read by protobuf's own parser.

That parser says where it failed but not where a field stands once it has succeeded, so
the same text is then walked a second time for the lines. The walk judges nothing (the
text is known to be well-formed) but one thing that the parser lets pass: a field that
is given twice, where the first value is a default or the field is a map's entry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tensorferry.errors import ModelConfigError
from tensorferry.repository.source import ConfigSource, FieldPath, quoted, suggestion, unsupported_field
from tensorferry.wire.model_config_pb2 import DESCRIPTOR, ModelConfig

__all__ = ["parse_pbtxt"]

_UNKNOWN_FIELD: Final = re.compile(r'Message type "inference\.([\w.]+)" has no field named "([^"]*)"')
_UNKNOWN_ENUM_VALUE: Final = re.compile(r'Enum type "inference\.([\w.]+)" has no value named (\S+)\.$')
_MAX_MESSAGE_CHARS: Final = 300

_QUOTED: Final = re.compile(r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""")
_TOKEN: Final = re.compile(rf"(?P<blank>\s+|#[^\n]*)|{_QUOTED.pattern}|[\w.+-]+|.")
_OCTAL: Final = re.compile(r"-?0\d+")
_QUOTES: Final = ('"', "'")
_CLOSING: Final = {"{": "}", "<": ">"}


def parse_pbtxt(text: str, path: Path) -> ConfigSource:
    """Parse ``text``, the content of ``path``.

    Raises:
        ModelConfigError: a syntax error, an unknown or repeated field, or a value of the wrong type.
    """
    config = ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise _explain(error, text, path) from None
    except (ValueError, RecursionError) as error:
        # Raised by the message, which the parser lets through: an enum's number out of range, say.
        raise ModelConfigError(f"not in protobuf's text format: {quoted(str(error))}", path) from None
    lines: dict[FieldPath, int] = {}
    for place in _LineWalk(text).walk():
        if place.path in lines:
            what = f"{quoted(str(place.path[-1]))} is given twice; keep one"
            raise ModelConfigError(what, path, place.line)
        lines[place.path] = place.line
    return ConfigSource(path, config, lines)


def _explain(error: text_format.ParseError, text: str, path: Path) -> ModelConfigError:
    line, column = error.GetLine(), error.GetColumn()
    message = str(error).removeprefix(f"{line}:{column} : ")
    if unknown := _UNKNOWN_FIELD.match(message):
        return ModelConfigError(unsupported_field(unknown[2], _descriptor(unknown[1])), path, line)
    # The parser quotes the whole line, which the reader finds by its number.
    current = text.split("\n")[line - 1] if line else ""
    message = message.removeprefix(f"'{current}': ").removeprefix("'': ")
    if value := _UNKNOWN_ENUM_VALUE.match(message):
        known = _enum_names(value[1])
        hint = suggestion(value[2], known) or f"; one of {', '.join(known)}"
        return ModelConfigError(f"no such value as {quoted(value[2])}{hint}", path, line)
    message = "".join(char if char.isprintable() else "?" for char in message[:_MAX_MESSAGE_CHARS])
    return ModelConfigError(f"not in protobuf's text format, at column {column}: {message}", path, line)


def _descriptor(name: str) -> Descriptor:
    outer, *inner = name.split(".")
    descriptor: Descriptor = DESCRIPTOR.message_types_by_name[outer]
    for part in inner:
        descriptor = descriptor.nested_types_by_name[part]
    return descriptor


def _enum_names(name: str) -> list[str]:
    *outer, last = name.split(".")
    enums = _descriptor(".".join(outer)).enum_types_by_name if outer else DESCRIPTOR.enum_types_by_name
    return list(enums[last].values_by_name)


def _tokens(text: str) -> list[tuple[str, int]]:
    """Return the tokens with their lines, without blanks and comments, closed by an empty one."""
    tokens: list[tuple[str, int]] = []
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "blank":
            tokens.append((match[0], line))
        line += match[0].count("\n")
    tokens.append(("", line))
    return tokens


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a field's value begins; ``text`` is a scalar as it is written, "" for a message."""

    path: FieldPath
    line: int
    text: str = ""

    def under(self, *outer: str | int) -> _Place:
        return _Place((*outer, *self.path), self.line, self.text)


class _LineWalk:
    """Finds every field in a text that the parser has accepted, in the order of the text."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._position = 0

    def walk(self) -> list[_Place]:
        return self._message(_descriptor("ModelConfig"), closing="")

    def _message(self, descriptor: Descriptor, closing: str) -> list[_Place]:
        places: list[_Place] = []
        counts: Counter[str] = Counter()
        while self._peek() != closing:
            name, line = self._take()
            field = descriptor.fields_by_name[name]
            self._skip(":")
            if field.is_repeated and name not in counts:
                counts[name] = 0
                places.append(_Place((name,), line))
            for value in self._values(field):
                places.extend(_in_field(field, counts[name], value))
                counts[name] += 1
            _ = self._skip(",") or self._skip(";")
        if closing:
            self._take()
        return places

    def _values(self, field: FieldDescriptor) -> Iterator[list[_Place]]:
        if not (field.is_repeated and self._skip("[")):
            yield self._value(field)
            return
        while not self._skip("]"):
            yield self._value(field)
            self._skip(",")

    def _value(self, field: FieldDescriptor) -> list[_Place]:
        """Return the places in one value, itself first under the empty path."""
        token, line = self._take()
        if field.message_type is not None:
            return [_Place((), line), *self._message(field.message_type, _CLOSING[token])]
        if token.startswith(_QUOTES):
            while self._peek().startswith(_QUOTES):  # neighbours are one string, as in C
                token += self._take()[0]
        return [_Place((), line, token)]

    def _peek(self) -> str:
        return self._tokens[self._position][0]

    def _take(self) -> tuple[str, int]:
        token = self._tokens[self._position]
        self._position += 1
        return token

    def _skip(self, mark: str) -> bool:
        if self._peek() != mark:
            return False
        self._position += 1
        return True


def _in_field(field: FieldDescriptor, index: int, value: list[_Place]) -> list[_Place]:
    """Return the places of one value under the path of its field: a list's index, or a map's key."""
    if not field.is_repeated:
        return [place.under(field.name) for place in value]
    if field.message_type is None or not field.message_type.GetOptions().map_entry:
        return [place.under(field.name, index) for place in value]
    # An entry is written as a message with a key and a value; its path is the key alone.
    key = _key(field.message_type.fields_by_name["key"], value)
    inner = [_Place(place.path[1:], place.line) for place in value if place.path[:1] == ("value",)]
    return [place.under(field.name, key) for place in (value[0], *inner[1:])]


def _key(field: FieldDescriptor, entry: list[_Place]) -> str | int:
    """Return the key of a map's entry: its text, or its number; one that is left out is "" or 0."""
    text = next((place.text for place in entry if place.path == ("key",)), "")
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _unquoted(text)
    # The parser takes C's notations: 0x10, and 010 for 8.
    return int(text, 8 if _OCTAL.fullmatch(text) else 0) if text else 0


def _unquoted(text: str) -> str:
    return b"".join(text_encoding.CUnescape(part[1:-1]) for part in _QUOTED.findall(text)).decode()
