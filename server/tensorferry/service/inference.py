"""The Open Inference Protocol's service and Triton's extensions to it, on an engine.

``infer`` is the hot path (a ``UnaryHandler``); the others are ordinary servicer methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc

from tensorferry import __version__
from tensorferry.batching.pending import NEVER
from tensorferry.control.access import Control
from tensorferry.engine import Engine, ModelState
from tensorferry.errors import ModelNotReady, NotFound
from tensorferry.model import TensorSpec
from tensorferry.service import statistics
from tensorferry.service.answers import Answer, Failures, StreamCall, TracedCall, refuse
from tensorferry.service.forms import Decoded
from tensorferry.service.large_copies import LargeAnswer, LargeCopies
from tensorferry.service.methods import MethodTable, UnaryCall
from tensorferry.service.plans import Planner, model_of
from tensorferry.service.shared_memory import Regions
from tensorferry.service.shared_requests import LargeRequest, SharedPlanner, Unread
from tensorferry.service.status import guarded
from tensorferry.tensors import Buffer
from tensorferry.tracing.context import Headers, headers_of
from tensorferry.tracing.tracer import Tracer
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["EXTENSIONS", "SERVICE", "InferenceService"]

SERVICE: Final = "inference.GRPCInferenceService"

#: Triton's names for what works here beyond the protocol's required part. With shared memory on, there is
#: ``system_shared_memory``, too.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
    "trace",
)

#: Requests of one stream that may be under way. The reader stops at this many, so that HTTP/2
#: flow control holds the sender back.
_MAX_STREAM_OUTSTANDING: Final = 128

_UNTRACED: Final[Headers] = (None, None)


class InferenceService:
    """The service's handlers. Holds no state but the engine.

    ``tracer`` samples calls (None: no traces), ``failures`` hears of those that fail (None: nobody does).
    ``control`` knows of the server's other processes (None: there are none). ``regions`` are the shared
    memory that callers may leave tensors in (None: they may not).
    """

    def __init__(
        self,
        engine: Engine,
        tracer: Tracer | None = None,
        failures: Failures | None = None,
        control: Control | None = None,
        regions: Regions | None = None,
    ) -> None:
        self._engine = engine
        self._control = control
        self._tracer = tracer
        self._failures = failures
        self._planner = Planner(engine)
        self._extensions: tuple[str, ...] = EXTENSIONS
        if regions is not None and regions.is_on:
            self._planner = SharedPlanner(engine, regions)
            self._extensions = tuple(sorted((*EXTENSIONS, "system_shared_memory")))
            self._copies = LargeCopies(engine, regions.most_copied_bytes)
        self._loop = asyncio.get_running_loop()

    def methods(self) -> MethodTable:
        """Return the method table of the service."""
        table: MethodTable = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(getattr(self, name))
            for name, handler in vars(type(self)).items()
            if name[0].isupper() and name != "ModelStreamInfer"
        }
        table[f"/{SERVICE}/ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self.ModelStreamInfer)
        table[f"/{SERVICE}/ModelInfer"] = self.infer
        return table

    # -- inference ------------------------------------------------------------------------------

    def infer(self, call: UnaryCall, body: bytes) -> None:
        """ModelInfer: decode, submit; ``Answer`` replies when the batch is done."""
        traced = None
        if (tracer := self._tracer) is not None:
            countdown = tracer.countdown
            if countdown.skip and call.traceparent is None:
                countdown.skip -= 1
            elif (traced := self._traced(tracer, call, body)) is not None:
                call = traced
        decoded = None
        try:
            decoded = plan, identity, parts, key = self._planner.decode(body)
            answer = Answer(call, plan, identity, self._failures)
            request = self._engine.submit_bound(
                plan.live, plan.bound, parts, answer, call.deadline, plan.timeout_s, plan.priority, key
            )
        except LargeRequest as large:
            self._read(call, body, large.of, traced)
            return
        except Exception as error:
            refuse(call, error, body, decoded, self._failures)
            return
        call.on_cancel = lambda: plan.live.cancel(request)
        if traced is not None:
            traced.submitted(plan, identity, request)

    def _read(self, call: UnaryCall, body: bytes, asked: Unread, traced: TracedCall | None) -> None:
        """Read a large request's inputs from shared memory on another thread, and go on then."""
        form, identity, key = asked

        def submit(parts: Sequence[Buffer]) -> None:
            self._submit(call, body, (form, identity, parts, key), traced)

        def fail(error: Exception) -> None:
            refuse(call, error, body, (form, identity, (), key), self._failures)

        try:
            self._copies.read(call, form, submit, fail)
        except Exception as error:
            fail(error)

    def _submit(self, call: UnaryCall, body: bytes, decoded: Decoded, traced: TracedCall | None) -> None:
        """Submit a large request that was read: as ``infer`` does the others."""
        form, identity, parts, key = decoded
        try:
            answer = LargeAnswer(Answer(call, form, identity, self._failures), self._copies)
            request = self._engine.submit_bound(
                form.live, form.bound, parts, answer, call.deadline, form.timeout_s, form.priority, key
            )
        except Exception as error:
            refuse(call, error, body, decoded, self._failures)
            return
        call.on_cancel = lambda: form.live.cancel(request)
        if traced is not None:
            traced.submitted(form, identity, request)

    def _traced(self, tracer: Tracer, call: UnaryCall, body: bytes) -> TracedCall | None:
        """Return the call as one that is traced, if it is to be."""
        model = model_of(body) if tracer.has_scopes else ""
        trace = tracer.sample(call.traceparent, call.tracestate, model)
        return None if trace is None else TracedCall(call, trace, tracer)

    async def ModelStreamInfer(  # noqa: N802 - the protocol's name
        self, bodies: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """Answer each message in order; a failed one is an error_message in its place."""
        answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue(_MAX_STREAM_OUTSTANDING)
        reader = asyncio.create_task(self._read_stream(bodies, answers, context))
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
            await reader  # a fault of the reader's own must not pass for the stream's end
        finally:
            reader.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    async def _read_stream(
        self,
        bodies: AsyncIterator[bytes],
        answers: asyncio.Queue[asyncio.Future[bytes] | None],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        remaining_s = context.time_remaining()
        deadline = NEVER if remaining_s is None else self._engine.now() + remaining_s
        # The stream's context is that of all its messages.
        trace = headers_of(context.invocation_metadata()) if self._tracer is not None else _UNTRACED
        try:
            async for body in bodies:
                answer: asyncio.Future[bytes] = self._loop.create_future()
                # Its place first: one that runs without a place would outlive a cancelled stream.
                await answers.put(answer)
                self.infer(StreamCall(answer, body, deadline, trace), body)
        finally:
            await answers.put(None)

    # -- how things are -------------------------------------------------------------------------

    async def _server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        # What orchestrators restart on: false once only a new process can do the work again.
        return pb.ServerLiveResponse(live=not self._engine.why_dead)

    async def _server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._engine.is_ready)

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            self._engine.resolve(request.name, request.version)
        except (ModelNotReady, NotFound):
            # Of a model that nobody knows, too: who loads by request asks until it is true.
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="tensorferry", version=__version__, extensions=self._extensions)

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        live = self._engine.resolve(request.name, request.version)
        spec = live.spec
        versions = [
            str(number)
            for number, each in sorted(self._engine.models[spec.name].items())
            if each.state is ModelState.READY
        ]
        response = pb.ModelMetadataResponse(name=spec.name, versions=versions, platform=spec.platform)
        for tensors, described in ((spec.inputs, response.inputs), (spec.outputs, response.outputs)):
            for each in tensors:
                described.add(
                    name=each.name,
                    datatype=each.datatype.name if each.datatype else "",
                    shape=_shape_of(each, spec.has_batch_dimension),
                )
        return response

    async def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        live = self._engine.resolve(request.name, request.version)
        return pb.ModelConfigResponse(config=self._engine.entry(live.spec.name).config)

    async def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        return await statistics.answer(self._engine, self._control, request)

    ServerLive = guarded(_server_live, pb.ServerLiveRequest)
    ServerReady = guarded(_server_ready, pb.ServerReadyRequest)
    ModelReady = guarded(_model_ready, pb.ModelReadyRequest)
    ServerMetadata = guarded(_server_metadata, pb.ServerMetadataRequest)
    ModelMetadata = guarded(_model_metadata, pb.ModelMetadataRequest)
    ModelConfig = guarded(_model_config, pb.ModelConfigRequest)
    ModelStatistics = guarded(_model_statistics, pb.ModelStatisticsRequest)


def _shape_of(tensor: TensorSpec, has_batch_dimension: bool) -> tuple[int, ...]:
    # Any rank will do for a tensor without configured dims; -1 says as much as the field can.
    dims = (-1,) if tensor.dims is None else tensor.dims
    return (-1, *dims) if has_batch_dimension else dims
