"""Days on which what stands around the server fails, or misbehaves: it serves on, and grows by nothing."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.support import (
    PATIENCE_S,
    fetch,
    fresh_metrics,
    samples_of,
    started,
    wait_until,
    x_request,
    y_of,
)

from tensorferry.http_port import COLLECTED_AT
from tensorferry.testing.models import write_raising
from tensorferry.testing.process import SERVE, Limits, ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]
Stub = pb_grpc.GRPCInferenceServiceStub
Series = tuple[str, frozenset[tuple[str, str]]]

MODEL = "raising"
AT_ONCE = 32

#: Longer than a drain with nothing to do and the last try to send traces; shorter than what an exporter's
#: own retries or an answer that never comes would take.
STOP_S = 20.0

TRACED_BEFORE = 2500  # a queue of spans is full several times, and all code has run
TRACED = 12_000
#: Without a leak it is a tenth of 1 MiB; with one kept span or one kept trace for each call, 7 MiB and more.
GROWTH_BYTES = 4 * 2**20

SCRAPES = 50
VIEWERS = 20
MOST_VIEWERS = 100
FRAMES = 3
FLOOD = 3000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model, which doubles."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root


@pytest.fixture
def watched(models: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that nobody looks at yet; its HTTP port is the same with every transport."""
    with ServerProcess(models, tmp_path / "log", limits=Limits(60.0, STOP_S)) as process:
        yield process


@contextlib.contextmanager
def stub_of(address: str) -> Iterator[Stub]:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        yield Stub(channel)


def succeed(stub: Stub, count: int) -> None:
    """Make calls, AT_ONCE at a time; each must have its own answer."""
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        calls = [stub.ModelInfer.future(x_request(MODEL, float(n)), timeout=PATIENCE_S) for n in numbers]
        assert [y_of(call.result()) for call in calls] == [[2.0 * n] for n in numbers]


@contextlib.contextmanager
def calling(address: str) -> Iterator[Callable[[], int]]:
    """Make calls for the length of a block, of which none may fail; yields how many were answered so far."""
    done = threading.Event()
    answered, failures = [0], []

    def call() -> None:
        try:
            with stub_of(address) as stub:
                while not done.is_set():
                    succeed(stub, AT_ONCE)
                    answered[0] += AT_ONCE
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield lambda: answered[0]
    finally:
        done.set()
        thread.join(PATIENCE_S)
    assert not failures
    assert not thread.is_alive()


def stop(process: ServerProcess) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.log()[-2000:]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- collectors of traces -------------------------------------------------------------------------


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port on which nobody listens, and nobody else can: it is bound."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def answering(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            handle(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """One that takes connections and what is sent, and never answers."""
    over = threading.Event()

    def keep(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        over.wait()

    with answering(keep) as port:
        yield port
        over.set()


@contextlib.contextmanager
def refusing(status: int) -> Iterator[int]:
    def refuse(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with answering(refuse) as port:
        yield port


COLLECTORS = {
    "away": nobody,
    "silent": silent,
    "failing": lambda: refusing(500),
    "overloaded": lambda: refusing(503),
}


def stream(stub: Stub, count: int) -> None:
    """Make calls as messages of one stream, some of them at once."""
    room = threading.Semaphore(AT_ONCE)

    def messages() -> Iterator[pb.ModelInferRequest]:
        request = x_request(MODEL, 3.0)
        for _ in range(count):
            room.acquire(timeout=PATIENCE_S)
            yield request

    answered = 0
    for answer in stub.ModelStreamInfer(messages(), timeout=2 * PATIENCE_S):
        assert not answer.error_message
        answered += 1
        room.release()
    assert answered == count


@pytest.mark.parametrize("how", COLLECTORS)
def test_a_bad_collector_costs_no_call_and_no_memory(models: Path, tmp_path: Path, how: str):
    pytest.importorskip("opentelemetry.sdk", reason="the extra otlp isn't installed")
    with COLLECTORS[how]() as port:
        endpoint = f"http://127.0.0.1:{port}"
        flags = ("--trace-endpoint", endpoint, "--trace-rate", "1", "--trace-max-per-s", "1e9")
        process = ServerProcess(models, tmp_path / "log", flags=flags, limits=Limits(60.0, STOP_S))
        with process, stub_of(process.grpc_address) as stub:
            stream(stub, TRACED_BEFORE)
            before = resident_bytes(process.pid)
            stream(stub, TRACED)
            assert resident_bytes(process.pid) - before < GROWTH_BYTES
            samples = samples_of(process.http_address)
            outcomes = {
                outcome: samples["tensorferry_traces_total", frozenset({"outcome": outcome}.items())]
                for outcome in ("sampled", "over_limit", "dropped")
            }
            assert outcomes["sampled"] == TRACED_BEFORE + TRACED
            assert outcomes["over_limit"] == 0
            assert outcomes["dropped"] > TRACED / 2
        assert process.log().count("traces not delivered") <= 1


# -- who looks at it ------------------------------------------------------------------------------


def test_scrapes_back_to_back_all_parse_and_cost_no_call(watched: ServerProcess):
    with calling(watched.grpc_address) as answered:
        wait_until(answered, "calls are under way")
        first, told_at = answered(), 0.0
        for _ in range(SCRAPES):
            url = f"http://{watched.http_address}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
                text = response.read().decode()
                assert float(response.headers[COLLECTED_AT]) >= told_at - 0.001
                told_at = float(response.headers[COLLECTED_AT])
            assert text.endswith("\n")
            assert len(list(text_string_to_metric_families(text))) > 40
        wait_until(lambda: answered() > first, "calls go on")
    status, body, _ = fetch(watched.http_address, "/healthz/ready")
    assert (status, json.loads(body)["ready"]) == (200, True)


def viewer(address: str, buffer_bytes: int = 0) -> socket.socket:
    """Ask for the live page's events, and read nothing yet."""
    host, _, port = address.rpartition(":")
    watching = socket.socket()
    if buffer_bytes:
        watching.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    watching.settimeout(PATIENCE_S)
    watching.connect((host, int(port)))
    watching.sendall(f"GET /live/events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    return watching


def read_until(watching: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    seen = b""
    while not wanted(seen):
        read = watching.recv(2**16)
        assert read, f"it was ended after {seen[-200:]!r}"
        seen += read
    return seen


def test_a_viewer_that_never_reads_keeps_nothing_from_others(watched: ServerProcess):
    with contextlib.ExitStack() as stack, calling(watched.grpc_address) as answered:
        sleeper = stack.enter_context(viewer(watched.http_address, 1024))
        awake = [stack.enter_context(viewer(watched.http_address)) for _ in range(VIEWERS)]
        for watching in awake:
            seen = read_until(watching, lambda seen: seen.count(b'data: {"at"') > FRAMES)
            assert b"event: history" in seen
        wait_until(answered, "calls go on")
        assert select.select([sleeper], [], [], 0)[0], "it was sent something, which it hasn't read"


def test_one_viewer_more_than_may_be_reads_why(watched: ServerProcess):
    with contextlib.ExitStack() as stack, calling(watched.grpc_address) as answered:

        def head_of_one_more() -> bytes:
            watching = stack.enter_context(viewer(watched.http_address))
            return read_until(watching, lambda seen: b"\r\n\r\n" in seen)

        for _ in range(MOST_VIEWERS):
            assert head_of_one_more().startswith(b"HTTP/1.1 200")
        assert head_of_one_more().startswith(b"HTTP/1.1 503")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{watched.http_address}/live/events", timeout=PATIENCE_S)
        assert "100 viewers watch this server" in refused.value.read().decode()
        assert fetch(watched.http_address, "/metrics")[0] == 200
        wait_until(answered, "calls go on")

    def is_one_taken() -> bool:
        with viewer(watched.http_address) as watching:
            return read_until(watching, lambda seen: b"\r\n\r\n" in seen).startswith(b"HTTP/1.1 200")

    wait_until(is_one_taken, "those who left make room")


# -- where it writes ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["its reader went away", "it was closed from the start"])
def test_a_standard_error_that_is_no_more_holds_nothing_up(models: Path, transport: str, how: str):
    command = [*SERVE, "--model-repository", str(models), "--grpc-port", "0", "--http-port", "0"]
    command += ["--transport", transport, "--log-level", "debug", "--log-max-lines-per-s", "100000"]
    streams = {}
    if how == "its reader went away":
        reading, writing = os.pipe()
        os.close(reading)
        streams["stderr"] = writing
    else:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    with started(command, **streams) as (process, address):
        if streams:
            os.close(writing)
        with stub_of(address) as stub:
            for first in range(0, FLOOD, AT_ONCE):
                calls = [stub.ModelInfer.future(x_request("nowhere", 1.0)) for _ in range(AT_ONCE)]
                assert {call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}, first
            succeed(stub, AT_ONCE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0


# -- a process that dies --------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and not yet buried."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def counts_in(text: str) -> dict[Series, float]:
    """All that may only grow: counters, and the buckets, counts and sums of histograms."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in ("counter", "histogram")
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_no_counter_falls_when_one_of_two_processes_is_killed(launch: Launch, models: Path):
    process = launch(models, "--processes", "2")
    process.wait_ready()
    victims = children(process.pid)
    assert len(victims) == 2
    last: dict[Series, float] = {}

    def look() -> dict[Series, float]:
        now = counts_in(fresh_metrics(process.http_address).decode())
        fallen = {each: (last[each], now.get(each)) for each in last if now.get(each, -1.0) < last[each]}
        assert not fallen
        last.update(now)
        return now

    restarts = ("tensorferry_process_restarts_total", frozenset[tuple[str, str]]())
    for lives, victim in enumerate(victims, start=1):
        for _ in range(8):  # connections of their own, so that both processes count
            with grpc.insecure_channel(
                process.grpc_address, [("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                succeed(Stub(channel), AT_ONCE)
            look()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda lives=lives: look()[restarts] == lives, "it is started again")
        wait_until(lambda: fetch(process.http_address, "/healthz/ready")[0] == 200, "it is ready again")
        look()
    stop(process)
