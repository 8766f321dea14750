"""The open loop: send each call when it is due, whatever has become of those before.

Rules for this file: a call's latency is counted from when it was meant to be sent, so that a server
that makes the generator late doesn't look better for it (G. Tene's coordinated omission); nothing
in the loop waits for an answer; and all that a call leaves behind is numbers in arrays made before
the run, since objects and their collection would make the generator late.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isnan
from typing import Final

import numpy as np

from loadtests.openloop.endings import Ending, Endings, Failure
from loadtests.openloop.http2 import Connection, ProtocolError
from loadtests.openloop.traffic import Calls, Result, Stream

__all__ = ["CannotConnect", "Options", "Result", "Stream", "run"]

#: Calls that one write may carry: so that answers are read between the writes of a long queue.
_MAX_CALLS_PER_WRITE: Final = 64
_RECEIVE_BYTES: Final = 2**18
#: Between connecting and the first call, so that the loop has begun when it is due.
_LEAD_S: Final = 0.02
#: epoll's unit is 1 ms, and it rounds up.
_POLL_STEP_S: Final = 0.001

_clock = time.perf_counter


class CannotConnect(Exception):
    """The target doesn't listen, or doesn't greet as an HTTP/2 server does."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to send.

    ``spin_s`` before a call is due the loop stops sleeping and watches the clock: the kernel wakes
    a sleeper late. ``grace_s`` after the last call was due, what has no answer is given up.
    ``core`` is the CPU to stay on.
    """

    connections: int = 4
    spin_s: float = 0.001
    grace_s: float = 5.0
    connect_timeout_s: float = 10.0
    core: int | None = None


def run(target: str, traffic: Sequence[Stream], options: Options | None = None) -> Result:
    """Send all ``traffic`` to ``target``, a ``host:port``, mixed, each call when it is due.

    Ends at most ``options.grace_s`` after the last call was due. A connection that breaks is not
    made again: its open calls are failures, and the others carry on.

    Raises:
        CannotConnect: no server there; nothing has been sent.
        ValueError: a stream without messages, or with a schedule that isn't sorted.
    """
    options = options or Options()
    calls = Calls(target, traffic)
    endings = Endings()
    with _undisturbed(options.core):
        loop = _Loop(calls, endings, options)
        try:
            loop.connect(target)
            loop.run()
        finally:
            loop.close()
    return Result(
        tuple(each.name for each in traffic),
        calls.stream,
        calls.intended_s,
        np.array(calls.sent_s),
        np.array(calls.done_s),
        np.array(calls.ending, dtype=np.int32),
        endings.decoded(),
        loop.held,
    )


@dataclass(slots=True)
class _Link:
    """A connection and its socket; ``unsent`` is what the kernel has not taken yet."""

    socket: socket.socket
    connection: Connection
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))


class _Loop:
    """One run. Times are those of ``_clock`` less the run's start, in seconds."""

    def __init__(self, calls: Calls, endings: Endings, options: Options) -> None:
        self.held = 0
        self._calls = calls
        self._due: list[float] = calls.intended_s.tolist()
        self._next = 0
        self._endings = endings
        self._options = options
        self._links: dict[int, _Link] = {}  # by file number; the first is the next to be used
        self._poll = select.epoll()
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._start = _clock()

    def connect(self, target: str) -> None:
        """Open all connections, and wait for every server's greeting."""
        host, _, port = target.rpartition(":")
        give_up_at = _clock() + self._options.connect_timeout_s
        for _ in range(self._options.connections):
            try:
                opened = socket.create_connection((host, int(port)), self._options.connect_timeout_s)
            except OSError as error:
                raise CannotConnect(f"no server at {target}: {error}") from error
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(opened, Connection(self._endings))
            self._links[opened.fileno()] = link
            self._poll.register(opened.fileno(), select.EPOLLIN)
            self._flush(link)
        while not all(each.connection.greeted for each in self._links.values()):
            self._react(0.05)
            if len(self._links) < self._options.connections or _clock() > give_up_at:
                raise CannotConnect(f"{target} doesn't greet as an HTTP/2 server: is it plain-text gRPC?")

    def run(self) -> None:
        """Send all, wait for what is still open, and give up what doesn't come."""
        self._start = _clock() + _LEAD_S
        calls, poll, step = len(self._due), self._poll.poll, self._options.spin_s + _POLL_STEP_S
        give_up_at = (self._due[-1] if calls else 0.0) + self._options.grace_s
        while self._links:
            now = _clock() - self._start
            if self._next < calls and self._due[self._next] <= now:
                self._send_due(now)
            if now > give_up_at or (self._next == calls and not self._open()):
                break
            waits_until = self._due[self._next] if self._next < calls else give_up_at
            gap = waits_until - (_clock() - self._start) - step
            for number, events in poll(gap if gap > 0 else 0):
                self._handle(number, events)
        self._give_up()

    def close(self) -> None:
        """Close everything."""
        for each in self._links.values():
            each.socket.close()
        self._poll.close()

    def _open(self) -> int:
        return sum(each.connection.open for each in self._links.values())

    # -- sending --------------------------------------------------------------------------------

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
            sent = _clock() - self._start
            sent_s = self._calls.sent_s
            for call in range(first, stop):
                sent_s[call] = sent
            self._flush(link)

    def _free_link(self) -> _Link | None:
        """Return the connection whose turn it is among those with room; None if none has."""
        for number, link in self._links.items():
            if link.connection.room > 0 and not link.unsent:
                self._links[number] = self._links.pop(number)  # to the end of the row
                return link
        return None

    def _flush(self, link: _Link) -> None:
        """Give the kernel what it takes; the rest goes when it says that there is room."""
        outbox = link.connection.outbox
        if outbox:
            link.unsent = memoryview(b"".join((link.unsent, *outbox) if link.unsent else outbox))
            outbox.clear()
        if not link.unsent:
            return
        try:
            taken = link.socket.send(link.unsent)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._lose(link, f"can't send: {error}")
            return
        link.unsent = link.unsent[taken:]
        if link.unsent:
            self._poll.modify(link.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    # -- receiving ------------------------------------------------------------------------------

    def _react(self, timeout_s: float) -> None:
        for number, events in self._poll.poll(timeout_s):
            self._handle(number, events)

    def _handle(self, number: int, events: int) -> None:
        link = self._links[number]
        if events & select.EPOLLOUT:
            self._poll.modify(number, select.EPOLLIN)
            self._flush(link)
        if events & ~select.EPOLLOUT and number in self._links:
            self._receive(link)

    def _receive(self, link: _Link) -> None:
        try:
            size = link.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(link, f"can't receive: {error}")
            return
        if not size:
            self._lose(link, "the server closed the connection")
            return
        now = _clock() - self._start
        try:
            ended = link.connection.receive(bytes(self._buffer[:size]))
        except ProtocolError as error:
            self._lose(link, f"the server broke the protocol: {error}")
            return
        self._note(ended, now)
        if link.connection.outbox:
            self._flush(link)
        if not link.connection.usable and not link.connection.open:
            self._lose(link, "the server said GOAWAY")

    def _note(self, ended: Sequence[tuple[int, int]], now: float) -> None:
        done_s, ending = self._calls.done_s, self._calls.ending
        for call, number in ended:
            done_s[call] = now
            ending[call] = number

    # -- failures -------------------------------------------------------------------------------

    def _lose(self, link: _Link, reason: str) -> None:
        number = link.socket.fileno()
        if self._links.pop(number, None):
            self._note(link.connection.lose(reason), _clock() - self._start)
            self._poll.unregister(number)
            link.socket.close()

    def _give_up(self) -> None:
        """Number what has no ending: sent and unanswered, or never sent."""
        waited = f"no answer within {self._options.grace_s:g} s of the last call"
        why = "no connection had room for it" if self._links else "every connection was lost"
        unanswered = self._endings.number(Ending(Failure.UNANSWERED, waited))
        unsent = self._endings.number(Ending(Failure.UNSENT, why))
        for call, number in enumerate(self._calls.ending):
            if number < 0:
                self._calls.ending[call] = unsent if isnan(self._calls.sent_s[call]) else unanswered


@contextmanager
def _undisturbed(core: int | None) -> Iterator[None]:
    """Keep the garbage collector away, and the process on its core, while the run lasts."""
    cores = os.sched_getaffinity(0)
    collects = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        yield
    finally:
        os.sched_setaffinity(0, cores)
        gc.unfreeze()
        if collects:
            gc.enable()
