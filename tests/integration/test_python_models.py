"""A Python model beside a TorchScript model: right answers, and whatever it does is its own affair."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.integration.support import (
    PATIENCE_S,
    error_of,
    outputs_of,
    request_of,
    wait_until,
    x_request,
    y_of,
)

from tensorferry.testing.models import write_identity
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

CONFIG = (
    'backend: "python"\n'
    "max_batch_size: 16\n"
    'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
    'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    "dynamic_batching { }\n"
    'parameters { key: "run_timeout_ms" value { string_value: "1000" } }\n'
)

#: Doubles its input; a negative number is a wish.
MODEL = """
import os, signal, sys, threading

class Model:
    def load(self, directory, device):
        print("loaded from", directory.name)

    def run(self, inputs):
        x = inputs["x"]
        wish = x.min()
        if wish == -1:
            raise ValueError("the model's own")
        if wish == -2:
            os.abort()
        if wish == -3:
            sys.exit(3)
        if wish == -4:
            os.kill(os.getpid(), signal.SIGKILL)
        if wish == -5:
            print("hangs now")
            threading.Event().wait()
        if wish == -6:
            print("printed", os.getpid())
        x *= 2
        return {"y": x}
"""

SCALER = """
import numpy as np

class Model:
    def load(self, directory, device):
        statistics = np.load(directory / "scaling.npz")
        self.mean, self.deviation = statistics["mean"], statistics["deviation"]

    def run(self, inputs):
        return {"scaled": (inputs["features"] - self.mean) / self.deviation}
"""

SCALER_CONFIG = (
    "max_batch_size: 64\n"
    'input { name: "features" data_type: TYPE_FP32 dims: 30 }\n'
    'output { name: "scaled" data_type: TYPE_FP32 dims: 30 }\n'
)


def write_python(root: Path, name: str, text: str = MODEL, config: str = CONFIG) -> Path:
    """Write a Python model; return its version directory."""
    version = root / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(text)
    (root / name / "config.pbtxt").write_text(config)
    return version


@pytest.fixture
def process(launch: Callable[..., ServerProcess], tmp_path: Path) -> ServerProcess:
    """A server with a Python model ``wilful`` and a TorchScript model ``calm``."""
    write_python(tmp_path / "models", "wilful")
    write_identity(tmp_path / "models", "calm")
    started = launch(tmp_path / "models")
    assert started.wait_ready() == "ready"
    return started


@pytest.fixture
def stub(process: ServerProcess) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    """A stub on that server."""
    with grpc.insecure_channel(process.grpc_address) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def children_of(pid: int) -> set[int]:
    """The processes whose parent is ``pid``."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if int(fields[1]) == pid:
                found.add(int(entry.name))
    return found


def wait_gone(pid: int) -> None:
    """Return once the process is over."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(PATIENCE_S * 1e3), f"process {pid} is left behind"
    os.close(fd)


class Caller:
    """Calls ``calm`` again and again from a thread, for the length of a ``with`` block."""

    def __init__(self, stub: pb_grpc.GRPCInferenceServiceStub) -> None:
        self.answers = 0
        self.errors: list[grpc.RpcError] = []
        self._stub = stub
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _call(self) -> None:
        while not self._stopping.is_set():
            try:
                assert y_of(self._stub.ModelInfer(x_request("calm", 7.0), timeout=PATIENCE_S)) == [7.0]
                self.answers += 1
            except grpc.RpcError as error:
                self.errors.append(error)


def test_a_python_model_scales_features(launch: Callable[..., ServerProcess], tmp_path: Path):
    version = write_python(tmp_path / "models", "scaler", SCALER, SCALER_CONFIG)
    random = np.random.default_rng(0)
    mean = random.normal(size=30).astype(np.float32)
    deviation = random.uniform(0.5, 2.0, 30).astype(np.float32)
    np.savez(version / "scaling.npz", mean=mean, deviation=deviation)
    process = launch(tmp_path / "models")
    assert process.wait_ready() == "ready"
    features = random.normal(size=(5, 30)).astype(np.float32)
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(request_of("scaler", {"features": features}), timeout=PATIENCE_S)
    np.testing.assert_array_equal(outputs_of(response)["scaled"], (features - mean) / deviation)


def test_what_the_model_raises_is_in_the_log_alone(
    process: ServerProcess, stub: pb_grpc.GRPCInferenceServiceStub
):
    message = error_of(lambda: stub.ModelInfer(x_request("wilful", -1.0))).details()
    assert "raised ValueError" in message
    assert "the model's own" not in message
    (reference,) = re.findall(r"error id ([0-9a-f]+)", message)
    # A thread writes the log: the answer may be there before it.
    wait_until(lambda: "ValueError: the model's own" in process.log(), "what it raised is in the log")
    log = process.log()
    assert reference in log
    assert "model.py" in log


def test_what_the_model_prints_is_in_the_log(process: ServerProcess, stub: pb_grpc.GRPCInferenceServiceStub):
    stub.ModelInfer(x_request("wilful", -6.0))
    wait_until(
        lambda: re.search(r"line='?printed \d+.*model=wilful", process.log()), "the line is in the log"
    )
    assert "loaded from 1" in process.log()


@pytest.mark.parametrize("wish", [-2.0, -3.0, -4.0])
def test_a_model_that_dies_again_and_again_harms_no_other(
    stub: pb_grpc.GRPCInferenceServiceStub, wish: float
):
    with Caller(stub) as caller:
        for _ in range(4):
            error = error_of(lambda: stub.ModelInfer(x_request("wilful", wish), timeout=PATIENCE_S))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert "its process" in error.details()
        wait_until(lambda: recovered(stub), "it answers again")
    assert caller.errors == []
    assert caller.answers > 0


def test_the_other_requests_of_a_deadly_ones_batch_are_answered(
    launch: Callable[..., ServerProcess], tmp_path: Path
):
    gathering = CONFIG.replace("{ }", "{ max_queue_delay_microseconds: 500000 preferred_batch_size: 4 }")
    write_python(tmp_path / "models", "wilful", config=gathering)
    process = launch(tmp_path / "models")
    assert process.wait_ready() == "ready"
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(x_request("wilful", value)) for value in (-2.0, 1.0, 2.0, 3.0)]
        assert "SIGABRT" in error_of(calls[0].result).details()
        assert [y_of(call.result()) for call in calls[1:]] == [[2.0], [4.0], [6.0]]
    assert process.log().count("model process died") >= 2, "it ran with others"


def recovered(stub: pb_grpc.GRPCInferenceServiceStub) -> bool:
    try:
        return y_of(stub.ModelInfer(x_request("wilful", 2.0), timeout=PATIENCE_S)) == [4.0]
    except grpc.RpcError:
        return False


def test_a_run_that_hangs_is_given_up_and_holds_up_no_other(stub: pb_grpc.GRPCInferenceServiceStub):
    hanging = stub.ModelInfer.future(x_request("wilful", -5.0))
    answered_meanwhile = 0
    while not hanging.done():
        assert y_of(stub.ModelInfer(x_request("calm", 7.0), timeout=PATIENCE_S)) == [7.0]
        answered_meanwhile += not hanging.done()
    assert "run_timeout_ms, 1000 ms" in error_of(hanging.result).details()
    assert answered_meanwhile > 20
    wait_until(lambda: recovered(stub), "it answers again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_server_is_the_end_of_its_models(process: ServerProcess, number: signal.Signals):
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    code = process.wait()
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    for child in children:
        wait_gone(child)


def test_a_hanging_model_does_not_outlive_the_server(
    process: ServerProcess, stub: pb_grpc.GRPCInferenceServiceStub
):
    children = children_of(process.pid)
    hanging = stub.ModelInfer.future(x_request("wilful", -5.0))
    wait_until(lambda: "hangs now" in process.log(), "it hangs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for child in children:
        wait_gone(child)
    hanging.cancel()


def test_a_process_can_be_told_by_its_name(process: ServerProcess):
    (child,) = children_of(process.pid)
    assert b"wilful/1" in Path(f"/proc/{child}/cmdline").read_bytes()


def test_a_model_that_dies_in_warm_up_is_named_and_leaves_no_process(
    launch: Callable[..., ServerProcess], tmp_path: Path
):
    write_python(
        tmp_path / "models", "broken", "import os\nclass Model:\n    def run(self, inputs): os.abort()\n"
    )
    write_identity(tmp_path / "models", "calm")
    process = launch(tmp_path / "models")
    assert "broken" in process.wait_ready()
    assert "was killed by SIGABRT" in process.log()
    wait_until(lambda: not children_of(process.pid), "no process is left")
