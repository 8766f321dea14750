"""W3C Trace Context: what a caller says of the trace that its call belongs to.

What a header must look like is in the W3C's recommendation "Trace Context" (level 1, of 2021). Anything
else counts as no header at all: it never raises, and a long one is not looked through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["MAX_STATE_BYTES", "Headers", "Parent", "decision", "headers_of", "read", "trace_id_of"]

#: A tracestate up to this size is passed on. The recommendation asks for no more.
MAX_STATE_BYTES: Final = 512
#: A header of a version after 00 may be longer than one of 00; but not by as much as anybody likes.
_MAX_PARENT_BYTES: Final = 512
_PARENT_BYTES: Final = 55

# One expression that decides all, for a header that may come with every call.
_IDS: Final = rb"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_PARENT: Final = re.compile(rb"00" + _IDS + rb"\Z|(?!00|ff)[0-9a-f]{2}" + _IDS + rb"(?:-[!-~]*)?\Z").match
_SAMPLED: Final = b"13579bdf"
_MEMBER: Final = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]\Z"
)
_MAX_MEMBERS: Final = 32

#: The values of ``traceparent`` and ``tracestate`` as they came; None where there was none.
Headers = tuple[bytes | None, bytes | None]


class Parent(NamedTuple):
    """The caller's span: ids of its trace and of itself, whether it is sampled, and its vendors' state."""

    trace_id: int
    span_id: int
    is_sampled: bool
    state: tuple[tuple[str, str], ...] = ()


def decision(traceparent: bytes) -> bool | None:
    """Return whether the caller samples its trace; None for a header that isn't allowed."""
    if not _PARENT_BYTES <= len(traceparent) <= _MAX_PARENT_BYTES or _PARENT(traceparent) is None:
        return None
    return traceparent[54] in _SAMPLED


def read(traceparent: bytes | None, tracestate: bytes | None = None) -> Parent | None:
    """Return what the headers say; None if that is nothing, or not what the recommendation allows."""
    is_sampled = decision(traceparent) if traceparent is not None else None
    if traceparent is None or is_sampled is None:
        return None
    return Parent(int(traceparent[3:35], 16), int(traceparent[36:52], 16), is_sampled, _state(tracestate))


def _state(tracestate: bytes | None) -> tuple[tuple[str, str], ...]:
    """Return the members of a tracestate; none at all where one of them isn't allowed."""
    if not tracestate or len(tracestate) > MAX_STATE_BYTES or not tracestate.isascii():
        return ()
    members: dict[str, str] = {}
    for part in tracestate.decode("ascii").split(","):
        member = part.strip(" \t")
        if not member:
            continue
        key, _, value = member.partition("=")
        if not _MEMBER.match(member) or key in members or len(members) == _MAX_MEMBERS:
            return ()
        members[key] = value
    return tuple(members.items())


def trace_id_of(traceparent: bytes | None) -> str:
    """Return the trace's id in hexadecimal digits, sampled or not; "" if the header says none."""
    parent = read(traceparent) if traceparent else None
    return f"{parent.trace_id:032x}" if parent is not None else ""


def headers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Headers:
    """Find the two headers in a call's metadata. Two traceparents contradict each other: neither counts."""
    traceparent: bytes | None = None
    states: list[bytes] = []
    for name, value in metadata or ():
        if name == "traceparent":
            traceparent = _raw(value) if traceparent is None else b""
        elif name == "tracestate":
            states.append(_raw(value))
    return traceparent, (b",".join(states) if states else None)


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")
