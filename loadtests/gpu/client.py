"""A process that sends: ``python -m loadtests.gpu.client`` does the jobs that come on its standard input.

It is a gRPC client of the project's own (``tensorferry.benchmark``), on HTTP/2 connections over loopback.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections import Counter
from typing import Final

import numpy as np

from loadtests.gpu.jobs import Job, Sent
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.closed import Closed, run_closed
from tensorferry.benchmark.endings import OK
from tensorferry.benchmark.generator import run
from tensorferry.benchmark.loop import Options
from tensorferry.benchmark.traffic import Result, Stream

__all__ = ["main"]

#: How long the last answers are waited for, in seconds.
_GRACE_S: Final = 5.0
_MOST_CALLS: Final = 10**9


class _Began:
    """Notes when a run began: its times are relative to that."""

    def __init__(self) -> None:
        self.began_s = 0.0
        self.stop = False

    def tell(self, now_s: float, sent: int, ended: int) -> None:
        self.began_s = self.began_s or time.perf_counter() - now_s


def main() -> int:
    """Say that it is there; do jobs until there are no more."""
    _say(None)
    while True:
        try:
            job: Job | None = pickle.load(sys.stdin.buffer)
        except EOFError:
            return 0
        try:
            found: Sent | str | None = None if job is None else _done(job)
        except Exception as error:  # who waits for the job must hear of it
            found = f"{type(error).__name__}: {error}"
        _say(found)


def _say(what: Sent | str | None) -> None:
    pickle.dump(what, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _done(job: Job) -> Sent:
    watch = _Began()
    options = Options(connections=job.connections, grace_s=_GRACE_S)
    if job.rate_per_s:
        schedule = arrivals.poisson(job.rate_per_s, job.seconds, job.seed)
        result = run(job.target, [Stream("", schedule, job.messages)], options, watch)
        since_s = result.intended_s
    else:
        plan = Closed(job.in_flight, job.seconds, _MOST_CALLS)
        result = run_closed(job.target, Stream("", np.empty(0), job.messages), plan, options, watch)
        since_s = result.sent_s
    is_ok = result.status == OK
    return Sent(
        began_s=watch.began_s,
        ended_s=watch.began_s + result.lasted_s,
        since_s=since_s[is_ok] + watch.began_s,
        done_s=result.done_s[is_ok] + watch.began_s,
        late_s=result.sent_s - result.intended_s,
        errors=_errors(result),
        busy=result.cpu_s / max(result.lasted_s, 1e-9),
    )


def _errors(result: Result) -> dict[str, int]:
    counted = Counter(result.ending.tolist())
    found: dict[str, int] = {}
    for number, count in counted.items():
        ending = result.endings[number]
        if ending.status != OK:
            found[f"{ending.status}: {ending.message}"[:200]] = count
    return found


if __name__ == "__main__":
    raise SystemExit(main())
