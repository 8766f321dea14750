"""The yardstick: a minimal grpc.aio server such as one writes by hand.

The same model and the same batching rule (leave at the end of the tick with whoever is there, up
to 64 rows) as the server under test, and nothing else: no validation, no deadlines, no
statistics, one model, one input, one output. Run as ``python -m loadtests.bench.minimal_grpc MODEL PORT``.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import torch
import uvloop

from tensorferry.wire import open_inference_pb2 as pb

MAX_ROWS = 64


class Batcher:
    def __init__(self, model: torch.jit.ScriptModule) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[bytes, int, asyncio.Future[bytes]]] = []

    def submit(self, data: bytes, rows: int) -> asyncio.Future[bytes]:
        future = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((data, rows, future))
        return future

    def _flush(self) -> None:
        batch, self._waiting = self._waiting[:MAX_ROWS], self._waiting[MAX_ROWS:]
        if self._waiting:
            self._loop.call_soon(self._flush)
        joined = bytearray().join([data for data, _, _ in batch])
        with torch.inference_mode():
            scores = self._model(torch.frombuffer(joined, dtype=torch.float32).view(-1, 30)).numpy().tobytes()
        start = 0
        for _, rows, future in batch:
            end = start + rows * 4
            if not future.done():
                future.set_result(scores[start:end])
            start = end


async def serve(path: str, port: int) -> None:
    torch.set_num_threads(1)
    model = torch.jit.load(path)
    with torch.inference_mode():
        for rows in (1, 2, 4, 8, 16, 32, 64) * 5:
            model(torch.zeros(rows, 30))
    batcher = Batcher(model)

    async def infer(
        request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        rows = request.inputs[0].shape[0]
        scores = await batcher.submit(request.raw_input_contents[0], rows)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name="score", datatype="FP32", shape=(rows, 1))
        response.raw_output_contents.append(scores)
        return response

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService",
                {
                    "ModelInfer": grpc.unary_unary_rpc_method_handler(
                        infer,
                        request_deserializer=pb.ModelInferRequest.FromString,
                        response_serializer=pb.ModelInferResponse.SerializeToString,
                    )
                },
            ),
        )
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"grpc listening on 127.0.0.1:{bound}", flush=True)
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
