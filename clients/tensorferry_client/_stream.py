"""Many requests to one model over one call (ModelStreamInfer).

The server answers in the order of the requests, so that the oldest request without an answer is
the one that the next answer is for. Two tasks own the call: one writes, one reads; everybody else
hands over a request and holds a future. Cancelling somebody who waits therefore never disturbs
the stream, which cancelling a write of gRPC's would.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client._codec import InferResult, Inputs, Parameter, infer_request, infer_result
from tensorferry_client._end import StreamCall, StreamEnd
from tensorferry_client._errors import Cancelled, ClientError, ServerError

__all__ = ["InferStream"]


class InferStream:
    """A stream of requests to one model. Made by ``AsyncClient.stream``; used in an ``async with``.

    A request that fails raises from its own ``infer``, and the stream goes on. The protocol sends
    such an error without a status code, so that it is a ``ServerError`` of code UNKNOWN whoever's
    fault it was. A stream that breaks raises the same error from every request without an answer
    and from every later one.

    Leaving the ``async with`` waits for the answers that are still to come; leaving it by an
    exception cancels them.
    """

    def __init__(
        self, open_call: Callable[[], StreamCall], *, model: str, version: str, max_outstanding: int
    ) -> None:
        if max_outstanding < 1:
            raise ValueError(f"max_outstanding is {max_outstanding}; at least 1")
        self._open_call = open_call
        self._model = model
        self._version = version
        self._max_outstanding = max_outstanding
        # A request holds a place from before it is written until its answer has been read.
        self._places = asyncio.Semaphore(max_outstanding)
        self._outbox: asyncio.Queue[pb.ModelInferRequest | None] = asyncio.Queue()
        self._waiting: deque[tuple[str, asyncio.Future[InferResult]]] = deque()
        self._ended: ClientError | None = None
        self._call: StreamCall | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def infer(
        self,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Send a request and wait for its answer; any number of tasks may do so at once.

        Waits first while ``max_outstanding`` requests have no answer. For the arguments see
        :meth:`Client.infer`.

        Raises:
            ClientError: the request failed, or the stream has broken.
        """
        request = infer_request(
            self._model,
            inputs,
            version=self._version,
            outputs=outputs,
            request_id=request_id,
            parameters=parameters,
        )
        return await (await self._send(request))

    async def results(self, source: AsyncIterable[Inputs]) -> AsyncIterator[InferResult | ClientError]:
        """Send everything that ``source`` yields and yield the answers in that order.

        A request that fails yields its error in its place. Reads ahead of the answers by at most
        ``max_outstanding`` requests. An exception raised by ``source`` comes out after the answers to what
        it yielded before.
        """
        answers: asyncio.Queue[asyncio.Future[InferResult] | None] = asyncio.Queue(self._max_outstanding)

        async def feed() -> None:
            try:
                async for inputs in source:
                    await answers.put(await self._sent_or_failed(inputs))
            except Exception:
                await answers.put(None)
                raise
            await answers.put(None)

        feeder = asyncio.create_task(feed())
        try:
            while (answer := await answers.get()) is not None:
                try:
                    result: InferResult | ClientError = await answer
                except ClientError as error:
                    result = error
                yield result
            await feeder
        finally:
            feeder.cancel()
            while not answers.empty():
                if (unread := answers.get_nowait()) is not None:
                    unread.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    async def __aenter__(self) -> Self:
        if self._call is not None:
            raise RuntimeError("a stream is used once; ask the client for another")
        self._call = self._open_call()
        self._tasks = (
            asyncio.create_task(self._write(self._call)),
            asyncio.create_task(self._read(self._call, StreamEnd(self._call))),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = self._ended or Cancelled("the stream is closed")
        if kind is None:
            self._outbox.put_nowait(None)
        else:
            self._cancel()
        try:
            await asyncio.wait(self._tasks)
        except asyncio.CancelledError:
            self._cancel()
            raise

    def __repr__(self) -> str:
        state = "not open" if self._call is None else "ended" if self._ended else "open"
        return f"<InferStream to {self._model}, {state}, {len(self._waiting)} outstanding>"

    async def _send(self, request: pb.ModelInferRequest) -> asyncio.Future[InferResult]:
        if self._call is None:
            raise RuntimeError("the stream isn't open; use it in an `async with`")
        await self._places.acquire()
        if self._ended is not None:
            self._places.release()  # passes the news on to the next in line
            raise self._ended.with_traceback(None)
        future: asyncio.Future[InferResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((request.id, future))
        self._outbox.put_nowait(request)
        return future

    async def _sent_or_failed(self, inputs: Inputs) -> asyncio.Future[InferResult]:
        try:
            return await self._send(infer_request(self._model, inputs, version=self._version))
        except ClientError as error:
            future: asyncio.Future[InferResult] = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

    async def _write(self, call: StreamCall) -> None:
        try:
            while (request := await self._outbox.get()) is not None:
                await call.write(request)
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call is over; the reader learns why, and tells

    async def _read(self, call: StreamCall, end: StreamEnd) -> None:
        error: ClientError
        try:
            with suppress(grpc.RpcError):  # whose status may be another's; see ``StreamEnd``
                while isinstance(response := await call.read(), pb.ModelStreamInferResponse):
                    self._settle(response)
            error = await end.error()
        except ServerError as problem:  # an answer that makes no sense
            call.cancel()
            error = problem
        except asyncio.CancelledError:
            error = Cancelled("the stream was cancelled")
        self._end(error)
        self._outbox.put_nowait(None)  # ends the writer, if it still waits

    def _settle(self, response: pb.ModelStreamInferResponse) -> None:
        """Give an answer to the oldest request that has none."""
        if not self._waiting:
            raise ServerError("the stream brought more answers than requests")
        request_id, future = self._waiting.popleft()
        self._places.release()
        answer = response.infer_response
        if not response.error_message and request_id and answer.id and answer.id != request_id:
            error = ServerError(f"the answer to request {answer.id!r} came where {request_id!r} was due")
            if not future.done():
                future.set_exception(error)
            raise error
        if future.done():
            return  # whoever asked was cancelled
        if response.error_message:
            future.set_exception(ServerError(response.error_message, grpc.StatusCode.UNKNOWN))
            return
        try:
            future.set_result(infer_result(answer))
        except ServerError as error:
            future.set_exception(error)

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            task.cancel()

    def _end(self, error: ClientError) -> None:
        """Fail what is outstanding. For later requests the first reason stands."""
        self._ended = self._ended or error
        while self._waiting:
            _, future = self._waiting.popleft()
            self._places.release()
            if not future.done():
                future.set_exception(error)
