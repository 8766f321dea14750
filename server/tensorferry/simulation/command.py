"""``tensorferry simulate``: its flags, what they mean together, and what is printed."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensorferry.errors import SettingsError
from tensorferry.model import BatchingSpec, ModelSpec

if TYPE_CHECKING:
    from tensorferry.simulation.arrivals import Instants
    from tensorferry.simulation.curves import RunCurve
    from tensorferry.simulation.executor import LoopCosts, Machine
    from tensorferry.simulation.sweep import Study

__all__ = ["add_flags", "run"]

#: Bursts: the busy state sends this many times the mean, for a tenth of the time.
_BURST_SHARE: Final = 0.1
_BURST_FACTOR: Final = 4.0
_BURST_S: Final = 0.05

#: The step doubles the load in the middle fifth of the run.
_STEP_FACTOR: Final = 2.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the command's flags."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run-ms", metavar="ROWS:MS,...", help="run times by batch size, for example 1:0.08,64:0.25"
    )
    source.add_argument(
        "--model", type=Path, metavar="DIR", help="measure this model instead (a directory REPOSITORY/NAME)"
    )
    add("--max-batch-size", type=int, metavar="ROWS", help="default: the model's, or the largest of --run-ms")
    add("--max-queue-delay-us", type=int, metavar="US", help="hold unfull batches for so long")
    add("--streams", type=int, metavar="N", help="batches that run side by side (default: the model's, or 1)")
    add("--slots", type=int, default=1, metavar="N", help="batches that a stream takes at once (default: 1)")
    add("--copy-in-ms", metavar="ROWS:MS,...", help="time to copy a batch to the device (default: none)")
    add("--copy-out-ms", metavar="ROWS:MS,...", help="time to copy its outputs back (default: none)")
    add("--inline", action="store_true", help="run batches on the event loop's thread, as quick models do")
    add("--objective-ms", type=float, metavar="MS", help="the model's latency_objective_ms")
    add(
        "--arrivals",
        default="poisson",
        metavar="KIND",
        help="poisson, bursty, step, or a file of timestamps in seconds, one a line (default: poisson)",
    )
    add(
        "--loads",
        default="0.1,0.3,0.5,0.7,0.9,1.1,2.0",
        metavar="SHARE,...",
        help="offered loads, as shares of capacity (default: %(default)s)",
    )
    add("--seconds", type=float, default=10.0, metavar="S", help="simulated time per load (default: 10)")
    add(
        "--max-requests",
        type=int,
        default=200_000,
        metavar="N",
        help="end a load after so many requests (default: %(default)s)",
    )
    add("--request-rows", type=int, default=1, metavar="ROWS", help="rows of each request (default: 1)")
    add(
        "--noise",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="lognormal noise of run times, for example 0.1 (default: none)",
    )
    add(
        "--loop-us",
        default="0,0,0",
        metavar="IN,OUT,BATCH",
        help="time that the event loop takes for each request in, each reply, each batch (default: 0,0,0)",
    )
    add("--seed", type=int, default=0, metavar="N", help="another one gives other arrivals (default: 0)")
    add("--csv", type=Path, metavar="FILE", help="write the table as CSV")
    add("--plot", type=Path, metavar="FILE", help="draw latency and goodput against load (needs matplotlib)")


def run(parsed: argparse.Namespace) -> int:
    """Simulate a model's batching at several loads, with the server's own batcher on virtual time."""
    from tensorferry.simulation.plot import require_plotting, write_plot
    from tensorferry.simulation.report import sizing_text, table, write_csv
    from tensorferry.simulation.sweep import largest_load, run_load

    if parsed.plot is not None:
        require_plotting()  # before the work, not after it
    loads = _loads(parsed.loads)
    study = _study(parsed)
    print(_headline(study))
    points = [run_load(study, load) for load in loads]
    print(table(points, study.objective_s))
    sizing = None
    if study.objective_s != math.inf:
        sizing = largest_load(study, points)
        print(sizing_text(study, sizing))
    if parsed.csv is not None:
        write_csv(parsed.csv, points, study.objective_s)
    if parsed.plot is not None:
        write_plot(parsed.plot, study, points, sizing)
    return 0


def _study(parsed: argparse.Namespace) -> Study:
    from tensorferry.simulation.curves import pipelined
    from tensorferry.simulation.sweep import Study

    _require_positive(parsed)
    spec, run_curve = _model(parsed)
    copies = _copies(parsed)
    curve = run_curve.plus(*copies.values())
    most = max(1, spec.max_batch_size)
    if parsed.request_rows > most:
        raise SettingsError(f"--request-rows {parsed.request_rows} don't fit batches of {most} rows")
    objective_ms = spec.batching.latency_objective_ms
    if objective_ms and objective_ms <= curve(parsed.request_rows) * 1e3:
        raise SettingsError(
            f"--objective-ms {objective_ms:g} can't be met: a run of {parsed.request_rows} row(s) alone takes"
            f" {curve(parsed.request_rows) * 1e3:.3g} ms; allow more"
        )
    machine = _machine(parsed, spec, run_curve, copies)
    service = pipelined([run_curve, *copies.values()], machine.slots, most)
    return Study(
        spec=spec,
        machine=machine,
        curve=curve,
        capacity=service.capacity(most, 1 if machine.inline else machine.streams),
        arrive=partial(_arrive, parsed.arrivals, parsed.seed),
        seconds=parsed.seconds,
        max_requests=parsed.max_requests,
        request_rows=parsed.request_rows,
        objective_s=objective_ms / 1e3 or math.inf,
    )


def _model(parsed: argparse.Namespace) -> tuple[ModelSpec, RunCurve]:
    """Return what is simulated, the model's own settings replaced by those that were given."""
    from tensorferry.simulation.curves import parse_curve
    from tensorferry.simulation.simulator import specification

    if parsed.model is not None:
        from tensorferry.simulation.measure import measure

        spec, curve = measure(parsed.model)
    else:
        curve = parse_curve(parsed.run_ms)
        spec = specification(curve.rows[-1])
    batching: BatchingSpec = spec.batching
    if parsed.objective_ms is not None:
        batching = replace(batching, latency_objective_ms=parsed.objective_ms)
    if parsed.max_queue_delay_us is not None:
        batching = replace(batching, max_queue_delay_us=parsed.max_queue_delay_us)
    return replace(
        spec, max_batch_size=parsed.max_batch_size or spec.max_batch_size, batching=batching
    ), curve


def _copies(parsed: argparse.Namespace) -> dict[str, RunCurve]:
    """Return the times of the copies that were given, by their names in ``Machine``."""
    from tensorferry.simulation.curves import parse_curve

    flags = {
        "copy_in_s": ("--copy-in-ms", parsed.copy_in_ms),
        "copy_out_s": ("--copy-out-ms", parsed.copy_out_ms),
    }
    return {name: parse_curve(text, flag) for name, (flag, text) in flags.items() if text is not None}


def _machine(
    parsed: argparse.Namespace, spec: ModelSpec, curve: RunCurve, copies: dict[str, RunCurve]
) -> Machine:
    from tensorferry.simulation.curves import noisy
    from tensorferry.simulation.executor import Machine

    if parsed.inline and (parsed.streams or 1) > 1:
        raise SettingsError(f"--inline has one place to run; it doesn't go with --streams {parsed.streams}")
    if parsed.inline and (parsed.slots > 1 or copies):
        raise SettingsError(
            "--inline runs on the CPU, a batch at a time; it doesn't go with --slots and copies"
        )
    run_s = noisy(curve, parsed.noise, seed=parsed.seed) if parsed.noise else curve
    streams = parsed.streams or len(spec.devices)
    return Machine(run_s, streams, parsed.inline, _costs(parsed.loop_us), parsed.slots, **copies)


def _costs(text: str) -> LoopCosts:
    from tensorferry.simulation.executor import LoopCosts

    try:
        request_us, reply_us, batch_us = (float(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--loop-us {text!r} must be three numbers of microseconds, as in 35,35,60"
        ) from None
    if min(request_us, reply_us, batch_us) < 0:
        raise SettingsError(f"--loop-us {text!r} must not be negative")
    return LoopCosts(request_us / 1e6, reply_us / 1e6, batch_us / 1e6)


def _loads(text: str) -> list[float]:
    try:
        loads = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise SettingsError(f"--loads {text!r} must be numbers with commas between, as in 0.5,1,2") from None
    if not 0.0 < loads[0] <= loads[-1] <= 100.0:
        raise SettingsError(
            f"--loads {text!r} must be more than 0 and at most 100; 1 is the model's capacity"
        )
    return loads


def _arrive(kind: str, seed: int, rate: float, seconds: float) -> Instants:
    from tensorferry.simulation import arrivals

    if kind == "poisson":
        return arrivals.poisson(rate, seconds, seed)
    if kind == "bursty":
        quiet = (1.0 - _BURST_SHARE * _BURST_FACTOR) / (1.0 - _BURST_SHARE)
        dwells = (_BURST_S * (1.0 / _BURST_SHARE - 1.0), _BURST_S)
        return arrivals.mmpp((rate * quiet, rate * _BURST_FACTOR), dwells, seconds, seed)
    if kind == "step":
        part = seconds / 5
        return arrivals.steps([(rate, 2 * part), (_STEP_FACTOR * rate, part), (rate, 2 * part)], seed)
    try:
        times = arrivals.replay(arrivals.read_timestamps(Path(kind)), rate)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--arrivals {kind}: {error}; give poisson, bursty, step, or a file of timestamps"
        ) from None
    if len(times) < 2:
        raise SettingsError(f"--arrivals {kind} holds {len(times)} timestamps; give at least 2")
    return times[times < seconds]


def _require_positive(parsed: argparse.Namespace) -> None:
    for name in (
        "max_batch_size",
        "streams",
        "slots",
        "objective_ms",
        "seconds",
        "max_requests",
        "request_rows",
    ):
        value = getattr(parsed, name)
        if value is not None and not 0 < value < math.inf:
            raise SettingsError(f"--{name.replace('_', '-')} must be more than 0, not {value:g}")
    for name in ("noise", "max_queue_delay_us"):
        value = getattr(parsed, name)
        if value is not None and not 0 <= value < math.inf:
            raise SettingsError(f"--{name.replace('_', '-')} must be 0 or more, not {value:g}")


def _headline(study: Study) -> str:
    most = max(1, study.spec.max_batch_size)
    where = "inline" if study.machine.inline else f"{study.machine.streams} stream(s)"
    if study.machine.slots > 1:
        where += f" of {study.machine.slots} slots"
    times = ", ".join(f"{rows}: {each * 1e3:.3g}" for rows, each in study.curve.points(most).items())
    return f"run ms by rows: {times}\n{where}, capacity {study.capacity:.0f} rows/s (load 1)"
