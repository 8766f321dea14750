"""The gRPC clients that nobody here wrote, behind one interface: bytes in, an ``Outcome`` out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpclib import client as grpclib_client
from grpclib import const as grpclib_const
from grpclib import exceptions as grpclib_exceptions
from grpclib.encoding.base import CodecBase
from tests.integration.conformance.calls import CODES, Call, Client, Outcome, Running, ours
from tests.integration.conformance.node import GrpcJsClient
from tests.integration.support import PATIENCE_S

# -- grpcio: the C core -------------------------------------------------------------------------


class GrpcioClient:
    """A raw channel of grpcio. Its messages may be of any size."""

    def __init__(self, address: str, **options: Any) -> None:
        self._channel = grpc.insecure_channel(
            address,
            [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ],
            **options,
        )

    def start(self, call: Call) -> Running:
        there, back = (
            "stream" if each else "unary" for each in (call.request_streaming, call.response_streaming)
        )
        method = getattr(self._channel, f"{there}_{back}")(call.path)
        request = iter(call.messages) if call.request_streaming else call.messages[0]
        begin = method if call.response_streaming else method.future
        rpc = begin(request, timeout=call.timeout_s, metadata=call.metadata, wait_for_ready=True)
        return _GrpcioRunning(rpc, call.response_streaming)

    def close(self) -> None:
        self._channel.close()


@dataclass
class _GrpcioRunning:
    rpc: Any
    streaming: bool
    messages: list[bytes] = field(default_factory=list)

    def cancel(self) -> None:
        self.rpc.cancel()

    def outcome(self) -> Outcome:
        with suppress(grpc.RpcError, grpc.FutureCancelledError):
            for message in self.rpc if self.streaming else [self.rpc.result(PATIENCE_S)]:
                self.messages.append(message)
        return Outcome(
            self.rpc.code(),
            self.rpc.details() or "",
            tuple(self.messages),
            ours(self.rpc.initial_metadata()),
            ours(self.rpc.trailing_metadata()),
        )


# -- grpclib: Python, on h2 ---------------------------------------------------------------------


class _Bytes(CodecBase):
    """Messages are bytes already."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class GrpclibClient:
    """A channel of grpclib on a loop in a thread."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._channel = self._run(self._made(host, int(port))).result(PATIENCE_S)

    async def _made(self, host: str, port: int) -> grpclib_client.Channel:
        return grpclib_client.Channel(host, port, codec=_Bytes())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def start(self, call: Call) -> Running:
        return _GrpclibRunning(self._run(self._call(call)))

    async def _call(self, call: Call) -> Outcome:
        kind = grpclib_const.Cardinality((call.request_streaming, call.response_streaming))
        messages: list[bytes] = []
        deadline = None
        if call.timeout_s is not None:
            deadline = grpclib_client.Deadline.from_timeout(call.timeout_s)
        stream: Any = self._channel.request(
            call.path, kind, bytes, bytes, deadline=deadline, metadata=list(call.metadata)
        )
        code, details = grpc.StatusCode.OK, ""
        try:
            async with stream:
                await self._converse(stream, call, messages)
        except grpclib_exceptions.GRPCError as error:
            code, details = CODES[error.status.value], error.message or ""
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        return Outcome(
            code,
            details,
            tuple(messages),
            ours((stream.initial_metadata or {}).items()),
            ours((stream.trailing_metadata or {}).items()),
        )

    async def _converse(self, stream: Any, call: Call, messages: list[bytes]) -> None:
        await stream.send_request(end=not call.messages)
        for message in call.messages[:-1]:
            await stream.send_message(message)
        for message in call.messages[-1:]:
            await stream.send_message(message, end=True)
        if not call.response_streaming:
            messages.append(await stream.recv_message())
        else:
            while (message := await stream.recv_message()) is not None:
                messages.append(message)
        await stream.recv_trailing_metadata()

    def close(self) -> None:
        async def closed() -> None:
            self._channel.close()
            await asyncio.sleep(0)

        self._run(closed()).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


@dataclass
class _GrpclibRunning:
    future: Any

    def cancel(self) -> None:
        self.future.cancel()

    def outcome(self) -> Outcome:
        if self.future.cancelled():
            return Outcome(grpc.StatusCode.CANCELLED)
        return self.future.result(PATIENCE_S)


#: The one place that says which clients are tested.
CLIENTS: dict[str, Callable[[str], Client]] = {
    "grpcio": GrpcioClient,
    "grpclib": GrpclibClient,
    "grpc-js": GrpcJsClient,
}
