"""The server inside the caller's process, on asyncio's own event loop and on uvloop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import grpc
import grpc.aio
import numpy as np
import pytest
import uvloop
from tests.integration.support import PATIENCE_S, column, outputs_of, request_of, x_request, y_of

from tensorferry.app import running
from tensorferry.config import ServerConfig
from tensorferry.control.desk import LocalDesk
from tensorferry.errors import ConfigurationError, ControlDisabled, Draining, InvalidRequest, NotFound
from tensorferry.tensors import array_of, tensor_of
from tensorferry.testing.models import Mlp, write_mlp, write_raising
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Run = Callable[[Coroutine], object]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine to its end on a fresh loop of either kind."""

    def to_the_end(coroutine: Coroutine) -> object:
        async def bounded():
            async with asyncio.timeout(2 * PATIENCE_S):
                return await coroutine

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(bounded())

    return to_the_end


@pytest.fixture
def config(transport: str, tmp_path: Path) -> ServerConfig:
    """Settings for a server of ``mlp`` and ``raising`` on free ports."""
    write_mlp(tmp_path / "models")
    write_raising(tmp_path / "models")
    return ServerConfig(model_repository=tmp_path / "models", grpc_port=0, http_port=0, transport=transport)


def test_serves_over_the_wire_and_in_the_process(run: Run, config: ServerConfig):
    features = np.random.default_rng(6).standard_normal((5, 30)).astype(np.float32)

    async def scenario():
        async with (
            running(config) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            over_the_wire = await stub.ModelInfer(request_of("mlp", {"features": features}))
            (inside,) = await server.engine.infer("mlp", [tensor_of("features", features)])
            answers = [
                y_of(answer.infer_response)
                async for answer in stub.ModelStreamInfer(iter([x_request("raising", n) for n in range(20)]))
            ]
            return outputs_of(over_the_wire)["score"], array_of(inside).copy(), answers

    over_the_wire, inside, answers = run(scenario())
    expected = Mlp()(__import__("torch").from_numpy(features)).detach().numpy()
    np.testing.assert_array_equal(over_the_wire, inside)
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-6)
    assert answers == [[2.0 * number] for number in range(20)]


def test_many_concurrent_requests(run: Run, config: ServerConfig):
    async def scenario():
        async with (
            running(config) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            answers = await asyncio.gather(
                *(stub.ModelInfer(x_request("raising", number)) for number in range(300))
            )
            return [y_of(answer) for answer in answers]

    assert run(scenario()) == [[2.0 * number] for number in range(300)]


def test_the_engine_raises_its_own_errors(run: Run, config: ServerConfig):
    async def scenario():
        async with running(config) as server:
            engine = server.engine
            with pytest.raises(NotFound, match="absent"):
                await engine.infer("absent", [tensor_of("x", column(1))])
            with pytest.raises(InvalidRequest, match="features"):
                await engine.infer("mlp", [tensor_of("x", column(1))])
        with pytest.raises(Draining):
            await engine.infer("mlp", [tensor_of("features", np.zeros((1, 30), np.float32))])

    run(scenario())


def test_leaving_answers_what_is_in_flight_and_leaves_no_thread_behind(run: Run, config: ServerConfig):
    import threading

    async def scenario():
        async with running(config) as server:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}")
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            await stub.ServerLive(pb.ServerLiveRequest())
            calls = [
                asyncio.ensure_future(server.engine.infer("raising", [tensor_of("x", column(number))]))
                for number in range(20)
            ]
            await asyncio.sleep(0)
        results = await asyncio.gather(*calls)
        await channel.close()
        return [array_of(result[0]).item() for result in results]

    assert run(scenario()) == [2.0 * number for number in range(20)]
    assert [thread.name for thread in threading.enumerate() if "#" in thread.name] == []


def test_two_servers_in_one_process_know_nothing_of_each_other(
    run: Run, config: ServerConfig, tmp_path: Path
):
    write_raising(tmp_path / "other", "second")
    other = ServerConfig(
        model_repository=tmp_path / "other", grpc_port=0, http_port=0, transport=config.transport
    )

    async def scenario():
        async with running(config) as one, running(other) as two:
            assert one.grpc_port != two.grpc_port
            (answer,) = await two.engine.infer("second", [tensor_of("x", column(2))])
            with pytest.raises(NotFound):
                await one.engine.infer("second", [tensor_of("x", column(2))])
            return array_of(answer).item()

    assert run(scenario()) == 4.0


def test_a_repository_that_is_none_is_an_error_before_anything_listens(run: Run, tmp_path: Path):
    async def scenario():
        with pytest.raises(ConfigurationError, match="absent"):
            async with running(ServerConfig(model_repository=tmp_path / "absent")):
                pass

    run(scenario())


class BrokenDesk(LocalDesk):
    """A desk that fails when the server is half made."""

    def connect(self, *_: object) -> NoReturn:
        raise ControlDisabled("this desk is broken")


@pytest.mark.usefixtures("transport")
def test_an_error_at_the_start_leaves_no_thread_behind(run: Run, config: ServerConfig):
    traced = replace(config, trace_endpoint="http://127.0.0.1:9")

    async def scenario():
        before = set(threading.enumerate())
        with pytest.raises(ControlDisabled, match="broken"):
            async with running(traced, BrokenDesk(traced)):
                pass
        assert {each.name for each in set(threading.enumerate()) - before} == set()

    run(scenario())
