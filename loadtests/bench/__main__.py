"""Start each server in turn on the same model, load it, alternate, repeat; print medians and ratios.

The server is pinned to one core and the load to another. These machines are shared and drift, so
only ratios within a run mean anything: every round measures every server, and a ratio is taken
within its round before the median is taken over the rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench import load, payload, peers, report, targets
from loadtests.bench.load import Load, Sample
from loadtests.bench.payload import Body
from loadtests.bench.targets import Running

SERVER_CORE, LOAD_CORE = "0", "1"


@dataclass(frozen=True, slots=True)
class Case:
    """A load that every server is put under, and what is looked at in it."""

    name: str
    title: str
    body: str
    measure: Callable[[Running, Body, float], Sample]
    shows: str  # "rate" or "latency"


def _by_h2load(
    connections: int, streams: int, exact: bool = False
) -> Callable[[Running, Body, float], Sample]:
    def measure(running: Running, body: Body, seconds: float) -> Sample:
        return load.h2load(running, body, Load(connections, streams, seconds, exact=exact), LOAD_CORE)

    return measure


def _half_rate(running: Running, body: Body, seconds: float) -> Sample:
    """Half of what this server has just been seen to do, evenly paced on 32 connections."""
    most = load.h2load(running, body, Load(32, 4, min(seconds, 2.0)), LOAD_CORE).requests_per_s
    return load.h2load(running, body, Load(32, 4, seconds, rate=most / 2, exact=True), LOAD_CORE)


def _one_caller(running: Running, body: Body, seconds: float) -> Sample:
    return load.one_caller(running, body, int(600 * seconds))


CASES = (
    Case("saturated", "saturated: 4 connections x 32 streams", "fraud", _by_h2load(4, 32), "rate"),
    Case("many", "many connections: 128 x 1", "fraud", _by_h2load(128, 1), "rate"),
    Case("many512", "many connections: 512 x 1", "fraud", _by_h2load(512, 1), "rate"),
    Case("light", "light: 4 x 1", "fraud", _by_h2load(4, 1, exact=True), "latency"),
    Case("caller", "one synchronous Python caller", "fraud", _one_caller, "latency"),
    Case("half", "half of its own capacity, paced: 32 x 4", "fraud", _half_rate, "latency"),
    Case("image", "600 KB tensors: 4 x 4", "image", _by_h2load(4, 4), "rate"),
)


def main() -> int:
    """Measure and report; the exit status is 0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--cases", default=",".join(case.name for case in CASES), help="comma-separated")
    parser.add_argument("--servers", default="", help="comma-separated; default: all there are")
    parser.add_argument("--peers", action="store_true", help="install and measure Triton and mosec too")
    parser.add_argument("--out", type=Path, default=Path("reports/bench"))
    arguments = parser.parse_args()
    load.require_h2load()
    # The synchronous caller is this process: keep it, and what it starts, off the server's core.
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory() as scratch:
        results = _run(arguments, Path(scratch))
    report.write(results, {case.name: (case.title, case.shows) for case in CASES}, arguments.out)
    return 0


def _run(arguments: argparse.Namespace, scratch: Path) -> report.Results:
    repository = scratch / "models"
    payload.write_repository(repository)
    (scratch / "static").write_bytes(b"x" * 45)
    bodies = {"fraud": payload.fraud_body(repository), "image": payload.image_body(repository)}
    servers = targets.targets(repository, scratch)
    if arguments.peers:
        servers |= peers.targets(repository, scratch)
    wanted = arguments.servers.split(",") if arguments.servers else list(servers)
    results: report.Results = {}
    for number in range(1, arguments.rounds + 1):
        for name in wanted:
            target = servers[name]
            cases = [c for c in CASES if c.name in arguments.cases.split(",") and c.body in target.serves]
            print(f"round {number}/{arguments.rounds}: {name}", file=sys.stderr, flush=True)
            _measure(target, cases, bodies, arguments.seconds, results)
    return results


def _measure(
    target: targets.Target,
    cases: list[Case],
    bodies: dict[str, Body],
    seconds: float,
    results: report.Results,
) -> None:
    with targets.started(target, SERVER_CORE) as running:
        for case in cases:
            if target.speaks != "file":
                load.check_answer(running, bodies[case.body])
            if not target.is_grpc and case.measure is _one_caller:
                continue
            if target.speaks == "file" and case.measure is _half_rate:
                continue
            sample = case.measure(running, bodies[case.body], seconds)
            if sample.failed:
                raise SystemExit(f"{target.name}, {case.name}: {sample.failed} requests failed")
            results.setdefault(case.name, {}).setdefault(target.name, []).append(sample)


if __name__ == "__main__":
    raise SystemExit(main())
