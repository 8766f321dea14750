"""``--processes 2``: one port and one life for several servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.support import (
    PATIENCE_S,
    error_of,
    fetch,
    insist,
    sample,
    samples_of,
    wait_until,
    x_request,
    y_of,
)

from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import write_raising
from tensorferry.testing.process import SERVE, ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]
Stub = pb_grpc.GRPCInferenceServiceStub

PROCESSES = 2
#: So many connections all go to one of two processes once in 2^31 times.
CONNECTIONS = 32
CALLS_EACH = 5
#: Of the tensor in each request here: one FP32.
BYTES_EACH = 4
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gate]:
    """A repository with a gated model and a plain one."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root, write_gated(root)


@pytest.fixture
def gate(models: tuple[Path, Gate]) -> Iterator[Gate]:
    """The gate, opened in the end."""
    yield models[1]
    models[1].open()


@pytest.fixture
def server(launch: Launch, models: tuple[Path, Gate]) -> Iterator[ServerProcess]:
    """Two processes behind one port; whatever the test did, none of them stays."""
    process = launch(models[0], "--processes", str(PROCESSES))
    assert process.wait_ready() == "ready"
    workers = children(process.pid)
    assert len(workers) == PROCESSES
    yield process
    for pid in (*workers, *children(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and not yet buried."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def is_ready(server: ServerProcess) -> bool:
    return fetch(server.http_address, "/healthz/ready")[0] == 200


@contextlib.contextmanager
def stubs(
    server: ServerProcess, count: int = CONNECTIONS
) -> Iterator[list[pb_grpc.GRPCInferenceServiceStub]]:
    """Open ``count`` connections of their own; the kernel deals them out to the processes."""
    with contextlib.ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(server.grpc_address, OWN_CONNECTION))
            for _ in range(count)
        ]
        for ready in [grpc.channel_ready_future(channel) for channel in channels]:
            ready.result(PATIENCE_S)
        yield [Stub(channel) for channel in channels]


def call_all(opened: list[Stub]) -> None:
    """Make CALLS_EACH calls on each connection and check the answers."""
    calls = [
        (number, stub.ModelInfer.future(x_request("raising", number), timeout=PATIENCE_S))
        for stub in opened
        for number in range(CALLS_EACH)
    ]
    for number, call in calls:
        assert y_of(call.result()) == [2.0 * number]


def test_both_processes_answer_on_one_port_and_their_metrics_add_up(server: ServerProcess):
    with stubs(server) as opened:
        call_all(opened)
        assert all(connections_of(pid, server) for pid in children(server.pid))
    samples = samples_of(server.http_address)
    of_model = frozenset({("model", "raising"), ("version", "1")})
    assert samples["nv_inference_request_success_total", of_model] == CONNECTIONS * CALLS_EACH
    assert samples["tensorferry_response_seconds_count", of_model] == CONNECTIONS * CALLS_EACH
    assert samples["tensorferry_worker_streams", of_model] == PROCESSES
    assert samples["tensorferry_model_ready", of_model] == 1
    assert samples["tensorferry_processes", frozenset()] == PROCESSES
    assert samples["tensorferry_server_ready", frozenset()] == 1


def test_counts_outlive_the_process_that_counted_them(server: ServerProcess):
    def answered() -> float:
        return sample(server.http_address, "nv_inference_request_success_total", "raising")

    def processes() -> tuple[float, float, float]:
        samples = samples_of(server.http_address)
        names = ("tensorferry_processes", "tensorferry_process_restarts_total", "tensorferry_server_ready")
        one, two, three = (samples[name, frozenset()] for name in names)
        return one, two, three

    with stubs(server) as opened:
        call_all(opened)
    assert answered() == CONNECTIONS * CALLS_EACH
    os.kill(children(server.pid)[0], signal.SIGKILL)
    wait_until(lambda: processes() == (PROCESSES - 1, 0, 0), "one process is missing")
    assert answered() == CONNECTIONS * CALLS_EACH
    wait_until(lambda: processes() == (PROCESSES, 1, 1), "it was started again")
    assert answered() == CONNECTIONS * CALLS_EACH
    with stubs(server) as opened:
        call_all(opened)
    assert answered() == 2 * CONNECTIONS * CALLS_EACH


def test_a_process_that_hangs_counts_with_what_it_told_last(server: ServerProcess):
    def answered() -> float:
        return sample(server.http_address, "nv_inference_request_success_total", "raising")

    def processes() -> float:
        return samples_of(server.http_address)["tensorferry_processes", frozenset()]

    with stubs(server) as opened:
        call_all(opened)
    assert answered() == CONNECTIONS * CALLS_EACH
    hanging = children(server.pid)[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        assert processes() == PROCESSES - 1
        assert answered() == CONNECTIONS * CALLS_EACH
    finally:
        os.kill(hanging, signal.SIGCONT)
    wait_until(lambda: processes() == PROCESSES, "it answers again")
    assert answered() == CONNECTIONS * CALLS_EACH


def frames(server: ServerProcess) -> Iterator[dict[str, Any]]:
    """The live page's frames that are made from now on."""
    with urllib.request.urlopen(f"http://{server.http_address}/live/events", timeout=PATIENCE_S) as stream:
        is_history = False
        for line in stream:
            if line.startswith(b"event: history"):
                is_history = True
            elif not line.strip():
                is_history = False
            elif line.startswith(b"data: ") and not is_history:
                yield json.loads(line.removeprefix(b"data: "))


def latest_frame(server: ServerProcess) -> dict[str, Any]:
    return next(frames(server))


def test_readiness_and_the_page_name_a_process_that_hangs(server: ServerProcess):
    hanging = children(server.pid)[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        status, body, _ = fetch(server.http_address, "/healthz/ready")
        not_ready = json.loads(body)["not_ready"]
        assert (status, list(not_ready.values())) == (503, ["doesn't answer: it hangs, or is too busy"])
        wait_until(lambda: latest_frame(server)["server"]["not_ready"] == not_ready, "the page says so")
        assert latest_frame(server)["server"]["ready"] is False
        assert latest_frame(server)["server"]["processes"] == PROCESSES - 1
        with urllib.request.urlopen(f"http://{server.http_address}/snapshot", timeout=PATIENCE_S) as told:
            assert json.load(told)["not_ready"] == not_ready
    finally:
        os.kill(hanging, signal.SIGCONT)
    wait_until(lambda: is_ready(server), "it answers again")
    wait_until(lambda: latest_frame(server)["server"]["not_ready"] == {}, "the page says so, too")


def test_frames_come_at_their_pace_while_a_process_hangs(server: ServerProcess):
    hanging = children(server.pid)[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        # Were it waited for each time, no frame would be of less than the two seconds of that wait.
        for frame in frames(server):
            if frame["server"]["processes"] == PROCESSES - 1 and frame["interval_s"] < 1.9:
                break
    finally:
        os.kill(hanging, signal.SIGCONT)
    wait_until(lambda: is_ready(server), "it answers again")
    wait_until(lambda: latest_frame(server)["server"]["processes"] == PROCESSES, "it counts again")


def test_the_page_says_why_a_model_is_not_ready_in_the_processes(launch: Launch, tmp_path: Path):
    write_raising(tmp_path / "models")
    (tmp_path / "models" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "config.pbtxt").write_text("no config", encoding="utf-8")
    process = launch(tmp_path / "models", "--processes", str(PROCESSES))
    assert process.wait_ready() == "ready, except broken"
    not_ready = json.loads(fetch(process.http_address, "/healthz/ready")[1])["not_ready"]
    assert list(not_ready) == ["broken"]
    assert "config.pbtxt" in not_ready["broken"]
    wait_until(lambda: latest_frame(process)["server"]["not_ready"] == not_ready, "the page says why")


def test_counts_never_fall_when_a_process_is_killed_again_and_again(server: ServerProcess):
    def answered() -> float:
        return sample(server.http_address, "nv_inference_request_success_total", "raising")

    told = [0.0]
    for round_ in (1, 2):
        with stubs(server) as opened:
            call_all(opened)
        told.append(answered())
        assert told[-1] - told[-2] == CONNECTIONS * CALLS_EACH
        os.kill(children(server.pid)[0], signal.SIGKILL)
        wait_until(lambda: not is_ready(server), "one is missing")
        while not is_ready(server):
            assert answered() == told[-1]
        samples = samples_of(server.http_address)
        of_model = frozenset({("model", "raising"), ("version", "1")})
        assert samples["tensorferry_process_restarts_total", frozenset()] == round_
        assert samples["tensorferry_worker_streams", of_model] == PROCESSES
        assert samples["tensorferry_processes", frozenset()] == PROCESSES


def connections_of(pid: int, server: ServerProcess) -> int:
    """How many gRPC connections a process has accepted."""
    sockets = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()}
    port = int(server.grpc_address.rpartition(":")[2])
    # grpcio listens on an IPv6 socket, where there is IPv6, and takes IPv4's connections on it.
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for each in tables if each.exists() for line in each.read_text().splitlines()[1:]]
    established = [line for line in lines if int(line[1].rpartition(":")[2], 16) == port and line[3] == "01"]
    return sum(f"socket:[{line[9]}]" in sockets for line in established)


def test_when_one_is_killed_the_other_serves_and_it_is_started_again(server: ServerProcess):
    assert is_ready(server)
    before = children(server.pid)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: not is_ready(server), "it says that one process is missing")
    not_ready = json.loads(fetch(server.http_address, "/healthz/ready")[1])["not_ready"]
    assert fetch(server.http_address, "/healthz/live")[0] == 200
    # Whether the new one is still loading or has just come: every new connection is served.
    while not_ready:
        with stubs(server, 4) as opened:
            call_all(opened)
        not_ready = json.loads(fetch(server.http_address, "/healthz/ready")[1])["not_ready"]
    after = children(server.pid)
    assert len(after) == PROCESSES
    assert set(after) & set(before) == {before[1]}
    with stubs(server) as opened:
        call_all(opened)
        assert all(connections_of(pid, server) for pid in after)
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_all_processes_and_the_exit_is_0(
    server: ServerProcess, gate: Gate, number: signal.Signals
):
    workers = children(server.pid)
    gate.close()
    with stubs(server, 16) as opened:
        calls = [stub.ModelInfer.future(x_request("gated", n)) for n, stub in enumerate(opened)]
        wait_until(lambda: in_flight_bytes(server) == 16 * BYTES_EACH, "every request is in a process")
        server.send_signal(number)
        wait_until(lambda: not is_ready(server), "it drains")
        gate.open()
        assert [y_of(call.result(PATIENCE_S)) for call in calls] == [[2.0 * n] for n in range(16)]
    assert server.wait() == 0
    assert not any(map(is_alive, workers))
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills_them_all(server: ServerProcess, gate: Gate, second: signal.Signals):
    workers = children(server.pid)
    gate.close()
    with stubs(server, 1) as (stub,):
        running = stub.ModelInfer.future(x_request("gated", 1.0))
        wait_until(lambda: in_flight_bytes(server) == BYTES_EACH, "the request is in a process")
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(server), "it drains")
        insist(server, second)
        # The gate is closed still: nothing but the second signal can have ended them.
        assert server.wait() == 1
        assert error_of(lambda: running.result(PATIENCE_S)).code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: not any(map(is_alive, workers)), "no process stays")


def test_a_signal_before_it_is_ready_ends_it_in_order(launch: Launch, models: tuple[Path, Gate]):
    process = launch(models[0], "--processes", str(PROCESSES))
    wait_until(lambda: children(process.pid), "the first process is there")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "Traceback" not in process.log()


def test_when_the_parent_is_killed_no_process_stays(server: ServerProcess):
    workers = children(server.pid)
    server.kill()
    wait_until(lambda: not any(map(is_alive, workers)), "no process stays")
    with pytest.raises(grpc.RpcError) as caught, grpc.insecure_channel(server.grpc_address) as channel:
        Stub(channel).ModelInfer(x_request("raising", 1.0), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def in_flight_bytes(server: ServerProcess) -> float:
    return samples_of(server.http_address)["tensorferry_in_flight_bytes", frozenset()]


# -- not starting -----------------------------------------------------------------------------------


def refusal(transport: str, repository: Path, *flags: str) -> str:
    """Run two processes that must not start; return what they say."""
    flags = ("--http-port", "0", "--processes", str(PROCESSES), "--transport", transport, *flags)
    ended = subprocess.run(
        [*SERVE, "--model-repository", str(repository), *flags],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return ended.stderr


def test_a_repository_that_is_none_ends_the_parent_before_it_starts_a_process(transport: str, tmp_path: Path):
    said = refusal(transport, tmp_path / "missing", "--grpc-port", "0")
    assert str(tmp_path / "missing") in said
    assert "a server process" not in said


def test_settings_that_the_processes_refuse_end_the_parent_too(
    models: tuple[Path, Gate], transport: str, tmp_path: Path
):
    nowhere = str(tmp_path / "none.pem")
    tls = ("--tls-certificate", nowhere, "--tls-key", nowhere)
    said = refusal(transport, models[0], "--grpc-port", "0", *tls)
    assert nowhere in said
    assert "a server process refused its settings" in said


def test_a_port_that_other_processes_share_is_taken(
    server: ServerProcess, models: tuple[Path, Gate], transport: str
):
    said = refusal(transport, models[0], "--grpc-port", server.grpc_address.rpartition(":")[2])
    assert server.grpc_address in said
    with stubs(server) as opened:
        call_all(opened)
