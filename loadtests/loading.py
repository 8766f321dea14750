"""Whether other models notice that a large one is loaded and unloaded.

    python -m loadtests.loading

A small model is asked at a steady rate, open loop, in windows: in every other one, a large model is loaded
and unloaded over and over. Prints the p99 of each window, the ratio of the two windows of each round, and
its median; with ``--most-ratio`` the exit status is 1 if that is more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from tensorferry.benchmark import arrivals
from tensorferry.benchmark.generator import Options, Stream, run
from tensorferry.benchmark.requests import messages_for
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb

SMALL, LARGE = "small", "large"
_WIDTH = 4096
_SERVICE = "/inference.GRPCInferenceService/"
_LOAD_TIMEOUT_S = 60.0
_BODIES = 16
_CONFIG = (
    'max_batch_size: 2\ninput {{ name: "x" data_type: TYPE_FP32 dims: {width} }}\n'
    'output {{ name: "y" data_type: TYPE_FP32 dims: {width} }}\n'
)


@dataclass(frozen=True, slots=True)
class Window:
    """Latencies in ms from the instant at which the calls were due, and the loads meanwhile, in seconds."""

    p50_ms: float
    p99_ms: float
    longest_ms: float
    failed: int
    loads_s: tuple[float, ...] = ()


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _parsed()
    if options.write:
        _write(options.write, options.mib)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        command = [sys.executable, "-m", "loadtests.loading", "--write", str(root / "models")]
        subprocess.run([*command, "--mib", str(options.mib)], check=True)
        flags = ["--transport", "http2", "--log-level", "warning"]
        flags += ["--model-control-mode", "explicit", "--load-model", SMALL]
        with ServerProcess(root / "models", root / "log", flags=flags) as server:
            ratio = _compare(server.grpc_address, options)
        sys.stderr.write((root / "log").read_text())
    return 1 if options.most_ratio and ratio > options.most_ratio else 0


def _compare(target: str, options: argparse.Namespace) -> float:
    """Run the rounds and print them; return the median ratio of the p99s."""
    messages = messages_for(target, SMALL, count=_BODIES)
    ratios = []
    with grpc.insecure_channel(target) as channel:
        loads = _Loads(channel)
        loads.once()  # what is done once in a process, and the file into the page cache
        print(f"the first load, with nobody calling: {loads.took_s[0]:.2f} s")
        print(f"{options.rate:g} calls/s, windows of {options.seconds:g} s; ms from the instant due")
        print("round  window    p50    p99  longest  failed  loads")
        for number in range(options.rounds):
            alone = _window(target, messages, options, seed=2 * number)
            with loads.going_on():
                beside = _window(target, messages, options, seed=2 * number + 1, loads=loads)
            ratios.append(beside.p99_ms / alone.p99_ms)
            _print(number, "alone", alone)
            _print(number, "loading", beside, f"p99 x{ratios[-1]:.2f}")
    ratio = float(np.median(ratios))
    print(f"p99 while loading: x{ratio:.2f} (median of {len(ratios)} rounds)")
    return ratio


def _window(
    target: str, messages: list[bytes], options: argparse.Namespace, seed: int, loads: _Loads | None = None
) -> Window:
    schedule = arrivals.poisson(options.rate, options.seconds, seed)
    before = len(loads.took_s) if loads else 0
    result = run(target, [Stream(SMALL, schedule, messages)], Options(core=options.core))
    ok = result.status == 0
    latency_ms = (result.done_s - result.intended_s)[ok] * 1000
    p50, p99, longest = np.percentile(latency_ms, (50, 99, 100))
    return Window(
        float(p50),
        float(p99),
        float(longest),
        int((~ok).sum()),
        tuple(loads.took_s[before:]) if loads else (),
    )


def _print(number: int, name: str, window: Window, more: str = "") -> None:
    loads = f"{len(window.loads_s)}"
    if window.loads_s:
        loads += f" of {np.median(window.loads_s):.2f} s"
    print(
        f"{number:5} {name:>8} {window.p50_ms:6.2f} {window.p99_ms:6.2f} {window.longest_ms:8.2f}"
        f" {window.failed:7}  {loads:12} {more}",
        flush=True,
    )


class _Loads:
    """Loads and unloads the large model, once or over and over on a thread."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._load = _method(channel, "RepositoryModelLoad", pb.RepositoryModelLoadResponse)
        self._unload = _method(channel, "RepositoryModelUnload", pb.RepositoryModelUnloadResponse)
        #: Seconds of each load; written by the thread, appended to only.
        self.took_s: list[float] = []

    def once(self) -> None:
        """Load and unload it.

        Raises:
            grpc.RpcError: the server doesn't; its message says why.
        """
        began = time.perf_counter()
        self._load(pb.RepositoryModelLoadRequest(model_name=LARGE), timeout=_LOAD_TIMEOUT_S)
        self.took_s.append(time.perf_counter() - began)
        self._unload(pb.RepositoryModelUnloadRequest(model_name=LARGE), timeout=_LOAD_TIMEOUT_S)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Load and unload for as long as the block lasts."""
        over = threading.Event()
        failures: list[grpc.RpcError] = []

        def again_and_again() -> None:
            try:
                while not over.is_set():
                    self.once()
            except grpc.RpcError as error:
                failures.append(error)

        thread = threading.Thread(target=again_and_again)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]


def _method(channel: grpc.Channel, name: str, response: type) -> Callable[..., object]:
    return channel.unary_unary(
        _SERVICE + name,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def _write(root: Path, mib: int) -> None:
    """Write the models. In a process of its own: torch would take memory and cores from the measuring."""
    from torch import nn

    from tensorferry.testing.models import write_mlp, write_model

    layers = max(1, round(mib * 2**20 / (4 * _WIDTH * _WIDTH)))
    write_mlp(root, SMALL)
    large = nn.Sequential(*[nn.Linear(_WIDTH, _WIDTH) for _ in range(layers)])
    write_model(root, LARGE, large, _CONFIG.format(width=_WIDTH))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=700.0, help="calls/s to the small model")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=7, help="of two windows each")
    parser.add_argument("--mib", type=int, default=384, help="size of the large model, in steps of 64")
    parser.add_argument("--core", type=int, help="the generator's own core")
    parser.add_argument("--most-ratio", type=float, help="fail above this median ratio")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
