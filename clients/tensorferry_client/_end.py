"""How a streaming call ended: the server's status, kept from being overwritten.

A write that fails because the call has just ended makes gRPC's asyncio layer set the call's status
to INTERNAL, "Internal error from Core", over the one that the server sent, or shortly before it
arrives (seen in grpcio 1.75, nearly always where the server refuses while a request is written).
The true status is there for a moment, while the callbacks of its arrival run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client._errors import ClientError, ServerError, Unavailable, error_of_status

__all__ = ["StreamCall", "StreamEnd"]

StreamCall = grpc.aio.StreamStreamCall[Message, pb.ModelStreamInferResponse]

T = TypeVar("T")

_NOT_THE_SERVERS: Final = "Internal error from Core"

#: How long after the other the true status may come: it is on this machine already, or never comes.
_GRACE_S: Final = 0.5


class StreamEnd:
    """Notes the status that the server sent, when it comes. Made before anything is written."""

    def __init__(self, call: StreamCall, grace_s: float = _GRACE_S) -> None:
        self._grace_s = grace_s
        self._is_known = asyncio.Event()
        self._error: ClientError = Unavailable("the stream broke while a request was written")
        call.add_done_callback(self._note)

    async def error(self) -> ClientError:
        """Return what to tell those who wait for an answer. To be called once the call has ended."""
        try:
            async with asyncio.timeout(self._grace_s):
                await self._is_known.wait()
        except TimeoutError:
            pass
        return self._error

    def _note(self, call: StreamCall) -> None:
        details = _now(call.details())
        if details == _NOT_THE_SERVERS:
            return
        code = _now(call.code())
        if code is grpc.StatusCode.OK:
            self._error = ServerError("the server ended the stream")
        else:
            self._error = error_of_status(code, details)
        self._is_known.set()


def _now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("gRPC doesn't know the status of a call that it says has ended")
