"""A call and what a caller learns of it, whatever the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from tests.integration.conformance.peer import PREFIX

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Call:
    """What is called, and with what."""

    path: str
    messages: tuple[bytes, ...] = (b"",)
    request_streaming: bool = False
    response_streaming: bool = False
    metadata: Metadata = ()
    timeout_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a caller learns. Of the metadata, what is the application's: keys that begin with ``x-``."""

    code: grpc.StatusCode
    details: str = ""
    messages: tuple[bytes, ...] = ()
    initial: Metadata = ()
    trailing: Metadata = ()


class Running(Protocol):
    """A call under way."""

    def cancel(self) -> None: ...

    def outcome(self) -> Outcome: ...


class Client(Protocol):
    """A client library and its connection."""

    def start(self, call: Call) -> Running: ...

    def close(self) -> None: ...


CODES = {code.value[0]: code for code in grpc.StatusCode}


def ours(pairs: Any) -> Metadata:
    """Return the application's own of what a client says it got."""
    return tuple((key, value) for key, value in pairs or () if key.startswith("x-"))


def unary(method: str, message: bytes = b"", **more: Any) -> Call:
    """Return a call of one of the peer's methods; so do the next two."""
    return Call(PREFIX + method, (message,), **more)


def server_stream(method: str, message: bytes = b"", **more: Any) -> Call:
    return Call(PREFIX + method, (message,), response_streaming=True, **more)


def bidi(method: str, *messages: bytes, **more: Any) -> Call:
    return Call(PREFIX + method, messages, request_streaming=True, response_streaming=True, **more)
