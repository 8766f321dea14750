"""Every error that the clients raise on purpose, and the one table from status codes to them.

::

    ClientError
    ├── RequestError            the caller's fault; the same call will fail again
    │   ├── InvalidRequest      a tensor, parameter or message is not what the model takes
    │   ├── NotFound            no such model or version
    │   └── Unsupported         a part of the protocol that the server doesn't offer
    ├── Overloaded              the server refused the work; retry after a pause
    ├── Unavailable             no server, or not now; retry elsewhere or later
    ├── DeadlineExceeded        the time ran out; perhaps the request was run
    ├── Cancelled               the server, or the client that was closed, gave the call up
    └── ServerError             the model failed, or the answer makes no sense

The names are those of the server's own errors. Misuse of a client (a call after ``close``, a
negative number in the options) is a ``RuntimeError`` or ``ValueError`` and not in this tree.
"""

from __future__ import annotations

from typing import ClassVar, Final

import grpc

__all__ = [
    "Cancelled",
    "ClientError",
    "DeadlineExceeded",
    "InvalidRequest",
    "NotFound",
    "Overloaded",
    "RequestError",
    "ServerError",
    "Unavailable",
    "Unsupported",
    "error_of",
    "error_of_status",
]


class ClientError(Exception):
    """The root. ``str(error)`` is the server's own message where the server sent one.

    ``code`` is the status that came, or the one that fits best if the error was found on this
    side. ``retryable`` says whether the same call may succeed if it is made again.
    """

    #: The status of an error that was found on this side.
    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code: grpc.StatusCode = self.default_code if code is None else code


class RequestError(ClientError):
    """The caller's fault: the same request will fail again. Itself: the caller may not do this."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidRequest(RequestError):
    """A tensor, parameter or message is not what the model takes. Also raised before anything is sent."""


class NotFound(RequestError):
    """No such model, or no such version of it."""

    default_code = grpc.StatusCode.NOT_FOUND


class Unsupported(RequestError):
    """A part of the protocol that the server doesn't offer."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class Overloaded(ClientError):
    """The server takes on no more work. The request was not run; retry after a pause."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class Unavailable(ClientError):
    """No connection, or the server or the model is not ready.

    A server that says so did not run the request. A connection that broke in the middle of a call
    looks the same from here, and then the request may have been run; running an inference twice
    changes nothing, so that a retry is safe either way.
    """

    default_code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class DeadlineExceeded(ClientError):
    """The call's time ran out. The request may have been run; the caller may try again with more."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(ClientError):
    """The server gave the call up, or the client was closed while the call was on its way.

    Cancelling the task that waits for an asynchronous call raises ``asyncio.CancelledError`` as ever.
    """

    default_code = grpc.StatusCode.CANCELLED


class ServerError(ClientError):
    """The model failed, or the server's answer makes no sense. The server's log has the particulars."""

    default_code = grpc.StatusCode.INTERNAL


#: Codes that are not here (ABORTED, DATA_LOSS, INTERNAL, UNKNOWN) are the server's fault.
_ERRORS: Final[dict[grpc.StatusCode, type[ClientError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: RequestError,
    grpc.StatusCode.ALREADY_EXISTS: RequestError,
    grpc.StatusCode.PERMISSION_DENIED: RequestError,
    grpc.StatusCode.UNAUTHENTICATED: RequestError,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def error_of(problem: grpc.RpcError) -> ClientError:
    """Translate gRPC's error; the original is the ``__cause__``."""
    error = error_of_status(problem.code(), problem.details())
    error.__cause__ = problem
    return error


def error_of_status(code: grpc.StatusCode, details: str | None) -> ClientError:
    """Return the error for a status that isn't OK."""
    message = details or code.name
    # gRPC says RESOURCE_EXHAUSTED too for a message above a limit, on either side. That is no
    # overload: another attempt would send the same bytes, and fail in the same way.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message:
        advice = "send fewer rows at once, or raise max_message_bytes on both sides"
        return InvalidRequest(f"{message}; {advice}", code)
    return _ERRORS.get(code, ServerError)(message, code)
