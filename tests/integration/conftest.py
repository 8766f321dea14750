"""A real server process for each transport, and ready-made clients.

Every test here that asks for ``server``, ``stub`` or ``launch`` runs once for each transport: the
suite is what a transport must conform to.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tests.integration.support import PATIENCE_S, sample, wait_until

from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import (
    Identity,
    Raising,
    write_identity,
    write_mlp,
    write_model,
    write_raising,
    write_two_inputs,
)
from tensorferry.testing.process import Limits, ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

#: The one place that says which transports are tested.
TRANSPORTS = ("grpcio", "http2")

LONGEST_TEST_S = 120
MAX_MESSAGE_BYTES = 24 * 2**20
MAX_WAITING = 3
TORCH_DATATYPES = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64")


@dataclass(frozen=True)
class Served:
    """The session's server and what it serves.

    ``gated`` runs batches of at most 4 rows when its gate is open; ``bounded`` is another such,
    and at most MAX_WAITING requests may wait for it.
    """

    process: ServerProcess
    gates: dict[str, Gate]

    @property
    def grpc(self) -> str:
        """``host:port`` of the gRPC service."""
        return self.process.grpc_address

    @property
    def http(self) -> str:
        """``host:port`` of health and metrics."""
        return self.process.http_address

    def waiting(self, model: str) -> int:
        """Requests that wait for a model now."""
        return int(sample(self.http, "nv_inference_pending_request_count", model))


def write_models(root: Path) -> dict[str, Gate]:
    """Write everything that the session's server serves; return the gates by model name."""
    write_mlp(root)
    write_two_inputs(root)
    write_raising(root)
    write_raising(root, "raising_together", "dynamic_batching { max_queue_delay_microseconds: 200000 }")
    write_identity(root, "bytes", dims=(-1,), max_batch_size=8)
    write_identity(root, "plain", dims=(2, 3), max_batch_size=0)
    write_model(root, "unconfigured", Identity(), None)
    write_identity(root, "versioned", options="dynamic_batching { } version_policy { all { } }")
    write_model(root, "versioned", Raising(), None, version=3)  # doubles, unlike version 1
    for datatype in TORCH_DATATYPES:
        write_identity(root, f"identity_{datatype.lower()}", datatype, dims=(2,), max_batch_size=8)
    bound = f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {MAX_WAITING} }} }}"
    return {"gated": write_gated(root), "bounded": write_gated(root, "bounded", options=bound)}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Fail a test that doesn't end, wherever it waits: some clients wait for ever by default."""

    def too_long(*_: object) -> None:
        raise AssertionError(f"the test took longer than {LONGEST_TEST_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST_TEST_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of the transport that is tested."""
    return request.param


@pytest.fixture(scope="session")
def server(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The session's server."""
    directory = tmp_path_factory.mktemp(f"server-{transport}")
    gates = write_models(directory / "models")
    flags = ["--transport", transport, "--max-message-bytes", str(MAX_MESSAGE_BYTES)]
    with ServerProcess(directory / "models", directory / "log", flags=flags) as process:
        yield Served(process, gates)


@pytest.fixture(scope="session")
def channel(server: Served) -> Iterator[grpc.Channel]:
    """A channel to the session's server that takes large answers."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as opened:
        grpc.channel_ready_future(opened).result(PATIENCE_S)
        yield opened


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> pb_grpc.GRPCInferenceServiceStub:
    """The generated stub on ``channel``."""
    return pb_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def gate(server: Served) -> Iterator[Gate]:
    """The gate of ``gated``, opened in the end."""
    yield from _opened_in_the_end(server, "gated")


@pytest.fixture
def bounded_gate(server: Served) -> Iterator[Gate]:
    """The gate of ``bounded``, opened in the end."""
    yield from _opened_in_the_end(server, "bounded")


def _opened_in_the_end(server: Served, model: str) -> Iterator[Gate]:
    gate = server.gates[model]
    try:
        yield gate
    finally:
        gate.open()
        wait_until(lambda: server.waiting(model) == 0, f"{model}'s queue is empty")


@pytest.fixture
def launch(transport: str, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers of the test's own: ``launch(repository, *flags)``. They are killed in the end."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(repository: Path, *flags: str) -> ServerProcess:
            log = tmp_path / f"log-{next(numbers)}"
            process = ServerProcess(
                repository, log, flags=["--transport", transport, *flags], limits=Limits(60.0, 60.0)
            )
            stack.callback(process.kill)
            process.start()
            return process

        yield start


@pytest.fixture
def run() -> Callable[..., object]:
    """Run a coroutine to its end on a fresh event loop."""

    def to_the_end(coroutine):
        async def bounded():
            async with asyncio.timeout(2 * PATIENCE_S):
                return await coroutine

        return asyncio.run(bounded())

    return to_the_end
