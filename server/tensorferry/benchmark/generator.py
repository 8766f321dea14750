"""The open loop: send each call when it is due, whatever has become of those before.

Rules for this file: a call's latency is counted from when it was meant to be sent, so that a server
that makes the generator late doesn't look better for it (G. Tene's coordinated omission); nothing
in the loop waits for an answer; and all that a call leaves behind is numbers in arrays made before
the run, since objects and their collection would make the generator late.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from math import isnan
from typing import Final

import numpy as np

from tensorferry.benchmark.endings import Ending, Endings, Failure
from tensorferry.benchmark.loop import (
    LEAD_S,
    STOP_GRACE_S,
    CannotConnect,
    Link,
    Loop,
    Options,
    clock,
    undisturbed,
)
from tensorferry.benchmark.traffic import Calls, Result, Stream, Watch

__all__ = ["CannotConnect", "Options", "Result", "Stream", "run"]

#: Calls that one write may carry: so that answers are read between the writes of a long queue.
_MAX_CALLS_PER_WRITE: Final = 64
#: epoll's unit is 1 ms, and it rounds up.
_POLL_STEP_S: Final = 0.001


def run(
    target: str, traffic: Sequence[Stream], options: Options | None = None, watch: Watch | None = None
) -> Result:
    """Send all ``traffic`` to ``target``, a ``host:port``, mixed, each call when it is due.

    Ends at most ``options.grace_s`` after the last call was due. A connection that breaks is not
    made again: its open calls are failures, and the others carry on. When ``watch`` says to stop,
    no more calls are sent, and the result has those that were, less those that have no
    answer a second later.

    Raises:
        CannotConnect: no server there; nothing has been sent.
        ValueError: a stream without messages, or with a schedule that isn't sorted.
    """
    options = options or Options()
    calls = Calls(target, traffic)
    with undisturbed(options.core):
        loop = _OpenLoop(calls, options, watch)
        try:
            loop.connect(target)
            began = time.thread_time()
            loop.run()
            cpu_s = time.thread_time() - began
        finally:
            loop.close()
    result = Result(
        tuple(each.name for each in traffic),
        calls.stream,
        calls.intended_s,
        np.array(calls.sent_s),
        np.array(calls.done_s),
        np.array(calls.ending, dtype=np.int32),
        loop.endings.decoded(),
        loop.held,
        lasted_s=loop.lasted_s,
        cpu_s=cpu_s,
    )
    return result.only(~np.isnan(result.done_s)) if loop.stopped else result


class _OpenLoop(Loop):
    """One run of a schedule."""

    def __init__(self, calls: Calls, options: Options, watch: Watch | None) -> None:
        super().__init__(Endings(), options, watch)
        self.held = 0
        self.stopped = False
        #: How long calls were sent, in seconds.
        self.lasted_s = 0.0
        self._calls = calls
        self._due: list[float] = calls.intended_s.tolist()
        self._next = 0

    def run(self) -> None:
        """Send all, wait for what is still open, and give up what doesn't come."""
        self.start = clock() + LEAD_S
        calls, poll, step = len(self._due), self.poll.poll, self.options.spin_s + _POLL_STEP_S
        give_up_at = (self._due[-1] if calls else 0.0) + self.options.grace_s
        while self.links:
            now = clock() - self.start
            if not self.stopped and self.told_to_stop(now, self._next):
                self.stopped, calls = True, self._next
                give_up_at = min(give_up_at, now + STOP_GRACE_S)
            if self._next < calls and self._due[self._next] <= now:
                self._send_due(now)
                self.lasted_s = now
            if now > give_up_at or (self._next == calls and not self.open()):
                break
            waits_until = self._due[self._next] if self._next < calls else give_up_at
            gap = min(waits_until - (clock() - self.start) - step, STOP_GRACE_S / 10)
            for number, events in poll(gap if gap > 0 else 0):
                self.handle(number, events)
        self._give_up()

    def ended(self, link: Link, ended: Sequence[tuple[int, int]], now: float) -> None:
        done_s, ending = self._calls.done_s, self._calls.ending
        for call, number in ended:
            done_s[call] = now
            ending[call] = number

    def _send_due(self, now: float) -> None:
        """Send what is due at ``now``, as far as there is room for it."""
        due, size = self._due, len(self._due)
        while self._next < size and due[self._next] <= now:
            link = self._free_link()
            if link is None:
                self.held = max(self.held, bisect_right(due, now, self._next) - self._next)
                return
            first = self._next
            most = min(first + min(_MAX_CALLS_PER_WRITE, link.connection.room), size)
            self._next = stop = bisect_right(due, now, first, most)
            begin, requests, request_of = link.connection.begin, self._calls.requests, self._calls.request_of
            for call in range(first, stop):
                begin(requests[request_of[call]], call)
            sent = clock() - self.start
            sent_s = self._calls.sent_s
            for call in range(first, stop):
                sent_s[call] = sent
            self.flush(link)

    def _free_link(self) -> Link | None:
        """Return the connection whose turn it is among those with room; None if none has."""
        for number, link in self.links.items():
            if link.connection.room > 0 and not link.unsent:
                self.links[number] = self.links.pop(number)  # to the end of the row
                return link
        return None

    def _give_up(self) -> None:
        """Number what has no ending: sent and unanswered, or never sent."""
        waited = f"no answer within {self.options.grace_s:g} s of the last call"
        why = "no connection had room for it" if self.links else "every connection was lost"
        unanswered = self.endings.number(Ending(Failure.UNANSWERED, waited))
        unsent = self.endings.number(Ending(Failure.UNSENT, why))
        for call, number in enumerate(self._calls.ending):
            if number < 0:
                self._calls.ending[call] = unsent if isnan(self._calls.sent_s[call]) else unanswered
