"""``tensorferry bench``: drive load at a running server, and end with a latency histogram."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensorferry.errors import ConfigurationError, TensorferryError

if TYPE_CHECKING:
    from tensorferry.benchmark.bodies import Contents
    from tensorferry.benchmark.driver import Progress
    from tensorferry.benchmark.session import Found, Plan

__all__ = ["add_flags", "plan_of", "run"]

#: What the extra "tools" brings, by the name that is imported.
_NEEDED: Final = ("hdrh", "hpack", "rich")


def add_flags(parser: argparse.ArgumentParser, server: str) -> None:
    """Declare the command's arguments; ``server`` is where it goes unless told otherwise."""
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("--server", default=server, metavar="HOST:PORT", help="plain-text gRPC; default: %(default)s")
    add("--model-version", default="", metavar="N", help="default: the server chooses")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--rate", type=_positive, metavar="N", help="open loop: calls/s, answered or not")
    mode.add_argument(
        "--concurrency", type=_whole, metavar="N", help="closed loop: calls in flight (default: 16)"
    )
    mode.add_argument(
        "--sweep-rate", type=_range, metavar="A:B", help="find the best rate; needs --objective-ms"
    )
    mode.add_argument(
        "--sweep-concurrency",
        type=_range,
        metavar="A:B",
        help="find the best concurrency; needs --objective-ms",
    )
    add(
        "--arrivals",
        choices=("poisson", "uniform"),
        default="poisson",
        help="open loop; default: %(default)s",
    )
    add("--objective-ms", type=_positive, metavar="MS", help="what the percentile may be at most")
    add("--percentile", type=_percentile, default=99.0, metavar="P", help="default: %(default)g")
    add(
        "--seconds",
        type=_positive,
        default=10.0,
        metavar="S",
        help="of a run, or a step; default: %(default)g",
    )
    add("--calls", type=_whole, metavar="N", help="end after so many calls, if that is earlier")
    add("--warmup-s", type=_not_negative, default=1.0, metavar="S", help="not measured; default: %(default)g")
    add(
        "--max-slip-ms",
        type=_positive,
        default=1.0,
        metavar="MS",
        help="a run is valid if calls leave within",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add(
        "--hdr",
        type=Path,
        metavar="FILE",
        help="write the percentile distribution (.hgrm) for HdrHistogram's plotter",
    )
    _add_request_flags(parser)


def _add_request_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", type=_whole, default=1, metavar="N", help="of each request; default: %(default)s")
    add("--connections", type=_whole, default=4, metavar="N", help="default: %(default)s")
    add("--max-in-flight", type=_whole, default=10_000, metavar="N", help="open loop; default: %(default)s")
    add("--timeout-ms", type=_positive, metavar="MS", help="how long a request may wait in the queue")
    add("--priority", type=_whole, metavar="N", help="1 goes first")
    add(
        "--data", default="random", metavar="WHAT", help="random, zeros, or a .npz file; default: %(default)s"
    )
    add(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="NAME:DIMS",
        help="of an input with open dimensions, without the rows, such as x:16,4",
    )


def run(parsed: argparse.Namespace) -> int:
    """Drive load at a running server that speaks the Open Inference Protocol, and measure it.

    Ends with latencies, what the server says, and what the generator cost. Ctrl-C ends early with what
    was measured. The exit status is 1 if calls failed or the objective was missed, 2 for a wrong call.
    """
    _require_tools()
    plan = plan_of(parsed)
    _require_writable(parsed.json, parsed.hdr)
    from tensorferry.benchmark.bodies import request_bodies
    from tensorferry.benchmark.driver import Driver
    from tensorferry.benchmark.server import BenchServer
    from tensorferry.benchmark.session import Session

    server = BenchServer(plan.target)
    try:
        messages = request_bodies(server.metadata(plan.model, plan.version), _contents(parsed))
        with Driver() as driver:
            found = Session(plan, server, driver, messages, _say, _bar).run()
    except TensorferryError as error:
        print(f"tensorferry: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        print("tensorferry: interrupted twice; nothing was kept", file=sys.stderr)
        return 130
    finally:
        server.close()
    _write(found, plan, parsed)
    return _status(found, plan)


def plan_of(parsed: argparse.Namespace) -> Plan:
    """Return what the arguments ask for.

    Raises:
        ConfigurationError: they contradict each other, or lack something.
    """
    from tensorferry.benchmark.measurement import Limits
    from tensorferry.benchmark.server import read_address
    from tensorferry.benchmark.session import MOST_CALLS, Plan

    is_open = parsed.rate is not None or parsed.sweep_rate is not None
    levels = parsed.sweep_rate or parsed.sweep_concurrency or (parsed.rate or parsed.concurrency or 16,)
    if len(levels) > 1 and parsed.objective_ms is None:
        raise ConfigurationError(
            "a sweep searches the highest throughput within an objective: give it with --objective-ms, such "
            "as --objective-ms 10"
        )
    if not is_open and any(level != int(level) for level in levels):
        raise ConfigurationError("--sweep-concurrency takes whole numbers, such as 1:64")
    return Plan(
        model=parsed.model,
        target=read_address(parsed.server),
        is_open=is_open,
        levels=tuple(float(level) for level in levels),
        version=parsed.model_version,
        arrivals=parsed.arrivals,
        seconds=parsed.seconds,
        warmup_s=parsed.warmup_s,
        rows=parsed.rows,
        connections=parsed.connections,
        most_open=max(parsed.max_in_flight, parsed.connections),
        most_calls=min(parsed.calls or MOST_CALLS, MOST_CALLS),
        limits=Limits(parsed.objective_ms, parsed.percentile, parsed.max_slip_ms),
    )


def _contents(parsed: argparse.Namespace) -> Contents:
    from tensorferry.benchmark.bodies import Contents

    return Contents(
        rows=parsed.rows,
        shapes=dict(parsed.shape),
        data=parsed.data,
        version=parsed.model_version,
        timeout_us=None if parsed.timeout_ms is None else max(1, round(parsed.timeout_ms * 1000)),
        priority=parsed.priority,
    )


def _status(found: Found, plan: Plan) -> int:
    if found.best is None or not found.best.calls:
        return 1
    wanted = plan.limits.objective_ms is not None
    return 1 if found.best.has_errors or (wanted and not found.best.is_within) else 0


def _require_tools() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"bench needs {', '.join(missing)}, which isn't installed: pip install 'tensorferry[tools]'"
        )


def _require_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigurationError(f"{path}: there is no directory {path.absolute().parent}; make it first")


def _write(found: Found, plan: Plan, parsed: argparse.Namespace) -> None:
    try:
        if parsed.json is not None:
            text = json.dumps(found.to_dict(plan), indent=1, allow_nan=False) + "\n"
            parsed.json.write_text(text, encoding="utf-8")
        if parsed.hdr is not None and found.best is not None:
            parsed.hdr.write_bytes(found.best.hgrm())
    except OSError as error:
        raise ConfigurationError(f"{error.filename} can't be written: {error.strerror}") from None


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _bar(name: str, seconds: float) -> Iterator[Progress]:
    """Show a run's progress: a bar in a terminal, else nothing."""
    if not sys.stdout.isatty():
        yield lambda now_s, sent, ended: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(24),
        TextColumn("{task.fields[sent]:>10,} sent {task.fields[open]:>6,} open"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as shown:
        task = shown.add_task(name, total=seconds, sent=0, open=0)

        def told(now_s: float, sent: int, ended: int) -> None:
            shown.update(task, completed=min(now_s, seconds), sent=sent, open=sent - ended)

        yield told


def _number(text: str, *, above: float | None = None) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number") from None
    if not 0 <= value < float("inf") or (above is not None and value <= above):
        raise argparse.ArgumentTypeError(f"{text!r} is out of range: it must be more than 0")
    return value


def _positive(text: str) -> float:
    return _number(text, above=0.0)


def _not_negative(text: str) -> float:
    return _number(text)


def _whole(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number from 1 on")
    return int(text)


def _percentile(text: str) -> float:
    value = _positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a percentile: more than 0, at most 100")
    return value


def _range(text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} isn't LOW:HIGH, such as 1:64")
    ends = _positive(low), _positive(high)
    if ends[0] >= ends[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the first must be less than the second")
    return ends


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, dims = text.rpartition(":")
    sizes = dims.split(",")
    if not colon or not name or not all(each.isdigit() for each in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME:DIMS, such as x:16,4")
    return name, tuple(map(int, sizes))
