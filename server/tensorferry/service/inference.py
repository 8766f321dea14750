"""The Open Inference Protocol's service and Triton's extensions to it, on an engine.

``infer`` is the hot path (a ``UnaryHandler``); the others are ordinary servicer methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from tensorferry import __version__
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.engine import Engine, ModelState
from tensorferry.errors import InvalidRequest, ModelNotReady, NotFound
from tensorferry.model import TensorSpec
from tensorferry.service import statistics
from tensorferry.service.codec import request_id
from tensorferry.service.methods import MethodTable, UnaryCall
from tensorferry.service.plans import Plan, Planner
from tensorferry.service.status import guarded, status_of
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["EXTENSIONS", "SERVICE", "InferenceService"]

SERVICE: Final = "inference.GRPCInferenceService"

#: Triton's names for what works here beyond the protocol's required part.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
)

#: Requests of one stream that may be under way. The reader stops at this many, so that HTTP/2
#: flow control holds the sender back.
_MAX_STREAM_OUTSTANDING: Final = 128


class _Answer:
    """Waits for one request's outcome and encodes it. One small object instead of closures."""

    __slots__ = ("call", "identity", "plan")

    def __init__(self, call: UnaryCall, plan: Plan, identity: bytes) -> None:
        self.call = call
        self.plan = plan
        self.identity = identity

    def __call__(self, request: Pending) -> None:
        if request.error is not None:
            self.call.fail(*status_of(request.error))
            return
        try:
            body = self.plan.encode(
                self.identity, request.batch_outputs, request.first_row, request.batch_rows
            )
        except Exception as error:  # an outcome's callback must not raise: the rest of the batch waits
            self.call.fail(*status_of(error))
        else:
            self.call.reply(body)


class InferenceService:
    """The service's handlers. Holds no state but the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._planner = Planner(engine)
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
        """ModelInfer: decode, submit; ``_Answer`` replies when the batch is done."""
        try:
            plan, identity, parts, key = self._planner.decode(body)
            answer = _Answer(call, plan, identity)
            request = self._engine.submit_bound(
                plan.live, plan.bound, parts, answer, call.deadline, plan.timeout_s, plan.priority, key
            )
        except Exception as error:
            call.fail(*status_of(error))
            return
        call.on_cancel = lambda: plan.live.cancel(request)

    async def ModelStreamInfer(  # noqa: N802 - the protocol's name
        self, bodies: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """Answer each message in order; a failed one is an error_message in its place."""
        answers: asyncio.Queue[asyncio.Future[pb.ModelStreamInferResponse] | None] = asyncio.Queue(
            _MAX_STREAM_OUTSTANDING
        )
        reader = asyncio.create_task(self._read_stream(bodies, answers, self._deadline_of(context)))
        try:
            while (answer := await answers.get()) is not None:
                yield (await answer).SerializeToString()
            await reader  # a fault of the reader's own must not pass for the stream's end
        finally:
            reader.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    def _deadline_of(self, context: grpc.aio.ServicerContext[Any, Any]) -> float:
        remaining_s = context.time_remaining()
        return NEVER if remaining_s is None else self._engine.now() + remaining_s

    async def _read_stream(
        self,
        bodies: AsyncIterator[bytes],
        answers: asyncio.Queue[asyncio.Future[pb.ModelStreamInferResponse] | None],
        deadline: float,
    ) -> None:
        try:
            async for body in bodies:
                answer: asyncio.Future[pb.ModelStreamInferResponse] = self._loop.create_future()
                # Its place first: one that runs without a place would outlive a cancelled stream.
                await answers.put(answer)
                self._infer_in_stream(body, answer, deadline)
        finally:
            await answers.put(None)

    def _infer_in_stream(
        self, body: bytes, answer: asyncio.Future[pb.ModelStreamInferResponse], deadline: float
    ) -> None:
        def settle(error: Exception) -> None:
            if not answer.done():
                response = pb.ModelStreamInferResponse(error_message=status_of(error).details)
                response.infer_response.id = request_id(body)
                answer.set_result(response)

        def done(request: Pending) -> None:
            if request.error is not None:
                settle(request.error)
            elif not answer.done():
                try:
                    answer.set_result(plan.stream_response(identity, request))
                except Exception as error:  # as in _Answer
                    settle(error)

        try:
            plan, identity, parts, key = self._planner.decode(body)
            request = self._engine.submit_bound(
                plan.live, plan.bound, parts, done, deadline, plan.timeout_s, plan.priority, key
            )
        except Exception as error:
            settle(error)
            return

        def given_up(future: asyncio.Future[pb.ModelStreamInferResponse]) -> None:
            if future.cancelled():
                plan.live.cancel(request)

        answer.add_done_callback(given_up)

    # -- how things are -------------------------------------------------------------------------

    async def _server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

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
        return pb.ServerMetadataResponse(name="tensorferry", version=__version__, extensions=EXTENSIONS)

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
        if request.name:
            self._engine.entry(request.name)
        if request.version:
            if not request.name:
                raise InvalidRequest("statistics of a version need the model's name too")
            self._engine.resolve(request.name, request.version)
        return pb.ModelStatisticsResponse(
            model_stats=[
                statistics.model_statistics(live)
                for name, versions in sorted(self._engine.models.items())
                for number, live in sorted(versions.items())
                if request.name in ("", name) and request.version in ("", str(number))
            ]
        )

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
