"""How calls end: numbered while the run lasts, and put into words when it is over.

A run sees few different endings, and decoding one takes longer than a call may. So an answer's
header block is a key as it is: same bytes, same number. That holds because the generator
forbids the server a dynamic table, which makes a block mean the same wherever it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from urllib.parse import unquote

from hpack import Decoder, HPACKError

__all__ = ["OK", "Ending", "Endings", "Failure", "status_name"]

OK: Final = 0
_UNKNOWN: Final = 2
_NAMES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


class Failure(IntEnum):
    """Ways to end without an answer; negative, so that they are never a gRPC status."""

    UNSENT = -1  # no connection could take it before the run ended
    UNANSWERED = -2  # the grace time passed
    LOST = -3  # the connection broke, or a GOAWAY said that it won't be served
    RESET = -4  # RST_STREAM


@dataclass(frozen=True, slots=True)
class Ending:
    """A gRPC status, or a ``Failure``, and what was said about it."""

    status: int
    message: str


class Endings:
    """Numbers for endings, in the order in which they were first seen.

    ``numbers`` is open to the reader of frames, which looks a block up for every answer.
    """

    def __init__(self) -> None:
        self.numbers: dict[bytes | Ending, int] = {}

    def number(self, ending: bytes | Ending) -> int:
        """Return the number of a header block that ended a stream, or of a failure."""
        return self.numbers.setdefault(ending, len(self.numbers))

    def decoded(self) -> tuple[Ending, ...]:
        """Return every ending seen, at the place of its number."""
        return tuple(each if isinstance(each, Ending) else _decoded(each) for each in self.numbers)


def status_name(status: int) -> str:
    """Return the name of a gRPC status or a ``Failure``; the number itself if it is neither."""
    if status < 0:
        return Failure(status).name
    return _NAMES[status] if status < len(_NAMES) else str(status)


def _decoded(block: bytes) -> Ending:
    try:
        fields = {_text(name): _text(value) for name, value in Decoder().decode(block, raw=True)}
    except HPACKError as error:
        reason = f"can't decode the trailers: {error}. Does the server obey SETTINGS_HEADER_TABLE_SIZE 0?"
        return Ending(_UNKNOWN, reason)
    status = fields.get("grpc-status", "")
    if not status.isdigit():
        return Ending(_UNKNOWN, f"no grpc-status; HTTP status {fields.get(':status', 'not in this block')}")
    return Ending(int(status), unquote(fields.get("grpc-message", "")))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
