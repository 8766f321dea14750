"""The process: how it starts, refuses to start, drains and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.support import (
    PATIENCE_S,
    error_of,
    fetch,
    insist,
    occupy,
    sample,
    wait_until,
    x_request,
    y_of,
)

from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import write_raising
from tensorferry.testing.process import SERVE, ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gate]:
    """A repository with a gated model and a plain one."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root, write_gated(root)


@pytest.fixture
def gated(models: tuple[Path, Gate]) -> Iterator[tuple[Path, Gate]]:
    """The repository and its gate, opened in the end."""
    yield models
    models[1].open()


def serve(repository: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a server that must end by itself."""
    return subprocess.run(
        [*SERVE, "--grpc-port", "0", "--http-port", "0", "--model-repository", str(repository), *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


# -- stopping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_is_in_flight_is_answered_and_the_exit_is_0(
    launch: Launch, gated: tuple[Path, Gate], number: signal.Signals
):
    repository, gate = gated
    process = launch(repository)
    assert process.wait_ready() == "ready"
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running = occupy(gate, stub, "gated")
        waiting = [stub.ModelInfer.future(x_request("gated", number)) for number in range(6)]
        wait_until(
            lambda: sample(process.http_address, "nv_inference_pending_request_count", "gated") == 6,
            "six wait",
        )
        process.send_signal(number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert fetch(process.http_address, "/healthz/ready")[0] == 503
        assert fetch(process.http_address, "/healthz/live")[0] == 200
        refused = error_of(lambda: stub.ModelInfer(x_request("raising", 1.0)))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        gate.open()
        assert y_of(running.result(PATIENCE_S)) == [200.0]
        assert [y_of(call.result(PATIENCE_S)) for call in waiting] == [[2.0 * n] for n in range(6)]
    assert process.wait() == 0
    assert "Traceback" not in process.log()


def test_what_streams_have_sent_is_answered_before_the_end(launch: Launch, gated: tuple[Path, Gate]):
    repository, gate = gated
    process = launch(repository)
    process.wait_ready()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        running = occupy(gate, stub, "gated")
        answers = stub.ModelStreamInfer(iter([x_request("gated", number) for number in range(5)]))
        wait_until(
            lambda: sample(process.http_address, "nv_inference_pending_request_count", "gated") == 5,
            "five wait",
        )
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: fetch(process.http_address, "/healthz/ready")[0] == 503, "it drains")
        gate.open()
        assert [y_of(answer.infer_response) for answer in answers] == [[2.0 * n] for n in range(5)]
        running.result(PATIENCE_S)
    assert process.wait() == 0


def test_open_streams_that_say_nothing_do_not_hold_the_end_up(launch: Launch, gated: tuple[Path, Gate]):
    repository, _ = gated
    process = launch(repository, "--drain-timeout-s", str(100 * PATIENCE_S))
    process.wait_ready()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        requests = iter([x_request("raising", 1.0)])
        answers = stub.ModelStreamInfer(_and_then_silence(requests))
        assert y_of(next(answers).infer_response) == [2.0]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def _and_then_silence(requests: Iterator[pb.ModelInferRequest]) -> Iterator[pb.ModelInferRequest]:
    yield from requests
    threading.Event().wait(2 * PATIENCE_S)


def test_the_drain_timeout_ends_what_takes_too_long(launch: Launch, gated: tuple[Path, Gate]):
    repository, gate = gated
    process = launch(repository, "--drain-timeout-s", "0.2")
    process.wait_ready()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        running = occupy(gate, stub, "gated")
        process.send_signal(signal.SIGTERM)
        error = error_of(lambda: running.result(PATIENCE_S))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    # The gate is closed still: a model that never ends keeps nobody from leaving in order.
    assert process.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_exits_at_once(launch: Launch, gated: tuple[Path, Gate], second: signal.Signals):
    repository, gate = gated
    process = launch(repository)
    process.wait_ready()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        running = occupy(gate, stub, "gated")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: fetch(process.http_address, "/healthz/ready")[0] == 503, "it drains")
        insist(process, second)
        # The gate is closed still: nothing but the second signal can have ended it.
        assert process.wait() == 1
        assert error_of(lambda: running.result(PATIENCE_S)).code() is grpc.StatusCode.UNAVAILABLE
    assert "second signal" in process.log()


def test_a_killed_server_leaves_its_ports_free(launch: Launch, gated: tuple[Path, Gate]):
    repository, gate = gated
    process = launch(repository)
    process.wait_ready()
    impatient = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
    with grpc.insecure_channel(process.grpc_address, impatient) as channel:
        running = occupy(gate, pb_grpc.GRPCInferenceServiceStub(channel), "gated")
        process.kill()
        assert error_of(lambda: running.result(PATIENCE_S)).code() is grpc.StatusCode.UNAVAILABLE
        gate.open()
        ports = [address.rpartition(":")[2] for address in (process.grpc_address, process.http_address)]
        again = launch(repository, "--grpc-port", ports[0], "--http-port", ports[1])
        assert again.wait_ready() == "ready"
        assert again.grpc_address == process.grpc_address
        # The same channel finds the new server.
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(x_request("raising", 1.0), wait_for_ready=True, timeout=PATIENCE_S)
        assert y_of(answer) == [2.0]


# -- not starting -----------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        yield somebody.getsockname()[1]


@pytest.mark.parametrize("which", ["grpc", "http"])
def test_a_port_that_is_taken(models: tuple[Path, Gate], transport: str, taken: int, which: str):
    ended = serve(models[0], "--transport", transport, f"--{which}-port", str(taken))
    assert ended.returncode == 2
    assert f"127.0.0.1:{taken}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ready" not in ended.stdout


def test_an_address_that_is_not_this_machines(models: tuple[Path, Gate], transport: str):
    ended = serve(models[0], "--transport", transport, "--host", "192.0.2.1")
    assert ended.returncode == 2
    assert "192.0.2.1" in ended.stderr
    assert "Traceback" not in ended.stderr


WRONG_CALLS = {
    "an unknown flag": (["--grcp-port", "0"], {}, "--grcp-port"),
    "a port that is none": (["--grpc-port", "grpc"], {}, "--grpc-port"),
    "a port out of range": (["--http-port", "65536"], {}, "65536"),
    "a flag that is not above 0": (["--max-queue-size", "0"], {}, "--max-queue-size"),
    "an unknown transport": (["--transport", "http3"], {}, "grpcio"),
    "a variable that does not fit": (
        [],
        {"TENSORFERRY_MAX_QUEUE_SIZE": "many"},
        "TENSORFERRY_MAX_QUEUE_SIZE",
    ),
    "an unknown variable": ([], {"TENSORFERRY_GRCP_PORT": "1"}, "TENSORFERRY_GRCP_PORT"),
    "a settings file that is missing": (["--config", "/absent.toml"], {}, "/absent.toml"),
}


@pytest.mark.parametrize("what", WRONG_CALLS)
def test_a_wrong_call_ends_with_2_and_says_what_is_wrong(models: tuple[Path, Gate], what: str):
    flags, environment, named = WRONG_CALLS[what]
    ended = serve(models[0], *flags, **environment)
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("grpc-port 1", "line 1"),
        ('grcp-port = "1"', "grcp-port"),
        ('grpc_port = "x"', "grpc_port"),
        ("[server]\ngrpc_port = 1", "server"),
        ("max_queue_size = -1", "--max-queue-size"),
    ],
)
def test_a_settings_file_that_is_wrong(models: tuple[Path, Gate], tmp_path: Path, text: str, named: str):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    ended = serve(models[0], "--config", str(file))
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("what", ["missing", "a file", "empty"])
def test_a_model_repository_that_is_none(tmp_path: Path, what: str):
    repository = tmp_path / "models"
    if what == "a file":
        repository.write_text("")
    elif what == "empty":
        repository.mkdir()
    ended = serve(repository)
    assert ended.returncode == 2
    assert str(repository) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "listening" not in ended.stdout


# -- starting ---------------------------------------------------------------------------------------


def test_flag_wins_over_variable_and_variable_over_file(
    models: tuple[Path, Gate], tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "settings.toml"
    file.write_text('log_format = "console"\nlog_level = "error"\nmax_queue_size = 7\n')
    monkeypatch.setenv("TENSORFERRY_LOG_FORMAT", "json")
    monkeypatch.setenv("TENSORFERRY_LOG_LEVEL", "warning")
    process = launch(models[0], "--config", str(file), "--log-level", "info")
    process.wait_ready()
    assert '"event": "model ready"' in process.log()
