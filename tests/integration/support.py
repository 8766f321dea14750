"""Requests, answers and patience: what every integration test needs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tensorferry.http_port import COLLECTED_AT
from tensorferry.tensors import DATATYPES, Tensor, array_of, tensor_of
from tensorferry.testing.gate import Gate
from tensorferry.testing.process import ListeningProcess, parse_listening
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

#: No wait takes so long; one that would hang fails instead.
PATIENCE_S = 30.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as ``condition`` holds; fail if it doesn't within PATIENCE_S."""
    give_up_at = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {PATIENCE_S:g} s: {what}"
        pause.wait(0.002)


def insist(process: ListeningProcess, number: signal.Signals) -> None:
    """Send a signal until the process ends: one that comes right after another counts as that one's echo."""

    def has_ended() -> bool:
        process.send_signal(number)
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(has_ended, "the process ends")


@contextmanager
def started(command: list[str], **streams: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a command that starts a server; yield it and the server's address once it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **streams)
    try:
        assert process.stdout is not None
        address = ""
        for line in process.stdout:
            if (found := parse_listening(line)) and found[0] == "grpc":
                address = found[1]
            if line.startswith("ready"):
                break
        yield process, address
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()


def column(*values: float) -> np.ndarray:
    """FP32 rows of one number each, for the models that take such."""
    return np.array(values, dtype=np.float32).reshape(-1, 1)


def request_of(
    model: str, inputs: Mapping[str, np.ndarray | Tensor], version: str = "", request_id: str = ""
) -> pb.ModelInferRequest:
    """Build a request with raw contents."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in inputs.items():
        tensor = value if isinstance(value, Tensor) else tensor_of(name, value)
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(bytes(tensor.data))
    return request


def x_request(model: str, *values: float, request_id: str = "") -> pb.ModelInferRequest:
    """Build a request of FP32 rows for a model whose only input is ``x`` [1]."""
    return request_of(model, {"x": column(*values)}, request_id=request_id)


def outputs_of(response: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """Return the answer's outputs by name. BF16 comes as float32."""
    assert len(response.outputs) == len(response.raw_output_contents)
    arrays = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert output.datatype in DATATYPES
        arrays[output.name] = array_of(Tensor(output.name, output.datatype, tuple(output.shape), raw))
    return arrays


def y_of(response: pb.ModelInferResponse) -> list[float]:
    """Return output ``y`` as a flat list."""
    return outputs_of(response)["y"].ravel().tolist()


def occupy(gate: Gate, stub: pb_grpc.GRPCInferenceServiceStub, model: str) -> grpc.Future:
    """Close the gate and send ``model`` a request that runs until it opens; return once it runs."""
    gate.close()
    entered = gate.entered
    call = stub.ModelInfer.future(x_request(model, 100.0))
    wait_until(lambda: gate.entered > entered, f"{model} runs a batch")
    return call


def error_of(call: Callable[[], object]) -> grpc.RpcError:
    """Run a call that must fail; return its error."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded, and should have failed")


def fetch(address: str, path: str) -> tuple[int, bytes, str]:
    """GET from the HTTP port: status, body, content type."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as response:
            return response.status, response.read(), response.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers["Content-Type"]


def fresh_metrics(address: str) -> bytes:
    """Scrape ``/metrics`` until it tells of now: for a while the server may give the same answer again."""
    asked = time.time()
    bodies: list[bytes] = []

    def is_fresh() -> bool:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as response:
            bodies.append(response.read())
            return float(response.headers[COLLECTED_AT]) >= asked

    wait_until(is_fresh, "the server tells its metrics anew")
    return bodies[-1]


def samples_of(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Scrape ``/metrics`` as it is now: (sample's name, labels) to value."""
    body = fresh_metrics(address)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def sample(address: str, name: str, model: str, **labels: str) -> float:
    """Scrape one sample of a model's version 1."""
    return samples_of(address)[name, frozenset({"model": model, "version": "1", **labels}.items())]
