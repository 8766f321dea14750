"""The load: h2load (nghttp2's generator, in C) from another core, and one synchronous Python caller."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from dataclasses import dataclass, replace

import grpc
import numpy as np

from loadtests.bench.payload import METHOD, Body
from loadtests.bench.targets import Running
from tensorferry.wire import open_inference_pb2 as pb

WARM_UP_S = 1
#: How long a server that listens may take until it answers.
HTTP_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. Times in microseconds; ``cpu_us`` is the server's CPU time per request.

    h2load gives percentiles only when it logs every request; otherwise ``p50_us`` is the mean and
    ``p99_us`` the maximum, and the report leaves them out.
    """

    requests_per_s: float
    cpu_us: float
    p50_us: float
    p99_us: float
    failed: int


@dataclass(frozen=True, slots=True)
class Load:
    """A load of h2load: connections, streams on each, seconds.

    ``rate`` is per second in all, 0 for as fast as it goes. ``exact`` has h2load log every
    request, which costs it some microseconds each: for loads that it isn't the limit of.
    """

    connections: int
    streams: int
    seconds: float
    rate: float = 0.0
    exact: bool = False


def require_h2load() -> None:
    """Exit with the way to get h2load if it isn't here."""
    for tool in ("h2load", "nghttpd", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install nghttp2-client nghttp2-server util-linux")


def check_answer(running: Running, body: Body) -> None:
    """Exit unless the server gives the right answer: a fast wrong one is worth nothing."""
    answer = _asked_by_grpc(running, body) if running.target.is_grpc else _asked_by_http(running, body)
    served, expected = (np.frombuffer(data, np.float32) for data in (answer, body.answer))
    if served.shape != expected.shape or not np.allclose(served, expected, atol=1e-5):
        raise SystemExit(f"{running.target.name} answers wrongly: {served[:4]} for {expected[:4]}")


def _asked_by_grpc(running: Running, body: Body) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", _channel_options()) as channel:
        reply = pb.ModelInferResponse.FromString(channel.unary_unary(METHOD)(body.message, timeout=60))
    return reply.raw_output_contents[0]


def _asked_by_http(running: Running, body: Body) -> bytes:
    url = f"http://127.0.0.1:{running.port}{running.target.path}"
    deadline = time.monotonic() + HTTP_READY_S
    while True:
        try:
            with urllib.request.urlopen(url, body.raw.read_bytes(), timeout=60) as reply:
                return bytes(reply.read())
        except OSError as error:
            # It listens before its workers have loaded the model, and answers with an error till then.
            if time.monotonic() > deadline:
                raise SystemExit(f"{running.target.name} doesn't answer: {error}") from None
        time.sleep(0.2)


def h2load(running: Running, body: Body, load: Load, core: str) -> Sample:
    """Run h2load on ``core`` against a running server."""
    target = running.target
    if target.speaks == "http1":
        # HTTP/1 has no streams: as many calls in flight take as many connections.
        load = replace(load, connections=load.connections * load.streams, streams=1)
    command = ["taskset", "-c", core, "h2load", f"-c{load.connections}", f"-m{load.streams}"]
    command += [f"-D{load.seconds:g}", f"--warm-up-time={WARM_UP_S}"]
    if load.rate:
        command.append(f"--rps={load.rate / load.connections:g}")
    if target.speaks == "grpc":
        command += ["-d", str(body.framed), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    elif target.speaks == "http1":
        command += ["--h1", "-d", str(body.raw)]
    log = running.scratch / "h2load.tsv" if load.exact else None
    if log:
        log.unlink(missing_ok=True)
        command.append(f"--log-file={log}")
    command.append(f"http://127.0.0.1:{running.port}{target.path}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(WARM_UP_S)
    before = running.cpu_s()
    output = process.communicate(timeout=load.seconds + 60)[0].decode()
    sample = _parsed(output, running.cpu_s() - before)
    if log:
        times = np.loadtxt(log, usecols=2, ndmin=1)
        p50, p99 = np.percentile(times, (50, 99))
        sample = replace(sample, p50_us=float(p50), p99_us=float(p99))
    return sample


def one_caller(running: Running, body: Body, calls: int) -> Sample:
    """A synchronous Python caller with one call in flight, as most application code is."""
    latencies = np.empty(calls)
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", _channel_options()) as channel:
        call = channel.unary_unary(METHOD)
        for _ in range(calls // 5):
            call(body.message)
        before, started = running.cpu_s(), time.perf_counter()
        for index in range(calls):
            sent = time.perf_counter()
            call(body.message)
            latencies[index] = time.perf_counter() - sent
        elapsed = time.perf_counter() - started
        cpu = running.cpu_s() - before
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e6
    return Sample(calls / elapsed, cpu / calls * 1e6, float(p50), float(p99), 0)


def _parsed(output: str, cpu_s: float) -> Sample:
    rate = re.search(r"([\d.]+) req/s", output)
    totals = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    times = re.search(r"time for request:\s+(\S+)\s+(\S+)\s+(\S+)", output)
    if not (rate and totals and times) or not int(totals[1]):
        raise SystemExit(f"h2load measured nothing:\n{output}")
    return Sample(
        float(rate[1]),
        cpu_s / int(totals[1]) * 1e6,
        _microseconds(times[3]),
        _microseconds(times[2]),
        sum(int(totals[group]) for group in (2, 3, 4)),
    )


def _microseconds(text: str) -> float:
    for suffix, factor in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    raise ValueError(text)


def _channel_options() -> list[tuple[str, int]]:
    return [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
