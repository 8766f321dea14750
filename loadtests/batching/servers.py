"""Servers under test: started on their cores, asked for their statistics, and loaded.

Two cores carry a server, its model and the load, so where each runs is part of every figure:
``Layout`` says it, and the report repeats it. A core for the server, with all of its threads, and
another for the load is the layout in which neither takes time from the other.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.bench import load, peers, targets
from loadtests.bench.payload import Body
from loadtests.bench.targets import Running, Target
from tensorferry.benchmark.generator import Options, run
from tensorferry.benchmark.report import Bounds, Report, analyse
from tensorferry.benchmark.requests import messages_for
from tensorferry.benchmark.traffic import Result, Stream

__all__ = [
    "BOTH_CORES",
    "LAYOUTS",
    "LOAD_CORE",
    "ONE_CORE",
    "Bench",
    "Layout",
    "Server",
    "cpu_ns",
    "offer",
    "ours",
    "report_of",
    "started",
    "triton",
]

LOAD_CORE: Final = 1
#: Each takes a thousand open calls: more together than a queue's bound, and refusals on their way.
_CONNECTIONS: Final = 16
_BODIES: Final = 16
_GRACE_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Layout:
    """The cores that a server may use, as taskset takes them, and in words who is where."""

    cores: str
    says: str


ONE_CORE: Final = Layout("0", "server on core 0, load on core 1")
BOTH_CORES: Final = Layout("0,1", "server on cores 0 and 1 as the kernel sees fit, load on core 1")
#: Giving the model's stream core 0 for itself isn't among them: the server's loop would wait its
#: turn behind the load on core 1, a scheduler's slice for each batch, and the stream for the loop.
LAYOUTS: Final = {"one": ONE_CORE, "both": BOTH_CORES}


@dataclass(frozen=True, slots=True)
class Bench:
    """What all cases need. ``heavy`` is the layout of the cases whose model takes the time;
    ``rows`` is of a call in those; ``out`` is for what is kept."""

    scratch: Path
    rounds: int
    seconds: float
    heavy: Layout
    rows: int
    out: Path
    install_peers: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    running: Running

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC service."""
        return f"127.0.0.1:{self.running.port}"

    def messages(self, model: str, rows: int = 1, priority: int | None = None) -> list[bytes]:
        """Return different requests of ``rows`` rows for ``model``."""
        return messages_for(self.address, model, rows=rows, count=_BODIES, priority=priority)

    def capacity(self, message: bytes, seconds: float, streams: int = 32) -> float:
        """Return the calls/s of a closed loop: 4 connections with ``streams`` calls open on each."""
        return self._h2load(message, load.Load(4, streams, _whole(seconds))).requests_per_s

    def paced_p99_ms(self, model: str, rate: float, seconds: float) -> float:
        """Return the 99th percentile at ``rate`` calls/s, evenly paced by h2load on 32 connections."""
        paced = load.Load(32, 4, _whole(seconds), rate=rate, exact=True)
        return self._h2load(self.messages(model)[0], paced).p99_us / 1000

    def _h2load(self, message: bytes, how: load.Load) -> load.Sample:
        framed = self.running.scratch / "request.bin"
        framed.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        sample = load.h2load(self.running, Body(message, framed, framed, b""), how, str(LOAD_CORE))
        if sample.failed:
            raise SystemExit(f"{self.running.target.name}: {sample.failed} calls by h2load failed")
        return sample


@contextlib.contextmanager
def started(target: Target, layout: Layout) -> Iterator[Server]:
    """Start ``target`` where ``layout`` says, and stop it at the end."""
    with targets.started(target, layout.cores) as running:
        yield Server(running)


def ours(repository: Path) -> Target:
    """Return Tensorferry with its defaults, serving ``repository``."""
    command = (sys.executable, "-m", "tensorferry", "serve", "--model-repository", str(repository))
    ports = ("--grpc-port", "{port}", "--http-port", "0", "--log-level", "error")
    return Target("tensorferry", (*command, *ports))


def triton(repository: Path, bench: Bench) -> Target | None:
    """Return Triton on the fraud model of ``repository``; None where it isn't installed and isn't to be."""
    is_there = all((peers.ENVIRONMENTS / name / "installed").is_file() for name in ("triton", "mosec"))
    if not is_there and not bench.install_peers:
        print("triton is left out: it isn't installed, and --peers would install it", file=sys.stderr)
        return None
    return peers.targets(repository, bench.scratch).get("triton")


def offer(server: Server, traffic: Sequence[Stream]) -> Result:
    """Send ``traffic`` from the load's core."""
    options = Options(connections=_CONNECTIONS, grace_s=_GRACE_S, core=LOAD_CORE)
    return run(server.address, traffic, options)


def report_of(result: Result, seconds: float, objective_ms: float = 10.0) -> Report:
    """Analyse a run of ``seconds``; say on stderr if it isn't valid."""
    report = analyse(result, Bounds(objective_ms), seconds)
    for reason in report.invalid_because:
        print(f"    not valid: {reason}", file=sys.stderr, flush=True)
    return report


def _whole(seconds: float) -> float:
    """h2load takes whole seconds alone."""
    return float(max(1, round(seconds)))


def cpu_ns(server: Server) -> int:
    """Return the nanoseconds that the server's threads have run so far."""
    tasks = Path(f"/proc/{server.running.process.pid}/task")
    return sum(int((each / "schedstat").read_text().split()[0]) for each in tasks.iterdir())
