"""``config.yaml``: the fields of ``config.pbtxt`` in YAML.

The document is composed to nodes, which know their lines, and walked against the
message's own description, so that a field added to the proto file is known here too.
Numbers and booleans are read strictly (decimal digits; true or false): YAML 1.1's
octals, sexagesimals and its ``yes`` and ``on`` surprise more often than they help.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, cast

import yaml
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tensorferry.errors import ModelConfigError
from tensorferry.repository.source import ConfigSource, FieldPath, quoted, suggestion, unsupported_field
from tensorferry.wire.model_config_pb2 import ModelConfig, ModelParameter

__all__ = ["parse_yaml"]

# Aliases are followed, so a small file can stand for an endless tree. Real ones have dozens of values.
_MAX_VALUES: Final = 50_000

_NULL: Final = "tag:yaml.org,2002:null"
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,19})")
_INTEGER_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def parse_yaml(text: str, path: Path) -> ConfigSource:
    """Parse ``text``, the content of ``path``. An empty document is an empty configuration.

    Raises:
        ModelConfigError: not YAML, an unknown or repeated field, or a value of the wrong type.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ModelConfigError(f"not YAML: {what[:300]}", path, line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character U+{ord(text[error.position]):04X}, which YAML doesn't allow; remove it"
        raise ModelConfigError(f"not YAML: {what}", path, line) from None
    except RecursionError:
        raise ModelConfigError("nested too deeply for a model's configuration", path) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ModelConfigError(f"not YAML: {quoted(str(error))}", path) from None
    walk = _Walk(path)
    config = ModelConfig()
    if root is not None:
        walk.message(root, config, ())
    return ConfigSource(path, config, walk.lines)


class _Walk:
    """Fills a message from nodes, noting the line of each field."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = 0
        self.lines: dict[FieldPath, int] = {}

    def message(self, node: Node, message: Message, at: FieldPath) -> None:
        """Fill ``message``; a key with nothing after it is the empty message, as ``{}``."""
        if isinstance(node, ScalarNode):
            if isinstance(message, ModelParameter):
                message.string_value = self._text(node, at)
            elif node.tag != _NULL:
                raise self._error(node, f"{_shown(at)} takes fields (key: value), not {quoted(node.value)}")
            return
        # The stubs know two classes of descriptors; which one is there depends on protobuf's build.
        descriptor = cast("Descriptor", message.DESCRIPTOR)
        for name, value, inner in self._pairs(node, at):
            field = descriptor.fields_by_name.get(str(name))
            if field is None:
                what = unsupported_field(str(name), descriptor)
                raise ModelConfigError(what, self._path, self.lines[inner])
            self._field(value, message, field, inner)

    def _pairs(
        self, node: Node, at: FieldPath, key_field: FieldDescriptor | None = None
    ) -> list[tuple[str | int, Node, FieldPath]]:
        """Return keys, values and their paths; ``key_field`` is that of a map, None for a message."""
        if not isinstance(node, MappingNode):
            raise self._error(node, f"{_shown(at)} takes fields (key: value), not a list")
        pairs: list[tuple[str | int, Node, FieldPath]] = []
        for key, value in node.value:
            self._count(key)
            if not isinstance(key, ScalarNode):
                raise self._error(key, "a key must be a plain name")
            name = self._key(key, key_field, at)
            inner = (*at, name)
            if inner in self.lines:
                raise self._error(key, f"{quoted(str(name))} is given twice; keep one")
            self.lines[inner] = key.start_mark.line + 1
            pairs.append((name, value, inner))
        return pairs

    def _key(self, node: ScalarNode, field: FieldDescriptor | None, at: FieldPath) -> str | int:
        if field is None or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self._text(node, at)
        # In quotes too: JSON is YAML, and has no other keys.
        least, most = _INTEGER_RANGES[field.cpp_type]
        if not _INTEGER.fullmatch(node.value) or not least <= int(node.value) <= most:
            what = f"a key of {_shown(at)} must be an integer from {least} to {most}"
            raise self._error(node, f"{what}, not {quoted(node.value)}")
        return int(node.value)

    def _field(self, node: Node, message: Message, field: FieldDescriptor, at: FieldPath) -> None:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            entries = getattr(message, field.name)
            plain = kind.fields_by_name["value"]
            for key, value, inner in self._pairs(node, at, kind.fields_by_name["key"]):
                if plain.message_type is None:
                    entries[key] = self._scalar(value, plain, inner)
                else:
                    self.message(value, entries[key], inner)
        elif field.is_repeated:
            self._list(node, message, field, at)
        else:
            self._check_choice(node, message, field)
            if kind is None:
                setattr(message, field.name, self._scalar(node, field, at))
            else:
                inner_message = getattr(message, field.name)
                inner_message.SetInParent()
                self.message(node, inner_message, at)

    def _check_choice(self, node: Node, message: Message, field: FieldDescriptor) -> None:
        if field.containing_oneof is None:
            return
        other = message.WhichOneof(field.containing_oneof.name)
        if other is not None:
            raise self._error(node, f"{field.name!r} and {other!r} exclude each other; keep one")

    def _list(self, node: Node, message: Message, field: FieldDescriptor, at: FieldPath) -> None:
        if not isinstance(node, SequenceNode):
            raise self._error(node, f"{_shown(at)} takes a list: write [...] or lines that start with '-'")
        into = getattr(message, field.name)
        for index, item in enumerate(node.value):
            inner = (*at, index)
            self._count(item)
            self.lines[inner] = item.start_mark.line + 1
            if field.message_type is None:
                into.append(self._scalar(item, field, inner))
            else:
                self.message(item, into.add(), inner)

    def _scalar(self, node: Node, field: FieldDescriptor, at: FieldPath) -> int | bool | str:
        if not isinstance(node, ScalarNode):
            raise self._error(node, f"{_shown(at)} takes a single value")
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self._text(node, at)
        if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            return self._enum(node, field, at)
        plain = node.value if node.style is None else ""
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            if plain.lower() not in ("true", "false"):
                raise self._error(node, f"{_shown(at)} takes true or false, not {quoted(node.value)}")
            return plain.lower() == "true"
        least, most = _INTEGER_RANGES[field.cpp_type]
        if not _INTEGER.fullmatch(plain) or not least <= int(plain) <= most:
            what = f"{_shown(at)} takes an integer from {least} to {most}, not {quoted(node.value)}"
            raise self._error(node, what + (" in quotes" if node.style else ""))
        return int(plain)

    def _enum(self, node: ScalarNode, field: FieldDescriptor, at: FieldPath) -> int:
        known = cast("EnumDescriptor", field.enum_type).values_by_name
        if node.value not in known:
            hint = suggestion(node.value, known) or f"; one of {', '.join(known)}"
            raise self._error(node, f"{_shown(at)} has no such value as {quoted(node.value)}{hint}")
        return known[node.value].number

    def _text(self, node: ScalarNode, at: FieldPath) -> str:
        text: str = node.value
        if node.tag == _NULL and node.style is None:
            raise self._error(node, f"{_shown(at)} has no value; give one, or remove the line")
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise self._error(node, f"{quoted(text)} holds half of a surrogate pair, which isn't text")
        return text

    def _count(self, node: Node) -> None:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise self._error(node, f"more than {_MAX_VALUES} values, aliases followed; use fewer")

    def _error(self, node: Node, message: str) -> ModelConfigError:
        return ModelConfigError(message, self._path, node.start_mark.line + 1)


def _shown(at: FieldPath) -> str:
    """Return the path as a person writes it: ``input[0].dims``."""
    shown = ""
    for part in at:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown or "the file"
