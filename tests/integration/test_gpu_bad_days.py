"""Bad days of a whole server on an emulated GPU: what callers, probes and whoever is on call see of them."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tests.integration.support import (
    PATIENCE_S,
    error_of,
    fetch,
    outputs_of,
    request_of,
    sample,
    wait_until,
    x_request,
    y_of,
)
from torch import nn

from tensorferry.testing.emulated_control import EmulatedControl
from tensorferry.testing.models import write_identity, write_model, write_raising
from tensorferry.testing.process import Limits, ServerProcess, ServerProcessError
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

BATCHED = "dynamic_batching { }\n"
ON_GPU = BATCHED + "instance_group { kind: KIND_GPU count: 2 gpus: [ 0 ] }\n"
WITHOUT_GRAPHS = 'parameters { key: "cuda_graphs" value { string_value: "off" } }\n'
EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")
ROW_BYTES = 1 << 20
CALLERS = 8
RELOADS = 20

Stub = pb_grpc.GRPCInferenceServiceStub
Code = grpc.StatusCode


@dataclass(frozen=True)
class OnGpu:
    """A server with an emulated GPU, what can be done to that, and a client."""

    process: ServerProcess
    control: EmulatedControl
    stub: Stub


@contextmanager
def serving(root: Path, transport: str, *flags: str) -> Iterator[OnGpu]:
    """Serve ``root / "models"`` for the length of a block; it must end well, and without a race."""
    with ExitStack() as stack:
        # Not under root: a socket's path may have 107 bytes.
        socket = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "control"
        program = (sys.executable, "-m", "tensorferry.testing.emulated_server")
        program += ("--control", str(socket), "serve")
        process = stack.enter_context(
            ServerProcess(
                root / "models",
                root / "log",
                flags=("--transport", transport, *flags),
                program=program,
                limits=Limits(90.0, 60.0),
            )
        )
        channel = stack.enter_context(grpc.insecure_channel(process.grpc_address))
        yield OnGpu(process, EmulatedControl(socket), Stub(channel))


@contextmanager
def calling(server: OnGpu, model: str, callers: int = CALLERS) -> Iterator[Counter[object]]:
    """Make calls of some rows each for the length of a block; yields a count of what came of them.

    Keys are "right", "wrong", and the statuses of those that failed.
    """
    over, came = threading.Event(), Counter[object]()

    def call(caller: int) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            values = [1000.0 * caller + turn] * (1 + turn % 5)
            try:
                answer = server.stub.ModelInfer(x_request(model, *values), timeout=PATIENCE_S)
            except grpc.RpcError as error:
                came[error.code()] += 1
            else:
                came["right" if y_of(answer) == values else "wrong"] += 1

    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call, caller) for caller in range(callers)]
        try:
            yield came
        finally:
            over.set()
    for each in calls:
        each.result()


class Sum(nn.Module):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` INT32 [rows, length], zeros behind the end, to FP32 [rows, 1]."""
        return ids.sum(1, keepdim=True).to(torch.float32)


def write_summing(root: Path) -> None:
    config = (
        "max_batch_size: 8\n"
        'input { name: "ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }\n'
        'output { name: "sum" data_type: TYPE_FP32 dims: [ 1 ] }\n'
        'parameters { key: "ragged_buckets" value { string_value: "4,8,16" } }\n'
    )
    write_model(root, "sums", Sum(), config + ON_GPU)


def more_of(came: Counter[object], what: object, count: int = 50) -> None:
    """Wait until so many more calls have ended so."""
    before = came[what]
    wait_until(lambda: came[what] >= before + count, f"{count} more {what}, besides {came}")


def test_batches_that_do_not_fit_cost_no_call_and_a_row_that_does_not_is_refused(tmp_path, transport):
    write_identity(tmp_path / "models", max_batch_size=64, options=ON_GPU + WITHOUT_GRAPHS)
    with serving(tmp_path, transport) as server, calling(server, "identity") as came:
        held = server.control.ask(bytes_per_row=ROW_BYTES)["allocated"]
        more_of(came, "right")
        server.control.ask(capacity_bytes=held + 6 * ROW_BYTES)  # for both streams
        server.stub.ModelInfer(x_request("identity", *[1.0] * 64), timeout=PATIENCE_S)
        more_of(came, "right")
        assert set(came) == {"right"}
        labels = {"device": "cuda:0"}
        http = server.process.http_address
        assert sample(http, "tensorferry_device_out_of_memory_total", "identity", **labels) > 0
        assert 0 < sample(http, "tensorferry_device_row_limit", "identity", **labels) <= 6

        server.control.ask(capacity_bytes=held + ROW_BYTES // 2)
        more_of(came, Code.RESOURCE_EXHAUSTED)
        assert fetch(http, "/healthz/ready")[0] == fetch(http, "/healthz/live")[0] == 200
        server.control.ask(capacity_bytes=1 << 30)
        more_of(came, "right")
    assert set(came) == {"right", Code.RESOURCE_EXHAUSTED}


def test_a_gpu_lost_under_load_is_told_to_every_caller_and_probe_and_the_server_ends(tmp_path, transport):
    write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    write_identity(tmp_path / "models", "another", max_batch_size=8, options=ON_GPU)
    write_identity(tmp_path / "models", "on_cpu", max_batch_size=8, options=BATCHED)
    with serving(tmp_path, transport) as server:
        http = server.process.http_address
        with (
            calling(server, "identity") as came,
            calling(server, "another") as others,
            calling(server, "on_cpu", 1) as on_cpu,
        ):
            for each in (came, others, on_cpu):
                more_of(each, "right")
            server.control.ask(lose=True)
            for each in (came, others):
                more_of(each, Code.UNAVAILABLE)
            more_of(on_cpu, "right")
        assert set(came) == set(others) == {"right", Code.UNAVAILABLE}
        assert set(on_cpu) == {"right"}
        for path in ("/healthz/ready", "/healthz/live"):
            status, body, _ = fetch(http, path)
            assert status == 503
            assert b"cuda:0 failed" in body
        assert not server.stub.ServerLive(pb.ServerLiveRequest()).live
        assert sample(http, "tensorferry_device_lost", "identity") == 1
        assert fetch(http, "/")[0] == 200
        log = server.process.log()
        assert log.count("GPU lost") == 1
        assert log.count("model lost its GPU") == 2
        assert log.count("Traceback") <= 1


def streams_of(server: OnGpu) -> list[str]:
    return sorted(name for name in server.control.ask()["threads"] if "#" in name)


def test_reloads_under_load_cost_no_call_and_leave_nothing_on_the_gpu(tmp_path, transport):
    write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    config = tmp_path / "models" / "identity" / "config.pbtxt"
    text = config.read_text()
    with serving(tmp_path, transport, *EXPLICIT) as server:

        def reload(turn: int) -> None:
            delay = f"dynamic_batching {{ max_queue_delay_microseconds: {turn} }}\n"
            config.write_text(text.replace(BATCHED, delay))
            asked = pb.RepositoryModelLoadRequest(model_name="identity")
            server.stub.RepositoryModelLoad(asked, timeout=PATIENCE_S)

        held, streams = [], []
        for turns in (range(1, 3), range(3, 3 + RELOADS)):
            with calling(server, "identity", 4) as came:
                for turn in turns:
                    reload(turn)
                    more_of(came, "right", 5)
            assert set(came) == {"right"}
            # Two streams, each with a thread that launches and one that waits.
            wait_until(lambda: len(streams_of(server)) == 4, "versions that were replaced are gone")
            held.append(server.control.ask()["allocated"])
            streams.append(streams_of(server))
        assert held[0] == held[1] > 0
        assert streams[0] == streams[1]

        server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="identity"))
        wait_until(lambda: not streams_of(server), "its streams have ended")
        assert server.control.ask()["allocated"] == 0


def test_callers_that_give_up_leave_no_slot_taken(tmp_path, transport):
    write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    with serving(tmp_path, transport) as server, calling(server, "identity", 2) as came:
        for turn in range(10):
            short = [
                server.stub.ModelInfer.future(x_request("identity", 1.0), timeout=0.002 * (1 + turn % 3))
                for _ in range(50)
            ]
            given_up = [server.stub.ModelInfer.future(x_request("identity", 2.0)) for _ in range(50)]
            for call in given_up:
                call.cancel()
            ended = {call.code() for call in short}
            assert ended <= {Code.OK, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}, ended
        more_of(came, "right")
        http = server.process.http_address
        wait_until(lambda: sample(http, "nv_inference_pending_request_count", "identity") == 0, "none wait")
    assert set(came) == {"right"}


def test_answers_that_nobody_reads_hold_up_nobody_else(tmp_path, transport):
    write_identity(tmp_path / "models", dims=(4096,), max_batch_size=8, options=ON_GPU)
    asked = 1000
    with (
        serving(tmp_path, transport) as server,
        calling_wide(server) as came,
        grpc.insecure_channel(
            server.process.grpc_address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel,
    ):
        more_of(came, "right", 10)
        wide = np.full((1, 4096), 7, np.float32)
        requests = (request_of("identity", {"x": wide}, request_id=str(n)) for n in range(asked))
        answers = Stub(channel).ModelStreamInfer(requests, timeout=4 * PATIENCE_S)
        first = next(answers)
        assert not first.error_message
        more_of(came, "right", 100)
        seen = [first.infer_response, *(each.infer_response for each in answers)]
        assert [each.id for each in seen] == [str(n) for n in range(asked)]
        assert all((outputs_of(each)["y"] == wide).all() for each in seen)
    assert set(came) == {"right"}


@contextmanager
def calling_wide(server: OnGpu) -> Iterator[Counter[object]]:
    over, came = threading.Event(), Counter[object]()

    def call() -> None:
        values = np.arange(4096, dtype=np.float32).reshape(1, -1)
        while not over.is_set():
            answer = server.stub.ModelInfer(request_of("identity", {"x": values}), timeout=PATIENCE_S)
            came["right" if (outputs_of(answer)["y"] == values).all() else "wrong"] += 1

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield came
    finally:
        over.set()
        thread.join(2 * PATIENCE_S)


def test_rows_that_a_model_raises_on_fail_alone(tmp_path, transport):
    write_raising(tmp_path / "models", options=ON_GPU)
    with serving(tmp_path, transport) as server:
        numbers = [-1.0 if n % 17 == 3 else float(n) for n in range(200)]
        calls = [server.stub.ModelInfer.future(x_request("raising", x), timeout=PATIENCE_S) for x in numbers]
        came = [call.code() for call in calls]
        assert came == [Code.INTERNAL if x < 0 else Code.OK for x in numbers]
        assert [y_of(call.result()) for call, x in zip(calls, numbers, strict=True) if x >= 0] == [
            [2 * x] for x in numbers if x >= 0
        ]
        assert fetch(server.process.http_address, "/healthz/live")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_under_load_ends_every_call(tmp_path, transport, number):
    write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    with suppress(ServerProcessError), serving(tmp_path, transport) as server:  # it ends by itself
        with calling(server, "identity") as came:
            more_of(came, "right")
            server.process.send_signal(number)
            assert server.process.wait() == (0 if number == signal.SIGTERM else -number)
            more_of(came, Code.UNAVAILABLE)
        # grpcio says CANCELLED of calls that come while it closes.
        assert set(came) <= {"right", Code.UNAVAILABLE, Code.CANCELLED}


def test_ragged_requests_of_every_length_are_answered_by_graphs_of_their_bucket(tmp_path, transport):
    write_summing(tmp_path / "models")
    with serving(tmp_path, transport) as server, ThreadPoolExecutor(CALLERS) as pool:

        def call(number: int) -> bool:
            ids = np.arange(1 + number % 16, dtype=np.int32).reshape(1, -1) + number
            answer = server.stub.ModelInfer(request_of("sums", {"ids": ids}), timeout=PATIENCE_S)
            return bool(outputs_of(answer)["sum"].tolist() == [[float(ids.sum())]])

        assert all(pool.map(call, range(400)))
        labels = {"device": "cuda:0"}
        http = server.process.http_address
        assert sample(http, "tensorferry_device_batches_total", "sums", graph="true", **labels) > 0


def test_models_on_two_gpus_answer_while_callers_stream_and_large_requests_are_split(tmp_path, transport):
    two = "instance_group { kind: KIND_GPU count: 2 gpus: [ 0, 1 ] }\n"
    split = 'parameters { key: "split_oversized" value { string_value: "true" } }\n'
    cached = "response_cache { enable: true }\n"
    levels = "dynamic_batching { priority_levels: 3 default_priority_level: 2 }\n"
    write_identity(tmp_path / "models", max_batch_size=8, options=levels + two + split)
    write_identity(tmp_path / "models", "cached", max_batch_size=8, options=BATCHED + two + cached)
    flags = ("--response-cache-bytes", str(1 << 20))
    with serving(tmp_path, transport, *flags) as server, calling(server, "cached") as cached_calls:
        more_of(cached_calls, "right")

        def urgent() -> Iterator[pb.ModelInferRequest]:
            for number in range(300):
                request = x_request("identity", *[float(number)] * (1 + number % 30), request_id=str(number))
                request.parameters["priority"].uint64_param = 1 + number % 3
                yield request

        with ThreadPoolExecutor(3) as pool:
            streams = [
                pool.submit(list, server.stub.ModelStreamInfer(urgent(), timeout=2 * PATIENCE_S))
                for _ in range(3)
            ]
        for answers in (each.result() for each in streams):
            assert not any(each.error_message for each in answers)
            given = [(each.infer_response.id, y_of(each.infer_response)) for each in answers]
            assert given == [(str(number), [float(number)] * (1 + number % 30)) for number in range(300)]
        http = server.process.http_address
        for device in ("cuda:0", "cuda:1"):
            assert sum(
                sample(http, "tensorferry_device_batches_total", "identity", graph=graph, device=device)
                for graph in ("true", "false")
            )
    assert set(cached_calls) == {"right"}


def test_a_golden_file_that_the_gpu_does_not_meet_keeps_the_version_out(tmp_path, transport):
    directory = write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    newer = shutil.copytree(directory / "1", directory / "2")
    ones = np.ones((3, 1), np.float32)
    np.savez(newer / "golden.npz", **{"inputs/x": ones, "outputs/y": 2 * ones})
    with serving(tmp_path, transport, "--model-control-mode", "explicit") as server:
        asked = pb.RepositoryModelLoadRequest(model_name="identity")
        before = server.control.ask()["allocated"]
        error = error_of(lambda: server.stub.RepositoryModelLoad(asked, timeout=PATIENCE_S))
        assert "golden.npz: output 'y', row 0" in error.details()
        wait_until(lambda: not streams_of(server), "nothing of it stays")
        assert server.control.ask()["allocated"] == before


def test_several_processes_refuse_a_gpu_and_say_what_to_do(tmp_path, transport):
    write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    process = ServerProcess(
        tmp_path / "models",
        tmp_path / "log",
        flags=("--transport", transport, "--processes", "2"),
        program=(sys.executable, "-m", "tensorferry.testing.emulated_server", "serve"),
    )
    try:
        process.start()
        assert process.wait_ready() == "ready, except identity/1"
        assert "Start the server with --processes 1" in process.log()
    finally:
        process.kill()
