"""The one table from errors to gRPC status codes, and the guard that applies it to a servicer's method."""

from __future__ import annotations

import contextlib
import functools
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import grpc
import structlog

from tensorferry import errors

__all__ = ["Status", "error_id_of", "guarded", "parsed", "status_of"]

_log = structlog.get_logger("tensorferry.service")

_Servicer = TypeVar("_Servicer")

#: Most specific first. docs/errors.md is made from the same classes for people.
_CODES: Final[tuple[tuple[type[errors.TensorferryError], grpc.StatusCode], ...]] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.ControlDisabled, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    (errors.TensorferryError, grpc.StatusCode.INTERNAL),
)

#: Longer details are cut: they travel in a header, where a byte that isn't ASCII takes three, and
#: a peer may refuse headers above 8 KiB.
_MAX_DETAILS_BYTES: Final = 1024


#: Where a foreign exception keeps the id that it was logged under.
_ERROR_ID: Final = "_tensorferry_error_id"

#: How our own errors tell the id that they were logged under.
_TOLD_ID: Final = re.compile(r"error id ([0-9a-f]{12})\b")


class Status(NamedTuple):
    """A gRPC status as it goes to the caller."""

    code: grpc.StatusCode
    details: str


def status_of(error: BaseException) -> Status:
    """Map an error to its status. A foreign exception is logged and shown only as an id.

    One that many calls share, as those of a batch do, is logged once.
    """
    if isinstance(error, errors.TensorferryError):
        for kind, code in _CODES:
            if isinstance(error, kind):
                return Status(code, _cut(str(error)))
    reference = error_id_of(error)
    if not reference:
        reference = uuid.uuid4().hex[:12]
        with contextlib.suppress(AttributeError):  # a class with slots: the next call gets an id of its own
            setattr(error, _ERROR_ID, reference)
        _log.error("unexpected error in a call", error_id=reference, exc_info=error)
    return Status(grpc.StatusCode.INTERNAL, f"internal error; error id {reference} in the log")


def error_id_of(error: BaseException) -> str:
    """Return the id that the caller was given for an error, under which the log has its traceback; or ""."""
    if isinstance(error, errors.TensorferryError):
        found = _TOLD_ID.search(str(error))
        return found[1] if found else ""
    reference: str = getattr(error, _ERROR_ID, "")
    return reference


def _cut(details: str) -> str:
    encoded = details.encode("utf-8", "replace")
    return encoded[:_MAX_DETAILS_BYTES].decode("utf-8", "ignore")


def guarded(
    method: Callable[[_Servicer, Any], Awaitable[Any]],
    request_type: Any,  # noqa: ANN401 - a message class
) -> Callable[[_Servicer, bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]:
    """Make a raw unary handler of ``async method(self, request)``.

    The handler parses the request, so that bytes which aren't one are the caller's fault like any
    other bad input, and turns errors into statuses: no exception leaves it but ``abort``'s own.
    """

    @functools.wraps(method)
    async def handler(self: _Servicer, body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            response = await method(self, parsed(request_type, body))
        except Exception as error:
            await context.abort(*status_of(error))
        return bytes(response.SerializeToString())

    return handler


def parsed(message_type: Any, body: bytes) -> Any:  # noqa: ANN401 - generated message classes
    """Parse a message.

    Raises:
        InvalidRequest: the bytes are not such a message.
    """
    try:
        return message_type.FromString(body)
    except Exception:  # protobuf's DecodeError, whose module depends on the implementation
        raise errors.InvalidRequest(
            f"the request's {len(body)} bytes are not a {message_type.DESCRIPTOR.full_name}"
        ) from None
