"""The HTTP port: probes and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.conftest import Served
from tests.integration.support import PATIENCE_S, error_of, fetch, request_of, sample, samples_of, x_request

from tensorferry.clock import LoopClock
from tensorferry.http_port import HttpPort
from tensorferry.monitoring.families import Families, Family, from_json
from tensorferry.testing.models import write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc


def test_live_and_ready_say_yes(server: Served):
    assert fetch(server.http, "/healthz/live")[0] == 200
    status, body, kind = fetch(server.http, "/healthz/ready")
    assert status == 200
    assert json.loads(body) == {"ready": True, "not_ready": {}}
    assert kind.startswith("application/json")


def test_a_head_of_the_metrics_has_no_body(server: Served):
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        for path in ("/metrics", "/snapshot", "/healthz/live"):  # on one connection: nothing is left over
            connection.request("HEAD", path)
            response = connection.getresponse()
            assert response.status == 200
            assert int(response.headers["Content-Length"]) > 0
            assert response.read() == b""


def test_an_unknown_path_is_404(server: Served):
    assert fetch(server.http, "/nothing")[0] == 404


def test_metrics_are_prometheus_text_with_types_and_helps(server: Served):
    status, body, kind = fetch(server.http, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["nv_inference_request_success"].type == "counter"
    assert families["nv_inference_pending_request_count"].type == "gauge"
    assert families["tensorferry_batch_rows"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_counters_equal_model_statistics(server: Served, stub):
    for rows in (1, 3, 8):
        stub.ModelInfer(request_of("identity_uint8", {"x": np.zeros((rows, 2), np.uint8)}))
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="identity_uint8")).model_stats
    durations = stats.inference_stats

    def counter(name: str) -> float:
        return sample(server.http, name, "identity_uint8")

    assert counter("nv_inference_request_success_total") == durations.success.count >= 3
    assert counter("nv_inference_count_total") == stats.inference_count >= 12
    assert counter("nv_inference_exec_count_total") == stats.execution_count >= 3
    for name, duration in (
        ("request", durations.success),
        ("queue", durations.queue),
        ("compute_input", durations.compute_input),
        ("compute_infer", durations.compute_infer),
        ("compute_output", durations.compute_output),
    ):
        assert counter(f"nv_inference_{name}_duration_us_total") == duration.ns / 1000, name


def test_the_batch_histogram_is_cumulative_and_adds_up_to_the_batches(server: Served, stub):
    for rows in (1, 2, 8):
        stub.ModelInfer(request_of("identity_int8", {"x": np.zeros((rows, 2), np.int8)}))
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="identity_int8")).model_stats
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in samples_of(server.http).items()
        if name == "tensorferry_batch_rows_bucket" and ("model", "identity_int8") in labels
    )
    counts = [value for _, value in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == (float("inf"), stats.execution_count)
    of_one_row = sum(batch.compute_infer.count for batch in stats.batch_stats if batch.batch_size == 1)
    assert dict(buckets)[1.0] == of_one_row
    assert sample(server.http, "tensorferry_batch_rows_sum", "identity_int8") == stats.inference_count


def test_a_failure_is_counted_by_its_reason(server: Served, stub):
    def backend_failures() -> float:
        return sample(server.http, "nv_inference_request_failure_total", "raising", reason="BACKEND")

    before = backend_failures()
    error_of(lambda: stub.ModelInfer(x_request("raising", -1.0)))
    assert backend_failures() == before + 1


def test_nothing_stays_in_flight(server: Served, stub):
    stub.ModelInfer(x_request("raising", 1.0))
    error_of(lambda: stub.ModelInfer(x_request("raising", -1.0)))
    assert samples_of(server.http)["tensorferry_in_flight_bytes", frozenset()] == 0


def test_counts_within_one_scrape_agree(server: Served, stub):
    for rows in (1, 2, 8):
        stub.ModelInfer(request_of("identity_int16", {"x": np.zeros((rows, 2), np.int16)}))
    samples = samples_of(server.http)
    of_model = {
        (name, dict(labels).get("le")): value
        for (name, labels), value in samples.items()
        if {("model", "identity_int16"), ("version", "1")} <= labels
    }
    answered = of_model["nv_inference_request_success_total", None]
    for name, counted in (
        ("queue", answered),
        ("response", answered),
        ("run", of_model["nv_inference_exec_count_total", None]),
        ("hold", of_model["nv_inference_exec_count_total", None]),
    ):
        assert of_model[f"tensorferry_{name}_seconds_count", None] == counted >= 3
        assert of_model[f"tensorferry_{name}_seconds_bucket", "+Inf"] == counted


def test_tritons_names_stand_in_the_text_as_triton_writes_them(server: Served):
    lines = fetch(server.http, "/metrics")[1].decode().splitlines()
    assert "# TYPE nv_inference_request_success counter" in lines
    assert any(
        line.startswith('nv_inference_request_success{model="raising",version="1"} ') for line in lines
    )


def test_the_snapshot_tells_the_same_as_metrics(server: Served, stub):
    stub.ModelInfer(x_request("raising", 1.0))
    scraped = sample(server.http, "nv_inference_request_success_total", "raising")
    status, body, kind = fetch(server.http, "/snapshot")
    told = json.loads(body)
    assert status == 200
    assert kind.startswith("application/json")
    assert told["at"] > 1.7e9
    families = from_json(told["families"])
    assert families["nv_inference_request_success"].values["raising", "1"] >= scraped >= 1
    assert len(families["tensorferry_run_seconds"].distributions["raising", "1"].bounds) == 61


def test_failed_calls_are_counted_by_their_code(server: Served, stub):
    def not_found() -> float:
        return samples_of(server.http)["tensorferry_request_errors_total", frozenset({("code", "NOT_FOUND")})]

    before = not_found()
    error_of(lambda: stub.ModelInfer(x_request("nobody", 1.0)))
    assert not_found() == before + 1


def test_nothing_that_a_caller_sends_makes_a_series(server: Served, stub):
    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        # The CPU's share is known from the second second on.
        return {each for each in samples_of(server.http) if each[0] != "nv_cpu_utilization"}

    stub.ModelInfer(x_request("raising", 1.0))
    before = series()
    for number in range(50):
        odd = f'odd{number}\n"é'
        wrong = x_request(odd, 1.0, request_id=odd)
        error_of(lambda wrong=wrong: stub.ModelInfer(wrong))
        versioned = x_request("raising", 1.0)
        versioned.model_version = str(1000 + number)
        error_of(lambda versioned=versioned: stub.ModelInfer(versioned))
        right = x_request("raising", 1.0, request_id=odd)
        right.parameters[odd].string_param = odd
        right.parameters["label"].string_param = odd
        error_of(lambda right=right: stub.ModelInfer(right))
        del right.parameters["label"]
        stub.ModelInfer(right, metadata=[(f"x-odd-{number}", "1"), ("traceparent", f"odd{number}")])
    assert series() == before


# -- servers of the test's own ----------------------------------------------------------------------

Launch = Callable[..., ServerProcess]

VIEWERS = 20


def connected(process: ServerProcess, request: bytes) -> socket.socket:
    """Send something to the HTTP port over a connection whose answers nobody reads."""
    host, _, port = process.http_address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.sendall(request)
    return connection


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


def test_without_monitoring_counters_stay_and_the_page_says_how_to_have_it(launch: Launch, tmp_path: Path):
    write_raising(tmp_path / "models")
    process = launch(tmp_path / "models", "--monitoring", "off")
    assert process.wait_ready() == "ready"
    for path in ("/", "/live/events"):
        status, body, kind = fetch(process.http_address, path)
        assert (status, kind) == (404, "text/plain; charset=utf-8")
        assert "monitoring is off" in body.decode()
        assert "--monitoring on" in body.decode()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(x_request("raising", 1.0), timeout=PATIENCE_S)
    assert sample(process.http_address, "nv_inference_request_success_total", "raising") == 1
    assert sample(process.http_address, "tensorferry_batch_rows_count", "raising") == 1
    names = {name for name, _ in samples_of(process.http_address)}
    assert not {name for name in names if name.endswith("_seconds_bucket")}
    assert fetch(process.http_address, "/healthz/ready")[0] == 200


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_at_the_http_port_delays_the_end(launch: Launch, tmp_path: Path, processes: int):
    write_raising(tmp_path / "models")
    more = () if processes == 1 else ("--processes", str(processes))
    process = launch(tmp_path / "models", *more)
    assert process.wait_ready() == "ready"
    with contextlib.ExitStack() as stack:
        for _ in range(VIEWERS):
            viewer = stack.enter_context(connected(process, get("/live/events")))
            assert viewer.recv(1)
        for _ in range(3):
            stack.enter_context(connected(process, get("/metrics") * 500))  # reads nothing
            stack.enter_context(connected(process, get("/metrics")[:20]))  # never asks the whole
            stack.enter_context(connected(process, b""))
            connected(process, get("/metrics") * 20).close()  # goes away amid the answer
        assert fetch(process.http_address, "/healthz/live")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "Traceback" not in process.log()


class Large:
    """A source whose text is larger than what any kernel holds for who doesn't read."""

    async def families(self) -> Families:
        values = {(f"{number:05}" + 1000 * "x",): 1.0 for number in range(20_000)}
        return {"large": Family("large", "Large", "gauge", ("name",), values=values)}


async def ready() -> tuple[bool, dict[str, str]]:
    return True, {}


@contextlib.asynccontextmanager
async def begun(port: int) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for the large text, and read no more than its first byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
    writer.write(get("/metrics"))
    assert await reader.readexactly(1)
    try:
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
def with_large(run):
    """Run ``use(http_port, port)`` with a port over a large text."""

    def to_the_end(use):
        async def main():
            clock = LoopClock()
            http_port = HttpPort(Large(), ready, dict, clock, "there is none")
            try:
                await use(http_port, await http_port.start("127.0.0.1", 0))
            finally:
                await http_port.stop()
                clock.close()

        run(main())

    return to_the_end


def test_who_reads_nothing_of_an_answer_does_not_delay_the_end(with_large):
    async def use(http_port: HttpPort, port: int):
        http_port._write_s = 10 * PATIENCE_S  # it isn't this that lets it go
        async with begun(port):
            await http_port.stop()

    with_large(use)


def test_who_reads_nothing_of_an_answer_is_let_go_and_others_get_all(with_large):
    async def use(http_port: HttpPort, port: int):
        http_port._write_s = 0.05
        got = 0
        async with begun(port) as reader:
            # What the kernels held is there still; the rest never comes.
            await http_port_lets_go(http_port)
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(2**20):
                    got += len(data)
        assert got < 20_000_000
        http_port._write_s = PATIENCE_S
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as good,
        ):
            assert len(await good.read()) > 20_000_000

    with_large(use)


async def http_port_lets_go(http_port: HttpPort) -> None:
    """Wait until the port has no connection any more."""
    server = http_port._runner.server
    while server.connections:  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)
