"""A real server in the test's process that behaves as the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from tensorferry.wire import model_config_pb2
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Infer = Callable[[pb.ModelInferRequest, grpc.aio.ServicerContext], Awaitable[pb.ModelInferResponse]]

#: No test waits so long on a machine that is not overloaded; one that would hang fails instead.
PATIENCE_S = 60.0


def run(coroutine):
    """Run a test's coroutine to its end."""

    async def bounded():
        async with asyncio.timeout(PATIENCE_S):
            return await coroutine

    return asyncio.run(bounded())


async def echo(request, context):
    """Answer with the inputs, raw."""
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version=request.model_version or "1",
        id=request.id,
        raw_output_contents=request.raw_input_contents,
    )
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for key, parameter in request.parameters.items():
        response.parameters[key].CopyFrom(parameter)
    return response


def failing(code, message="no"):
    """Refuse every request with ``code``."""

    async def refuse(request, context):
        await context.abort(code, message)

    return refuse


def failing_first(times, code):
    """Refuse the first requests with ``code``, then echo."""
    left = times

    async def refuse(request, context):
        nonlocal left
        if left:
            left -= 1
            await context.abort(code, f"{left} more")
        return await echo(request, context)

    return refuse


class ScriptedServer(pb_grpc.GRPCInferenceServiceServicer):
    """The service. ``infer`` and ``stream`` may be replaced at any time; ``requests`` holds what came."""

    def __init__(self, infer: Infer = echo):
        self.infer = infer
        self.stream = None
        self.requests = []
        self.inputs = [("INPUT__0", "FP32", [-1, 30])]
        self.outputs = [("OUTPUT__0", "FP32", [-1, 1])]

    async def ModelInfer(self, request, context):  # noqa: N802 - the protocol's name
        self.requests.append(request)
        return await self.infer(request, context)

    async def ModelStreamInfer(self, requests, context):  # noqa: N802 - the protocol's name
        async for response in self.stream(requests, context):
            yield response

    async def ServerLive(self, request, context):  # noqa: N802 - the protocol's name
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):  # noqa: N802 - the protocol's name
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request, context):  # noqa: N802 - the protocol's name
        return pb.ModelReadyResponse(ready=request.name == "there")

    async def ServerMetadata(self, request, context):  # noqa: N802 - the protocol's name
        return pb.ServerMetadataResponse(name="scripted", version="1", extensions=["statistics"])

    async def ModelMetadata(self, request, context):  # noqa: N802 - the protocol's name
        response = pb.ModelMetadataResponse(name=request.name, versions=["1", "2"])
        for tensors, described in ((response.inputs, self.inputs), (response.outputs, self.outputs)):
            for name, datatype, shape in described:
                tensors.add(name=name, datatype=datatype, shape=shape)
        return response

    async def ModelConfig(self, request, context):  # noqa: N802 - the protocol's name
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=64)
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request, context):  # noqa: N802 - the protocol's name
        return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name="there", inference_count=7)])

    async def RepositoryIndex(self, request, context):  # noqa: N802 - the protocol's name
        models = [pb.RepositoryIndexResponse.ModelIndex(name="there", version="1", state="READY")]
        if not request.ready:
            models.append(
                pb.RepositoryIndexResponse.ModelIndex(name="broken", state="UNAVAILABLE", reason="no file")
            )
        return pb.RepositoryIndexResponse(models=models)


@asynccontextmanager
async def serving(service, credentials=None) -> AsyncIterator[str]:
    """Serve on a free port; yields the target."""
    server = grpc.aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def target_of_nobody() -> str:
    """Return a target where a server was, and is no more."""
    async with serving(ScriptedServer()) as target:
        return target
