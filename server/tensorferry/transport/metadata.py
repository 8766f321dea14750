"""gRPC metadata: as handlers see it, and as it travels in HTTP/2 headers."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Fields", "Metadata", "Metadatum", "decoded", "encoded"]


class Metadatum(NamedTuple):
    """A pair of metadata, as grpcio gives it to a handler; the value of a ``-bin`` key is bytes."""

    key: str
    value: str | bytes


Metadata = Sequence[tuple[str, str | bytes]]
#: Metadata as it travels.
Fields = list[tuple[bytes, bytes]]

#: Names and text values that can travel; values of ``-bin`` keys may be anything.
_KEY: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(rb"[\x20-\x7e]*")


def encoded(metadata: Metadata) -> Fields:
    """Return ``metadata`` as it travels.

    Raises:
        ValueError: a name or a value can't.
    """
    fields = []
    for key, value in metadata:
        if not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r}: use lower-case letters, digits, '-', '_' and '.'")
        raw = value if isinstance(value, bytes) else value.encode()
        if key.endswith("-bin"):
            raw = binascii.b2a_base64(raw, newline=False).rstrip(b"=")
        elif not _VALUE.fullmatch(raw):
            raise ValueError(
                f"metadata {key!r}: its value isn't printable ASCII; use a key that ends in -bin"
            )
        # HTTP/2 forbids spaces around a value, gRPC lets them be dropped.
        fields.append((key.encode("ascii"), raw.strip(b" ")))
    return fields


def decoded(fields: Sequence[tuple[bytes, bytes]]) -> Metadata:
    """Return metadata as a handler sees it. Binary values that aren't base64 are left out."""
    metadata: list[Metadatum] = []
    for key, value in fields:
        if key.endswith(b"-bin"):
            # Several values may be joined by commas, each with or without its padding.
            for part in value.split(b","):
                try:
                    metadata.append(Metadatum(key.decode(), binascii.a2b_base64(part.strip() + b"==")))
                except binascii.Error:
                    continue
        elif key != b"te":
            metadata.append(Metadatum(key.decode(), value.decode("latin-1")))
    return tuple(metadata)
