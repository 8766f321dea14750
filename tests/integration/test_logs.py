"""The log of a real server: what it holds, what it doesn't, and what happens when it can't be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.support import PATIENCE_S, samples_of, started, wait_until, x_request, y_of

from tensorferry.testing.models import write_raising
from tensorferry.testing.process import SERVE, ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]

FLOOD = 2000
#: For this the model raises; see ``write_raising``.
BAD = -1.0
#: A datum that is told from anything else in a log.
DATUM = 7654.25


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model, which raises for one number."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root


@contextmanager
def stub_of(address: str) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def lines_of(process: ServerProcess) -> list[dict[str, Any]]:
    """The log's lines; the last may not be whole yet."""
    texts = process.log().splitlines()
    return [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]


def failed(process: ServerProcess, request_id: str) -> dict[str, Any]:
    """Wait for the line about a call that failed."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [
            each
            for each in lines_of(process)
            if each["event"] == "call failed" and each["request_id"] == request_id
        ]
        return bool(found)

    wait_until(is_there, f"a line about {request_id!r}")
    return found[0]


def refusal(stub: pb_grpc.GRPCInferenceServiceStub, model: str, *values: float, request_id: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(x_request(model, *values, request_id=request_id), timeout=PATIENCE_S)
    return str(caught.value.details())


def test_a_failed_call_is_found_by_the_client_s_own_id_and_its_traceback_by_the_error_id(
    launch: Launch, models: Path
):
    process = launch(models, "--log-format", "json")
    process.wait_ready()
    with stub_of(process.grpc_address) as stub:
        refusal(stub, "nowhere", 1.0, request_id="call-1")
        told = refusal(stub, "raising", BAD, DATUM, request_id="call-2\n\x1b[31mforged")
    first = failed(process, "call-1")
    assert (first["level"], first["code"], first["model"]) == ("info", "NOT_FOUND", "nowhere")
    assert "nowhere" in first["reason"]
    second = failed(process, "call-2\\n\\x1b[31mforged")
    assert (second["level"], second["code"], second["model"]) == ("error", "INTERNAL", "raising")
    assert second["error_id"] in told
    raised = [line for line in lines_of(process) if line.get("error_id") == second["error_id"]]
    assert any("Traceback" in line.get("exception", "") for line in raised)
    assert str(DATUM) not in process.log()


def test_a_flood_of_bad_calls_does_not_fill_the_log(launch: Launch, models: Path):
    process = launch(models, "--log-format", "json", "--log-max-lines-per-s", "1")
    process.wait_ready()
    with stub_of(process.grpc_address) as stub:
        for number in range(0, FLOOD, 100):
            calls = [
                stub.ModelInfer.future(x_request("nowhere", 1.0, request_id=f"flood-{number + each}"))
                for each in range(100)
            ]
            assert {call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}
        refusal(stub, "raising", BAD, request_id="another kind")
        failed(process, "another kind")

    def told() -> list[dict[str, Any]]:
        return [line for line in lines_of(process) if line["event"] == "log lines left out"]

    wait_until(told, "it is said how many were left out")
    assert told()[0]["of"] == "tensorferry.calls NOT_FOUND"
    written = [line for line in lines_of(process) if line.get("code") == "NOT_FOUND"]
    assert 5 <= len(written) < FLOOD / 4
    samples = samples_of(process.http_address)
    assert samples["tensorferry_log_lines_dropped_total", frozenset()] >= FLOOD / 2
    codes = frozenset({"code": "NOT_FOUND"}.items())
    assert samples["tensorferry_request_errors_total", codes] == FLOOD


@contextmanager
def logging_to(models: Path, transport: str, stderr: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server that logs everything to ``stderr``; yield it and its address."""
    command = [*SERVE, "--model-repository", str(models), "--grpc-port", "0", "--http-port", "0"]
    flags = ["--transport", transport, "--log-level", "debug", "--log-max-lines-per-s", "100000"]
    with started([*command, *flags], stderr=stderr) as running:
        yield running


def serves_and_stops(process: subprocess.Popen[str], address: str) -> None:
    with stub_of(address) as stub:
        for number in range(FLOOD):
            refusal(stub, "nowhere", 1.0, request_id=f"{number} " + "x" * 100)
        answer = stub.ModelInfer(x_request("raising", 4.0), timeout=PATIENCE_S)
        assert y_of(answer) == [8.0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_a_standard_error_that_nobody_reads_holds_nothing_up(transport: str, models: Path):
    reading, writing = os.pipe()
    try:
        with logging_to(models, transport, writing) as (process, address):
            serves_and_stops(process, address)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_full_disk_holds_nothing_up(transport: str, models: Path):
    with (
        open("/dev/full", "wb") as full,
        logging_to(models, transport, full.fileno()) as (process, address),
    ):
        serves_and_stops(process, address)


def test_what_was_logged_before_the_end_is_there(launch: Launch, models: Path):
    process = launch(models, "--log-format", "json")
    process.wait_ready()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    events = [line["event"] for line in lines_of(process)]
    assert events[-1] == "stopped"
    assert events.index("model ready") < events.index("draining")
