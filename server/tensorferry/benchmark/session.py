"""A whole ``bench``: warm up, run or search, ask the server before and after, and say what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tensorferry.benchmark import arrivals
from tensorferry.benchmark.arrivals import Schedule
from tensorferry.benchmark.closed import Closed
from tensorferry.benchmark.display import row_heads, step_row, summary
from tensorferry.benchmark.driver import Driver, Job, Progress
from tensorferry.benchmark.loop import Options
from tensorferry.benchmark.measurement import Limits, Measurement, measured
from tensorferry.benchmark.server import BenchServer, ServerSays, difference
from tensorferry.benchmark.sweep import Range, Step, search
from tensorferry.errors import ConfigurationError

__all__ = ["MOST_CALLS", "Found", "Plan", "Session"]

#: The most calls of a run: their times are kept until its end, about 100 bytes for each.
MOST_CALLS: Final = 20_000_000

_WARM_UP_GRACE_S: Final = 5.0

#: Shows how far a run is: a context whose value is told (seconds, sent, ended).
Bar = Callable[[str, float], AbstractContextManager[Progress]]


class _Says(Protocol):
    def __call__(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. ``levels`` is one level, or the two ends of a sweep.

    A level is calls/s in an open loop, calls in flight in a closed one. ``most_calls`` ends a closed
    loop early, and bounds an open one's schedule.
    """

    model: str
    target: str
    is_open: bool
    levels: tuple[float, ...]
    version: str = ""
    arrivals: str = "poisson"
    seconds: float = 10.0
    warmup_s: float = 1.0
    rows: int = 1
    connections: int = 4
    most_open: int = 10_000
    most_calls: int = MOST_CALLS
    limits: Limits = field(default_factory=Limits)

    @property
    def is_sweep(self) -> bool:
        """Whether a level is searched."""
        return len(self.levels) > 1


@dataclass(slots=True)
class Found:
    """What came of it: ``best`` is the run, or a sweep's answer; None if nothing kept the objective."""

    best: Measurement | None = None
    says: ServerSays | None = None
    steps: list[tuple[Step[Measurement], ServerSays | None]] = field(default_factory=list)
    was_interrupted: bool = False

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        """Return it as plain values for JSON; docs/bench.md has the schema."""
        return {
            "schema": 1,
            "model": plan.model,
            "version": plan.version or None,
            "server": plan.target,
            "rows": plan.rows,
            "connections": plan.connections,
            "percentile": plan.limits.percentile,
            "objective_ms": plan.limits.objective_ms,
            "interrupted": self.was_interrupted,
            "sweep": plan.is_sweep,
            "result": _as_dict(self.best, self.says),
            "steps": [
                {"level": step.level, "attempt": step.attempt, **(_as_dict(step.outcome, says) or {})}
                for step, says in self.steps
            ],
        }


def _as_dict(found: Measurement | None, says: ServerSays | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {**found.to_dict(), "server": None if says is None else says.to_dict()}


class Session:
    """Runs a plan against a server; ``say`` prints a line, ``bar`` shows how far a run is."""

    def __init__(
        self, plan: Plan, server: BenchServer, driver: Driver, messages: Sequence[bytes], say: _Says, bar: Bar
    ) -> None:
        self._plan = plan
        self._server = server
        self._driver = driver
        self._messages = messages
        self._say = say
        self._bar = bar

    def run(self) -> Found:
        """Run the plan to its end, or until Ctrl-C.

        Raises:
            GeneratorFailed: the server is gone before anything was sent, or the generator died.
            ConfigurationError: a run would have more calls than fit.
        """
        plan, found = self._plan, Found()
        then = f"steps of {plan.seconds:g} s" if plan.is_sweep else f"{plan.seconds:g} s"
        self._say(f"{plan.model} at {plan.target}: {plan.warmup_s:g} s of warm-up, then {then}\n")
        if plan.warmup_s > 0:
            # Errors of the warm-up come again in the run, which counts them.
            self._once(min(plan.levels), plan.warmup_s, "warm-up", plan.most_calls)
        if plan.is_sweep:
            self._search(found)
        elif not self._driver.interrupted:
            found.best, found.says = self._measure(plan.levels[0], "bench")
        found.was_interrupted = self._driver.interrupted
        if found.best is not None and found.best.calls:
            self._say(summary(found.best, found.says, "it doesn't answer ModelStatistics, or was restarted"))
        elif not plan.is_sweep:
            self._say("interrupted before anything was measured")
        return found

    def _search(self, found: Found) -> None:
        plan = self._plan
        low, high = plan.levels
        said: dict[tuple[float, int], ServerSays | None] = {}

        def measure(level: float, attempt: int) -> Measurement | None:
            if self._driver.interrupted:
                return None
            name = f"{level:,.0f} {'calls/s' if plan.is_open else 'in flight'}"
            outcome, said[level, attempt] = self._measure(level, name)
            # A step that was cut short is no measurement of its level.
            return None if self._driver.interrupted else outcome

        def note(step: Step[Measurement]) -> None:
            found.steps.append((step, said[step.level, step.attempt]))
            self._say(step_row(step, said[step.level, step.attempt]))

        self._say(row_heads(is_open=plan.is_open))
        best = search(measure, Range(low, high, is_whole=not plan.is_open), note)
        if self._driver.interrupted:
            self._say("\ninterrupted: the search isn't complete")
        if best is not None or not self._driver.interrupted:
            self._say(_answer(best, plan))
        if best is not None:
            found.best, found.says = best.outcome, said[best.level, best.attempt]

    def _measure(self, level: float, name: str) -> tuple[Measurement, ServerSays | None]:
        plan = self._plan
        before = self._server.counts(plan.model, plan.version)
        found = self._once(level, plan.seconds, name, plan.most_calls)
        after = self._server.counts(plan.model, plan.version) if before is not None else None
        says = difference(before, after) if before is not None and after is not None else None
        return found, says

    def _once(self, level: float, seconds: float, name: str, most_calls: int) -> Measurement:
        plan = self._plan
        what: Schedule | Closed
        if plan.is_open:
            what = _schedule(plan, level, seconds)[:most_calls]
        else:
            what = Closed(int(level), seconds, most_calls)
        connections = plan.connections if plan.is_open else min(plan.connections, int(level))
        options = Options(connections=connections, grace_s=_WARM_UP_GRACE_S)
        if plan.is_open:
            options = dataclasses.replace(options, most_open=plan.most_open)
        job = Job(plan.target, plan.model, self._messages, what, options)
        with self._bar(name, seconds) as progress:
            result = self._driver.run(job, progress)
        return measured(result, level=level, is_open=plan.is_open, rows=plan.rows, limits=plan.limits)


def _schedule(plan: Plan, rate: float, seconds: float) -> Schedule:
    if rate * seconds > MOST_CALLS:
        raise ConfigurationError(
            f"{rate:,.0f} calls/s for {seconds:g} s are more than the {MOST_CALLS:,} calls that a run "
            "may have: give fewer --seconds"
        )
    if plan.arrivals == "uniform":
        return arrivals.uniform(rate, seconds)
    return arrivals.poisson(rate, seconds)


def _answer(best: Step[Measurement] | None, plan: Plan) -> str:
    limits = plan.limits
    wanted = f"p{limits.percentile:g} at most {limits.objective_ms:g} ms, no errors"
    if best is None:
        return f"\nno level kept the objective ({wanted}): start lower, or allow more"
    level = f"{best.level:,.0f} {'calls/s offered' if plan.is_open else 'in flight'}"
    more = "" if best.level < plan.levels[1] else "\nthe sweep ended there: more may be possible"
    most = f"{best.outcome.calls_per_s:,.0f} calls/s, at {level}"
    return f"\nmost within the objective ({wanted}):\n{most}{more}\n"
