"""The closed loop: a fixed number of calls in flight; an answer lets the next call go.

A call's latency counts from when it was sent, as callers see it who wait for each answer. What the
generator itself takes from an answer to the next call is its slip: ``intended_s`` is when the
place became free, ``sent_s`` when the call left.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Final

import numpy as np

from tensorferry.benchmark.endings import Ending, Endings, Failure
from tensorferry.benchmark.loop import STOP_GRACE_S, Link, Loop, Options, clock, undisturbed
from tensorferry.benchmark.traffic import Result, Stream, Watch

__all__ = ["Closed", "run_closed"]

#: The longest that the loop sleeps: so that a stop is seen.
_LONGEST_SLEEP_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Closed:
    """``concurrency`` calls in flight for ``seconds``, or until ``most_calls`` were sent."""

    concurrency: int
    seconds: float
    most_calls: int


def run_closed(
    target: str, stream: Stream, plan: Closed, options: Options | None = None, watch: Watch | None = None
) -> Result:
    """Keep calls of ``stream`` in flight to ``target``, a ``host:port``; its schedule isn't looked at.

    Each connection keeps its share of them. Ends at most ``options.grace_s`` after the last call was
    sent. A connection that breaks is not made again: its open calls are failures, and the others
    carry on with their shares.

    Raises:
        CannotConnect: no server there; nothing has been sent.
        ValueError: a stream without messages.
    """
    options = options or Options()
    if not stream.messages:
        raise ValueError(f"stream {stream.name!r} has no messages: give it one at least")
    with undisturbed(options.core):
        loop = _ClosedLoop(target, stream, plan, options, watch)
        try:
            loop.connect(target)
            began = time.thread_time()
            loop.run()
            cpu_s = time.thread_time() - began
        finally:
            loop.close()
    return loop.result(stream.name, cpu_s)


class _ClosedLoop(Loop):
    """One run."""

    def __init__(
        self, target: str, stream: Stream, plan: Closed, options: Options, watch: Watch | None
    ) -> None:
        super().__init__(Endings(), options, watch)
        self._requests = stream.requests(target)
        self._plan = plan
        self._left = plan.most_calls
        self._sending = True
        self._stopped = False
        self._lasted_s = 0.0
        self._free_s = array("d")
        self._sent_s = array("d")
        self._done_s = array("d")
        self._ending = array("i")

    def run(self) -> None:
        """Begin every connection's share, keep it up until the time is over, and wait for the rest."""
        self.start = clock()
        each, more = divmod(self._plan.concurrency, len(self.links))
        for place, link in enumerate(list(self.links.values())):
            link.wanted = each + (place < more)
            self._begin(link, 0.0)
            self.flush(link)
        give_up_at = self._plan.seconds + self.options.grace_s
        while self.links:
            now = clock() - self.start
            if self._sending:
                stopped = self.told_to_stop(now, len(self._sent_s))
                if stopped or now >= self._plan.seconds or not self._left:
                    self._sending, self._stopped, self._lasted_s = False, stopped, now
                    give_up_at = now + (STOP_GRACE_S if stopped else self.options.grace_s)
            elif now >= give_up_at or not self.open():
                break
            until = self._plan.seconds if self._sending else give_up_at
            self.react(max(0.0, min(until - now, _LONGEST_SLEEP_S)))
        if self._sending:
            self._lasted_s = clock() - self.start  # every connection was lost

    def ended(self, link: Link, ended: Sequence[tuple[int, int]], now: float) -> None:
        done_s, ending = self._done_s, self._ending
        for call, number in ended:
            done_s[call] = now
            ending[call] = number
        link.wanted += len(ended)
        if self._sending and link.wanted:
            self._begin(link, now)

    def _begin(self, link: Link, free_since: float) -> None:
        """Begin what the connection wants and has room for; the caller flushes."""
        count = min(link.wanted, link.connection.room, self._left)
        if count <= 0:
            return
        link.wanted -= count
        self._left -= count
        begin, requests, first = link.connection.begin, self._requests, len(self._sent_s)
        size = len(requests)
        for call in range(first, first + count):
            begin(requests[call % size], call)
        self._free_s.extend([free_since] * count)
        self._sent_s.extend([clock() - self.start] * count)
        self._done_s.extend([nan] * count)
        self._ending.extend([-1] * count)

    def result(self, name: str, cpu_s: float) -> Result:
        """Return what became of the calls; those that a stop left without an answer are left out."""
        waited = f"no answer within {self.options.grace_s:g} s of the last call"
        unanswered = self.endings.number(Ending(Failure.UNANSWERED, waited))
        ending = np.array(self._ending, dtype=np.int32)
        ending[ending < 0] = unanswered
        result = Result(
            (name,),
            np.zeros(len(ending), dtype=np.int16),
            np.array(self._free_s),
            np.array(self._sent_s),
            np.array(self._done_s),
            ending,
            self.endings.decoded(),
            lasted_s=self._lasted_s,
            cpu_s=cpu_s,
        )
        return result.only(~np.isnan(result.done_s)) if self._stopped else result
