"""A churn run: a real server, calls in an open loop, and cycles beside them.

The calls come in runs of the generator, one after another until the cycles are through, since nobody
knows beforehand how long those take. Before the first cycle and after the last the same calls run
undisturbed.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtests.churn.cycles import Cycle, Job, run_cycles
from loadtests.churn.footprint import Footprint, settled
from loadtests.churn.models import STEADY, SWAPPED, write_repository
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.endings import OK, status_name
from tensorferry.benchmark.generator import Options, Stream, run
from tensorferry.benchmark.requests import messages_for
from tensorferry.testing.process import ServerProcess

__all__ = ["Calls", "Outcome", "Wishes", "measure"]

#: A server grows while it does something for the first time: thread pools, caches, allocators' arenas.
#: So many cycles go before those that count; they have every guest and every kind of swap.
_FIRST_CYCLES: Final = 50
_BODIES: Final = 16


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to run. ``rate_per_s`` is of all calls together, half of them to each model.

    ``run_s`` is the length of one run of the generator, and of the undisturbed ones. ``interval_s``
    is the least time from one cycle's start to the next one's. ``first_cycles`` aren't measured.
    """

    cycles: int
    rate_per_s: float = 500.0
    run_s: float = 10.0
    interval_s: float = 0.0
    first_cycles: int = _FIRST_CYCLES
    guests: Sequence[str] = ()
    flags: Sequence[str] = ()
    core: int | None = None
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """Calls in the order of their intended times; all arrays have the shape (calls,).

    ``intended_s`` is an instant of ``time.perf_counter``; ``latency_s`` counts from it, and is NaN where no
    answer came; ``slip_s`` is how late the call left. ``is_steady`` tells calls to the model that is
    never touched from those to the swapped one.
    """

    intended_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    slip_s: NDArray[np.float64]
    is_ok: NDArray[np.bool_]
    is_steady: NDArray[np.bool_]
    failures: dict[str, int]

    @classmethod
    def joined(cls, parts: Sequence[Calls]) -> Calls:
        """Return the calls of several runs, one after another, as one."""
        failures: dict[str, int] = {}
        for part in parts:
            for what, count in part.failures.items():
                failures[what] = failures.get(what, 0) + count
        return cls(
            np.concatenate([part.intended_s for part in parts]),
            np.concatenate([part.latency_s for part in parts]),
            np.concatenate([part.slip_s for part in parts]),
            np.concatenate([part.is_ok for part in parts]),
            np.concatenate([part.is_steady for part in parts]),
            failures,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """All that a run has measured. ``at_rest`` is before the cycles, ``at_end`` after, without callers."""

    transport: str
    guests: Sequence[str]
    cycles: Sequence[Cycle]
    before: Calls
    during: Calls
    after: Calls
    at_rest: Footprint
    at_end: Footprint


def measure(wishes: Wishes, scratch: Path, log: Path) -> Outcome:
    """Run it. ``scratch`` is for the models, ``log`` for what the server writes.

    Raises:
        ServerProcessError: the server didn't start, died, or didn't stop in order.
        CannotConnect, grpc.RpcError: it doesn't answer.
    """
    root, variants = scratch / "models", scratch / "variants"
    guests = write_repository(root, variants, wishes.guests)
    flags = ["--model-control-mode", "explicit", "--load-model", STEADY, "--load-model", SWAPPED]
    with ServerProcess(root, log, flags=[*flags, *wishes.flags]) as server, _worker() as worker:

        def cycles(first: int, count: int) -> Future[list[Cycle]]:
            job = Job(
                server.grpc_address,
                server.pid,
                root,
                variants,
                guests,
                first,
                count,
                wishes.interval_s,
            )
            return worker.submit(run_cycles, job)

        traffic = _Traffic(server.grpc_address, wishes)
        first = cycles(0, wishes.first_cycles)
        traffic.until(first)
        at_rest = settled(server.pid)
        before = traffic.offer()
        running = cycles(wishes.first_cycles, wishes.cycles)
        during = traffic.until(running)
        after = traffic.offer()
        at_end = settled(server.pid, at_rest)
        return Outcome(
            server.transport,
            guests,
            running.result(),
            before,
            during,
            after,
            at_rest,
            at_end,
        )


class _Traffic:
    """The calls, a run of the generator at a time."""

    def __init__(self, target: str, wishes: Wishes) -> None:
        self._target = target
        self._wishes = wishes
        self._runs = 0
        self._messages = [messages_for(target, name, count=_BODIES) for name in (STEADY, SWAPPED)]

    def until(self, cycles: Future[list[Cycle]]) -> Calls:
        """Offer calls until the cycles are through; raises what they raised."""
        parts = [self.offer()]
        while not cycles.done():
            parts.append(self.offer())
        cycles.result()
        return Calls.joined(parts)

    def offer(self) -> Calls:
        """Offer calls for one run's length."""
        wishes = self._wishes
        self._runs += 1
        streams = [
            Stream(
                name,
                arrivals.poisson(wishes.rate_per_s / 2, wishes.run_s, wishes.seed + 2 * self._runs + place),
                messages,
            )
            for place, (name, messages) in enumerate(zip((STEADY, SWAPPED), self._messages, strict=True))
        ]
        began_s = time.perf_counter()
        result = run(self._target, streams, Options(core=wishes.core))
        is_ok = result.status == OK
        failures: dict[str, int] = {}
        for number in result.ending[~is_ok]:
            ending = result.endings[number]
            what = f"{status_name(ending.status)}: {ending.message}"
            failures[what] = failures.get(what, 0) + 1
        return Calls(
            began_s + result.intended_s,
            np.where(is_ok, result.done_s - result.intended_s, np.nan),
            result.sent_s - result.intended_s,
            is_ok,
            result.stream == 0,
            failures,
        )


@contextmanager
def _worker() -> Iterator[ProcessPoolExecutor]:
    """A process for the cycles. Spawned: a forked one would share the generator's sockets."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as worker:
        yield worker
