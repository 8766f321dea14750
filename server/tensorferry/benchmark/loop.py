"""The sockets of a run: its connections, what they take and give, and how they are lost.

Rules for this file: what a call means is the business of who sends it (``generator``, ``closed``);
all that a call leaves behind is numbers in arrays, since objects and their collection would make
the generator late.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tensorferry.benchmark.endings import Endings
from tensorferry.benchmark.http2 import Connection, ProtocolError
from tensorferry.benchmark.traffic import Watch

__all__ = ["LEAD_S", "STOP_GRACE_S", "CannotConnect", "Link", "Loop", "Options", "clock", "undisturbed"]

#: Between connecting and the first call, so that the loop has begun when it is due.
LEAD_S: Final = 0.02
#: How long answers are waited for, at most, once the run was told to stop.
STOP_GRACE_S: Final = 1.0

_RECEIVE_BYTES: Final = 2**18
#: How often the watcher is told.
_TELL_S: Final = 0.05

clock = time.perf_counter


class CannotConnect(Exception):
    """The target doesn't listen, or doesn't greet as an HTTP/2 server does."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to send.

    ``spin_s`` before a call is due the loop stops sleeping and watches the clock: the kernel wakes
    a sleeper late. ``grace_s`` after the last call was due, what has no answer is given up.
    ``core`` is the CPU to stay on. ``most_open`` calls, over all connections, may be open at one time.
    """

    connections: int = 4
    spin_s: float = 0.001
    grace_s: float = 5.0
    connect_timeout_s: float = 10.0
    core: int | None = None
    most_open: int | None = None


@dataclass(slots=True)
class Link:
    """A connection and its socket; ``unsent`` is what the kernel has not taken yet.

    ``wanted`` is used by the closed loop: calls that may begin here once there is room.
    """

    socket: socket.socket
    connection: Connection
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    wanted: int = 0


class Loop:
    """What every run has. Times are those of ``clock`` less the run's start, in seconds."""

    def __init__(self, endings: Endings, options: Options, watch: Watch | None) -> None:
        self.endings = endings
        self.options = options
        self.links: dict[int, Link] = {}  # by file number; the first is the next to be used
        self.poll = select.epoll()
        self.start = clock()
        self._watch = watch
        self._tell_at = 0.0
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))

    def ended(self, link: Link, ended: Sequence[tuple[int, int]], now: float) -> None:
        """Note that calls have ended at ``now``: (call, number of its ending)."""
        raise NotImplementedError

    def connect(self, target: str) -> None:
        """Open all connections, and wait for every server's greeting.

        Raises:
            CannotConnect: nobody listens there, or what does isn't a plain-text HTTP/2 server.
        """
        host, _, port = target.rpartition(":")
        give_up_at = clock() + self.options.connect_timeout_s
        most_open = self.options.most_open
        share = None if most_open is None else max(1, most_open // self.options.connections)
        for _ in range(self.options.connections):
            try:
                opened = socket.create_connection(
                    (host.strip("[]"), int(port)), self.options.connect_timeout_s
                )
            except OSError as error:
                raise CannotConnect(f"no server at {target}: {error}") from error
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(opened, Connection(self.endings, share))
            self.links[opened.fileno()] = link
            self.poll.register(opened.fileno(), select.EPOLLIN)
            self.flush(link)
        while not all(each.connection.greeted for each in self.links.values()):
            self.react(0.05)
            if len(self.links) < self.options.connections or clock() > give_up_at:
                raise CannotConnect(f"{target} doesn't greet as an HTTP/2 server: is it plain-text gRPC?")

    def close(self) -> None:
        """Close everything."""
        for each in self.links.values():
            each.socket.close()
        self.poll.close()

    def open(self) -> int:
        """Return how many calls are open, over all connections."""
        return sum(each.connection.open for each in self.links.values())

    def told_to_stop(self, now: float, sent: int) -> bool:
        """Tell the watcher how far the run is, now and then; return whether it says to stop."""
        watch = self._watch
        if watch is None:
            return False
        if now >= self._tell_at:
            self._tell_at = now + _TELL_S
            watch.tell(now, sent, sent - self.open())
        return watch.stop

    def react(self, timeout_s: float) -> None:
        """Wait for something to happen on a connection, at most so long, and handle it."""
        for number, events in self.poll.poll(timeout_s):
            self.handle(number, events)

    def handle(self, number: int, events: int) -> None:
        """Handle what epoll said of the connection with this file number."""
        link = self.links.get(number)
        if link is None:
            return
        if events & select.EPOLLOUT:
            self.poll.modify(number, select.EPOLLIN)
            self.flush(link)
        if events & ~select.EPOLLOUT and number in self.links:
            self._receive(link)

    def flush(self, link: Link) -> None:
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
            self.poll.modify(link.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _receive(self, link: Link) -> None:
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
        now = clock() - self.start
        try:
            ended = link.connection.receive(bytes(self._buffer[:size]))
        except ProtocolError as error:
            self._lose(link, f"the server broke the protocol: {error}")
            return
        self.ended(link, ended, now)
        if link.connection.outbox:
            self.flush(link)
        if not link.connection.usable and not link.connection.open:
            self._lose(link, "the server said GOAWAY")

    def _lose(self, link: Link, reason: str) -> None:
        number = link.socket.fileno()
        if self.links.pop(number, None):
            self.ended(link, link.connection.lose(reason), clock() - self.start)
            self.poll.unregister(number)
            link.socket.close()


@contextmanager
def undisturbed(core: int | None) -> Iterator[None]:
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
