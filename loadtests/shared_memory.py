"""What shared memory buys: tensors of 300 KB in the message and in shared memory, in one run.

The server is pinned to one core and the load to another. Each round measures both ways in turn, and the
ratio is taken within a round before the median is taken over the rounds. The model does next to nothing, so
that the figures are the way's alone. h2load sends the same request again and again, and so writes nothing
into the memory; the synchronous tritonclient caller writes each input and reads each output.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import torch
import tritonclient.grpc as triton

from loadtests.bench import load, targets
from loadtests.bench.load import Load
from loadtests.bench.payload import Body
from loadtests.bench.targets import Running
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

SERVER_CORE, LOAD_CORE = "0", "1"
#: An image of 3 x 224 x 224 in FP16, or of 100,352 pixels.
ROW_BYTES = 301_056
WAYS = ("message", "shared memory")

CONFIG = """
max_batch_size: 8
input {{ name: "x" data_type: TYPE_UINT8 dims: [ {size} ] }}
output {{ name: "y" data_type: TYPE_UINT8 dims: [ {outputs} ] }}
dynamic_batching {{ }}
"""


class _First(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].clone()


class _Same(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and how many bytes its output has."""

    model: str
    title: str
    module: type[torch.nn.Module]
    output_bytes: int


CASES = (
    Case("first", "300 KB in, 1 byte out", _First, 1),
    Case("same", "300 KB in, 300 KB out", _Same, ROW_BYTES),
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.shared_memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    arguments = parser.parse_args()
    load.require_h2load()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    print(
        f"{'case':24}{'load':26}{WAYS[0] + ' /s':>14}{WAYS[1] + ' /s':>20}{'ratio':>8}{'server CPU us':>20}"
    )
    with tempfile.TemporaryDirectory() as scratch, _started(Path(scratch)) as (running, memory):
        for case in CASES:
            bodies = {way: _body(Path(scratch), case, way) for way in WAYS}
            _measure(
                arguments,
                f"{case.title:24}{'h2load, 4 x 4':26}",
                lambda way, seconds, bodies=bodies: _by_h2load(running, bodies[way], seconds),
            )
            _measure(
                arguments,
                f"{case.title:24}{'one tritonclient caller':26}",
                lambda way, seconds, case=case: _by_caller(running, memory, case, way, seconds),
            )


@contextmanager
def _started(scratch: Path) -> Iterator[tuple[Running, np.ndarray]]:
    """Start the server with a registered object; yields that, mapped, too: input first, then output."""
    for case in CASES:
        (scratch / "models" / case.model / "1").mkdir(parents=True)
        config = CONFIG.format(size=ROW_BYTES, outputs=case.output_bytes)
        (scratch / "models" / case.model / "config.pbtxt").write_text(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(case.module().eval()).save(str(scratch / "models" / case.model / "1/model.pt"))
    target = targets.targets(scratch / "models", scratch)["http2"]
    target = replace(target, command=(*target.command, "--shared-memory", "on"))
    path = Path("/dev/shm") / f"tensorferry-loadtest-{os.getpid()}"
    path.write_bytes(bytes(2 * ROW_BYTES))
    try:
        with targets.started(target, SERVER_CORE) as running:
            wanted = pb.SystemSharedMemoryRegisterRequest(name="r", key=path.name, byte_size=2 * ROW_BYTES)
            with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
                pb_grpc.GRPCInferenceServiceStub(channel).SystemSharedMemoryRegister(wanted)
            yield running, np.memmap(path, np.uint8, "r+")
    finally:
        path.unlink()


def _body(scratch: Path, case: Case, way: str) -> Body:
    message = pb.ModelInferRequest(model_name=case.model)
    x = message.inputs.add(name="x", datatype="UINT8", shape=[1, ROW_BYTES])
    if way == WAYS[0]:
        message.raw_input_contents.append(bytes(ROW_BYTES))
    else:
        y = message.outputs.add(name="y")
        for tensor, size in ((x, ROW_BYTES), (y, case.output_bytes)):
            tensor.parameters["shared_memory_region"].string_param = "r"
            tensor.parameters["shared_memory_byte_size"].int64_param = size
        y.parameters["shared_memory_offset"].int64_param = ROW_BYTES
    raw = message.SerializeToString()
    framed = scratch / f"{case.model}-{WAYS.index(way)}.bin"
    framed.write_bytes(b"\0" + struct.pack(">I", len(raw)) + raw)
    return Body(raw, framed, framed, b"")


def _measure(
    arguments: argparse.Namespace, title: str, measured: Callable[[str, float], tuple[float, float]]
) -> None:
    rounds = []
    for number in range(arguments.rounds):
        order = WAYS if number % 2 else WAYS[::-1]
        found = {way: measured(way, arguments.seconds) for way in order}
        rounds.append([*found[WAYS[0]], *found[WAYS[1]]])
    message, message_us, shared, shared_us = (
        statistics.median(values) for values in zip(*rounds, strict=True)
    )
    ratio = statistics.median(each[2] / each[0] for each in rounds)
    print(f"{title}{message:14.0f}{shared:20.0f}{ratio:8.2f}{message_us:12.0f}{shared_us:8.0f}", flush=True)


def _by_h2load(running: Running, body: Body, seconds: float) -> tuple[float, float]:
    """Return requests a second, and the server's CPU time for each in microseconds."""
    sample = load.h2load(running, body, Load(4, 4, seconds), LOAD_CORE)
    if sample.failed:
        raise SystemExit(f"{sample.failed} calls failed")
    return sample.requests_per_s, sample.cpu_us


def _by_caller(
    running: Running, memory: np.ndarray, case: Case, way: str, seconds: float
) -> tuple[float, float]:
    """Return as ``_by_h2load``. The caller has an array of its own, and wants one."""
    array = np.zeros((1, ROW_BYTES), np.uint8)
    x, y = triton.InferInput("x", [1, ROW_BYTES], "UINT8"), triton.InferRequestedOutput("y")
    if way == WAYS[1]:
        x.set_shared_memory("r", ROW_BYTES)
        y.set_shared_memory("r", case.output_bytes, ROW_BYTES)
    calls, before, started = 0, running.cpu_s(), time.perf_counter()
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        while time.perf_counter() - started < seconds:
            if way == WAYS[1]:
                memory[:ROW_BYTES] = array[0]
                client.infer(case.model, [x], outputs=[y])
                memory[ROW_BYTES : ROW_BYTES + case.output_bytes].copy()
            else:
                x.set_data_from_numpy(array)
                client.infer(case.model, [x], outputs=[y]).as_numpy("y").copy()
            calls += 1
        elapsed = time.perf_counter() - started
    return calls / elapsed, (running.cpu_s() - before) / calls * 1e6


if __name__ == "__main__":
    main()
