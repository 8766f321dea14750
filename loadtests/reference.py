"""The reference: a server that does nothing, as fast as grpc.aio can.

It answers every ModelInfer with the same bytes: no decoding, no batching, no model. What locust
measures against it is what locust, gRPC and the machine cost by themselves in this minute. Run as
``python -m loadtests.reference MODEL ROWS``; it listens on a free port and stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc
import uvloop

from loadtests.payloads import METHOD, infer_response


class _Always(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        async def infer(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return answer

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(infer)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handler if details.method == METHOD else None


async def serve(answer: bytes) -> None:
    """Answer every ModelInfer with ``answer`` until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server(handlers=[_Always(answer)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"grpc listening on 127.0.0.1:{port}", flush=True)
    print("ready", flush=True)
    await stop.wait()
    await server.stop(grace=1.0)


if __name__ == "__main__":
    uvloop.run(serve(infer_response(sys.argv[1], int(sys.argv[2]))))
