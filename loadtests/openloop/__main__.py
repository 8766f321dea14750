"""Offer load to a gRPC inference server on a schedule, and report what it made of it.

The exit status is 0 if every run is valid, 1 if the generator was late, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc

from tensorferry.benchmark import arrivals
from tensorferry.benchmark.arrivals import Schedule
from tensorferry.benchmark.generator import CannotConnect, Options, Stream, run
from tensorferry.benchmark.report import Bounds, Report, analyse, write_runs
from tensorferry.benchmark.requests import messages_for

ARRIVALS = ("poisson", "uniform", "mmpp", "step", "replay")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; see the module for the exit status."""
    options = _parser().parse_args(arguments)
    try:
        messages = messages_for(
            options.target,
            options.model,
            rows=options.rows,
            count=options.bodies,
            timeout_us=options.timeout_us,
            priority=options.priority,
        )
        reports = [_measure(options, rate, messages) for rate in options.sweep or [options.rate]]
    except grpc.RpcError as error:
        print(f"{options.target} doesn't say what {options.model!r} takes: {error}", file=sys.stderr)
        return 2
    except (CannotConnect, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.out:
        # Drawing takes a second to import, and only a run that is kept needs it.
        from loadtests.openloop.plots import draw_directory

        write_runs(options.out / f"{options.name}.json", options.name, reports)
        draw_directory(options.out)
    return 0 if all(each.is_valid for each in reports) else 1


def _measure(options: argparse.Namespace, rate: float, messages: Sequence[bytes]) -> Report:
    schedule = _schedule(options, rate)
    seconds = float(schedule[-1]) if options.arrivals == "replay" and len(schedule) else options.seconds
    stream = Stream(options.model, schedule, messages, timeout_s=options.timeout_s)
    sending = Options(connections=options.connections, grace_s=options.grace_s, core=options.core)
    report = analyse(
        run(options.target, [stream], sending),
        Bounds(options.objective_ms, options.max_slip_ms, options.window_ms / 1000),
        seconds,
    )
    print(report.text(), flush=True)
    return report


def _schedule(options: argparse.Namespace, rate: float) -> Schedule:
    """``rate`` is the mean; bursts are ``--burst`` times as high as what is between them."""
    seconds, seed, burst = options.seconds, options.seed, options.burst
    if options.arrivals == "uniform":
        return arrivals.uniform(rate, seconds)
    if options.arrivals == "poisson":
        return arrivals.poisson(rate, seconds, seed)
    if options.arrivals == "replay":
        if options.file is None:
            raise ValueError("--arrivals replay needs --file: timestamps in seconds, or a CSV with --column")
        return arrivals.replay(arrivals.read_timestamps(options.file, options.column), options.speed)
    if options.arrivals == "step":
        third = seconds / 3
        low = rate * 3 / (2 + burst)
        return arrivals.step(low, low * burst, third, third, third, seed)
    calm_s, burst_s = options.dwell_ms[0] / 1000, options.dwell_ms[1] / 1000
    low = rate * (calm_s + burst_s) / (calm_s + burst * burst_s)
    return arrivals.mmpp((low, low * burst), (calm_s, burst_s), seconds, seed)


def _numbers(text: str) -> list[float]:
    return [float(each) for each in text.split(",")]


def _pair(text: str) -> list[float]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} isn't two numbers with a comma between them")
    return numbers


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is to be part of a file's name: letters, digits, - and _")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.openloop", description=__doc__)
    add = parser.add_argument
    add("--target", required=True, help="host:port, plain text")
    add("--model", required=True)
    add("--name", type=_file_name, default="server", help="what the server is called in files and plots")
    add("--arrivals", choices=ARRIVALS, default="poisson")
    add("--rate", type=float, default=1000.0, help="mean requests/s")
    add("--sweep", type=_numbers, help="rates to run one after another, such as 1000,2000,4000")
    add("--seconds", type=float, default=5.0)
    add("--seed", type=int, default=0)
    add("--burst", type=float, default=4.0, help="mmpp, step: a burst's rate over the rate between bursts")
    add("--dwell-ms", type=_pair, default=[400.0, 100.0], help="mmpp: mean length between, and of, bursts")
    add("--file", type=Path, help="replay: a timestamp in seconds a line, or a CSV file")
    add("--column", default="", help="replay: the CSV file's column of seconds")
    add("--speed", type=float, default=1.0, help="replay: how many times as fast")
    add("--rows", type=int, default=1, help="of each request")
    add("--bodies", type=int, default=16, help="different requests, sent in turn")
    add("--timeout-us", type=int, help="the request parameter: how long it may wait in the queue")
    add("--priority", type=int, help="the request parameter: 1 goes first")
    add("--timeout-s", type=float, help="the call's deadline, as grpc-timeout")
    add("--connections", type=int, default=4)
    add("--core", type=int, help="the CPU to stay on")
    add("--grace-s", type=float, default=5.0, help="how long to wait for answers after the last call")
    add("--objective-ms", type=float, default=10.0, help="within which an answer is good")
    add("--max-slip-ms", type=float, default=1.0, help="p99 of how late calls may leave in a valid run")
    add("--window-ms", type=float, default=100.0, help="of the time series")
    add("--out", type=Path, help="directory for NAME.json and the plots of all that it holds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
