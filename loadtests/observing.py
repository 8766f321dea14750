"""What being observed costs a server.

    python -m loadtests.observing

First the price: saturated throughput and CPU time per request (h2load, the server on one core and the load
on the other) with everything switched off, with histograms and the page's samples, with one Prometheus
scrape a second and a viewer besides, and with traces besides; every round measures each, and ratios are
taken within the round. Then the company: p99 at a steady rate, open loop, without viewers and with 20.
Exit status 1 if a call failed or, with ``--most-cost``, if the median cost of all together is more.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.bench import load, payload, targets
from loadtests.bench.__main__ import LOAD_CORE, SERVER_CORE
from loadtests.bench.load import Load, Sample
from loadtests.bench.payload import Body
from loadtests.bench.targets import Running, Target
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.generator import Options, Stream, run

VIEWERS: Final = 20
SCRAPE_EVERY_S: Final = 1.0

#: What each way of running adds to ``serve``, and whether it is watched: scraped, and viewed by one.
WAYS: Final[dict[str, tuple[tuple[str, ...], bool]]] = {
    "off": (("--monitoring", "off"), False),
    "on": ((), False),
    "watched": ((), True),
    "traced": (("--trace-endpoint", "{collector}", "--trace-rate", "1000"), True),
}


def main() -> int:
    options = _parsed()
    load.require_h2load()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory() as scratch, _collector() as collector:
        repository = Path(scratch) / "models"
        payload.write_repository(repository)
        body = payload.fraud_body(repository)
        cost = _price(repository, collector, body, options)
        failed = _company(repository, body, options)
    return 1 if failed or (options.most_cost and cost > options.most_cost) else 0


# -- the price --------------------------------------------------------------------------------------


def _price(repository: Path, collector: str, body: Body, options: argparse.Namespace) -> float:
    """Return the median share of the throughput that everything together costs."""
    print(f"saturated, 4 connections x 32 streams, {options.seconds:g} s each; ratios within the round")
    print("round      way  requests/s  CPU us  ratio")
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        rates = {}
        for way, (flags, is_watched) in WAYS.items():
            sample = _saturated(_target(repository, collector, flags), is_watched, body, options.seconds)
            rates[way] = sample.requests_per_s
            ratios[way].append(rates[way] / rates["off"])
            line = f"{rates[way]:11,.0f} {sample.cpu_us:7.2f} {ratios[way][-1]:6.3f}"
            print(f"{number:5} {way:>8} {line}", flush=True)
    for way, each in ratios.items():
        print(f"{way:>14} {np.median(each):.3f} ({min(each):.3f}-{max(each):.3f}) of off")
    return 1.0 - float(np.median(ratios["traced"]))


def _saturated(target: Target, is_watched: bool, body: Body, seconds: float) -> Sample:
    with targets.started(target, SERVER_CORE) as running:
        load.check_answer(running, body)
        with contextlib.ExitStack() as observers:
            if is_watched:
                observers.enter_context(_viewers(running, 1))
                observers.enter_context(_scraped(running))
            sample = load.h2load(running, body, Load(4, 32, seconds), LOAD_CORE)
    if sample.failed:
        raise SystemExit(f"{target.name}: {sample.failed} calls failed")
    return sample


def _target(repository: Path, collector: str, flags: tuple[str, ...]) -> Target:
    command = (sys.executable, "-m", "tensorferry", "serve", "--model-repository", str(repository))
    command += ("--grpc-port", "{port}", "--http-port", str(_HTTP_PORT), "--log-level", "error")
    return Target("http2", (*command, *(flag.replace("{collector}", collector) for flag in flags)))


# -- the company ------------------------------------------------------------------------------------


def _company(repository: Path, body: Body, options: argparse.Namespace) -> int:
    """Return how many calls failed."""
    ratios, failed = [], 0
    print(f"{options.rate:g} calls/s, windows of {options.window_s:g} s; ms from the instant due")
    print("round  viewers    p50    p99")
    with targets.started(_target(repository, "", ()), SERVER_CORE) as running:
        for number in range(options.windows):
            p99 = {}
            for viewers in (0, VIEWERS) if number % 2 else (VIEWERS, 0):
                with _viewers(running, viewers):
                    (p50, p99[viewers]), own = _window(running, body, options, 2 * number + bool(viewers))
                failed += own
                print(f"{number:5} {viewers:8} {p50:6.2f} {p99[viewers]:6.2f}", flush=True)
            ratios.append(p99[VIEWERS] / p99[0])
    print(f"p99 with {VIEWERS} viewers: x{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return failed


def _window(
    running: Running, body: Body, options: argparse.Namespace, seed: int
) -> tuple[tuple[float, float], int]:
    schedule = arrivals.poisson(options.rate, options.window_s, seed)
    result = run(f"127.0.0.1:{running.port}", [Stream("fraud", schedule, [body.message])], Options())
    ok = result.status == 0
    p50, p99 = np.percentile((result.done_s - result.intended_s)[ok] * 1000, (50, 99))
    return (float(p50), float(p99)), int((~ok).sum())


# -- those who observe ------------------------------------------------------------------------------


@contextlib.contextmanager
def _viewers(running: Running, count: int) -> Iterator[None]:
    """Have ``count`` viewers read the live page's events for the length of a block."""
    stop = threading.Event()

    def view() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", _HTTP_PORT, timeout=5)
        connection.request("GET", "/live/events")
        response = connection.getresponse()
        while not stop.is_set() and response.readline():
            pass
        connection.close()

    yield from _threads([view] * count, stop)


@contextlib.contextmanager
def _scraped(running: Running) -> Iterator[None]:
    """Have ``/metrics`` read once a second for the length of a block."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_EVERY_S):
            connection = http.client.HTTPConnection("127.0.0.1", _HTTP_PORT, timeout=5)
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            connection.close()

    yield from _threads([scrape], stop)


def _threads(works: list[Callable[[], None]], stop: threading.Event) -> Iterator[None]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


class _Sink(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each saturated measurement")
    parser.add_argument("--rate", type=float, default=2000.0, help="calls/s beside viewers")
    parser.add_argument("--window-s", type=float, default=4.0)
    parser.add_argument("--windows", type=int, default=7, help="pairs of windows with and without viewers")
    parser.add_argument("--most-cost", type=float, help="fail above this median share, such as 0.05")
    return parser.parse_args()


_HTTP_PORT: Final = targets.free_port()

if __name__ == "__main__":
    sys.exit(main())
