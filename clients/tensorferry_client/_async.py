"""The asyncio client: a thin shell over ``_calls`` and ``_retry``."""

from __future__ import annotations

import asyncio
import random as randomness
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from tensorferry.wire import model_config_pb2
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client import _calls
from tensorferry_client._codec import InferResult, Inputs, Parameter, with_routing
from tensorferry_client._errors import Cancelled, DeadlineExceeded, Unavailable, error_of
from tensorferry_client._options import (
    ClientOptions,
    channel_arguments,
    credentials_of,
    metadata_of,
    options_of,
)
from tensorferry_client._retry import Attempts
from tensorferry_client._stream import InferStream

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """An asyncio client: one connection, one event loop. Make it in a coroutine; use it in an ``async with``.

    The calls are those of :class:`Client`, awaited. Cancelling the task that waits cancels the call
    on the server. ``clock``, ``sleep`` and ``random`` are there for tests.
    """

    def __init__(
        self,
        options: ClientOptions | str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        asyncio.get_running_loop()  # gRPC would take a loop of its own choice, and fail later
        self._options = options_of(options)
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._is_closed = False
        arguments = channel_arguments(self._options)
        if self._options.tls is None:
            self._channel = grpc.aio.insecure_channel(self._options.target, arguments)
        else:
            self._channel = grpc.aio.secure_channel(
                self._options.target, credentials_of(self._options.tls), arguments
            )
        self._methods = {
            name: self._channel.unary_unary(
                _calls.path_of(name),
                request_serializer=_calls.serialize,
                response_deserializer=response.FromString,
            )
            for name, response in _calls.UNARY_METHODS.items()
        }
        self._stream_infer = self._channel.stream_stream(
            _calls.path_of(_calls.STREAM_INFER),
            request_serializer=_calls.serialize,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        label: str = "",
        split_key: str = "",
    ) -> InferResult:
        """Run a model; see :meth:`Client.infer`."""
        parameters = with_routing(parameters, label, split_key)
        return await self._run(
            _calls.infer(model, inputs, version, outputs, request_id, parameters), timeout_s
        )

    def stream(
        self,
        model: str,
        *,
        version: str = "",
        max_outstanding: int = 64,
        timeout_s: float | None = None,
    ) -> InferStream:
        """Return a stream of requests to one model, to be used in an ``async with``.

        Args:
            model: The model's name.
            version: The model's version; empty for the one that the server chooses.
            max_outstanding: Requests without an answer, above which sending waits.
            timeout_s: Seconds that the whole stream may last; None for any time. (A request's own
                limit is its parameter ``timeout``.)
        """
        self._check_open()
        return InferStream(
            lambda: self._stream_infer(timeout=timeout_s, metadata=metadata_of(self._options)),
            model=model,
            version=version,
            max_outstanding=max_outstanding,
        )

    async def server_live(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server's process is up."""
        return await self._run(_calls.server_live(), timeout_s)

    async def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Return whether every model that should be served is ready."""
        return await self._run(_calls.server_ready(), timeout_s)

    async def model_ready(self, model: str, version: str = "", *, timeout_s: float | None = None) -> bool:
        """Return whether the model can be run."""
        return await self._run(_calls.model_ready(model, version), timeout_s)

    async def server_metadata(self, *, timeout_s: float | None = None) -> pb.ServerMetadataResponse:
        """Return the server's name, version and extensions."""
        return await self._run(_calls.server_metadata(), timeout_s)

    async def model_metadata(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> pb.ModelMetadataResponse:
        """Return the model's versions, and its inputs and outputs with datatypes and shapes."""
        return await self._run(_calls.model_metadata(model, version), timeout_s)

    async def model_config(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> model_config_pb2.ModelConfig:
        """Return the model's configuration as the server holds it."""
        return await self._run(_calls.model_config(model, version), timeout_s)

    async def statistics(
        self, model: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> list[pb.ModelStatistics]:
        """Return the counts and times of one model, or of all."""
        return await self._run(_calls.statistics(model, version), timeout_s)

    async def repository_index(
        self, *, ready_only: bool = False, timeout_s: float | None = None
    ) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """Return every model and version that the server knows, with its state and reason."""
        return await self._run(_calls.repository_index(ready_only), timeout_s)

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands at this moment."""
        return not self._is_closed and self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def wait_until_connected(self, timeout_s: float) -> bool:
        """Wait for a server that answers; return whether one did within ``timeout_s`` seconds."""
        try:
            await self._run(_calls.server_live(), timeout_s, wait_for_ready=True)
        except (DeadlineExceeded, Unavailable):
            return False
        return True

    async def keep_connected(self) -> None:
        """Reconnect whenever the connection is lost, without waiting for a call.

        To be run as a task, and cancelled before ``close``. gRPC does the reconnecting, and its channel
        arguments set the pace.
        """
        while not self._is_closed:
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                return
            await self._channel.wait_for_state_change(state)

    async def close(self) -> None:
        """Close the connection; calls on their way raise ``Cancelled``. Closing twice does nothing."""
        self._is_closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._options.target}, {'closed' if self._is_closed else 'open'}>"

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the client is closed; make a new one")

    async def _run(self, call: _calls.Call[T], timeout_s: float | None, wait_for_ready: bool = False) -> T:
        if timeout_s is None:
            timeout_s = self._options.default_timeout_s
        attempts = Attempts(self._options.retry, timeout_s, self._clock, self._random)
        method = self._methods[call.method]
        while True:
            self._check_open()
            try:
                response = await method(
                    call.request,
                    timeout=attempts.remaining_s(),
                    metadata=metadata_of(self._options),
                    wait_for_ready=wait_for_ready,
                )
            except grpc.RpcError as problem:
                pause_s = attempts.pause_s(error_of(problem))
            except asyncio.CancelledError:
                self._raise_if_closed_under_us()
                raise
            else:
                return call.decode(response)
            await self._sleep(pause_s)

    def _raise_if_closed_under_us(self) -> None:
        """Tell a call that ``close`` ended from a task that somebody cancelled: gRPC raises the same."""
        task = asyncio.current_task()
        if self._is_closed and task is not None and not task.cancelling():
            raise Cancelled("the client was closed while the call was on its way")
