"""The clients: processes that send to one server together, and what they found in a window of time."""

from __future__ import annotations

import contextlib
import pickle
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final

import numpy as np

from loadtests.gpu.jobs import Job, Sent

__all__ = ["Clients", "ClientsFailed", "Load", "Seen", "seen_in"]

#: For connecting, and for the ends of processes that weren't told all at one moment.
_MARGIN_S: Final = 0.4
#: How long a client is waited for, beside what it sends and the last answers: it must not hold up the run.
_PATIENCE_S: Final = 30.0
#: From this share of a core on, a closed loop measures its clients.
_BUSY: Final = 0.9
_LATE_MS: Final = 2.0
#: Calls in flight on one connection. What the kernel hasn't taken yet of large ones is copied again and
#: again, so that there are few of them; small ones cost the least where one read brings many.
_LARGE_BYTES: Final = 2**16
_LARGE_CALLS: Final = 8
_SMALL_CALLS: Final = 64


class ClientsFailed(Exception):
    """A client's process couldn't send, or has died."""


@dataclass(frozen=True, slots=True)
class Load:
    """``messages`` in turn: ``in_flight`` calls, or ``rate_per_s`` where that isn't 0.

    ``rows`` is of one call.
    """

    messages: tuple[bytes, ...]
    in_flight: int
    rows: int = 1
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw in a window. ``faults`` say why it isn't what it claims to be."""

    calls_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]
    faults: tuple[str, ...]
    #: Share of a core of the client that took most of one.
    busy: float = 0.0


def seen_in(sent: Sequence[Sent], start_s: float, end_s: float, *, is_open: bool) -> Seen:
    """Return what was answered between two readings of ``time.perf_counter``."""
    done_s = np.concatenate([each.done_s for each in sent])
    since_s = np.concatenate([each.since_s for each in sent])
    inside = (done_s >= start_s) & (done_s < end_s)
    latency_ms = (done_s - since_s)[inside] * 1000
    p50, p99 = np.percentile(latency_ms, (50, 99)) if len(latency_ms) else (None, None)
    errors: Counter[str] = Counter()
    for each in sent:
        errors.update(each.errors)
    return Seen(
        calls_per_s=int(inside.sum()) / (end_s - start_s),
        p50_ms=None if p50 is None else float(p50),
        p99_ms=None if p99 is None else float(p99),
        errors=dict(errors),
        faults=tuple(_faults(sent, start_s, end_s, is_open=is_open)),
        busy=max(each.busy for each in sent),
    )


def _faults(sent: Sequence[Sent], start_s: float, end_s: float, *, is_open: bool) -> list[str]:
    found = []
    if max(each.began_s for each in sent) > start_s or min(each.ended_s for each in sent) < end_s:
        found.append("not all clients sent for the whole window")
    if failed := sum(sum(each.errors.values()) for each in sent):
        what = next(name for each in sent for name in each.errors)
        found.append(f"{failed:,} calls were not answered well ({what})")
    if is_open:
        late_ms = np.concatenate([each.late_s for each in sent]) * 1000
        late_ms = late_ms[~np.isnan(late_ms)]  # what was never sent is among the errors
        if len(late_ms) and (worst_ms := np.percentile(late_ms, 99)) > _LATE_MS:
            found.append(f"calls left up to {worst_ms:.1f} ms late (p99)")
    elif max(each.busy for each in sent) > _BUSY:
        found.append("a client took all of its core: the clients may be the limit")
    return found


class Clients:
    """``count`` processes, for the length of a ``with`` block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._are_sending = False
        self._seconds = 0.0

    def __enter__(self) -> Clients:
        try:
            self._spawn()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def count(self) -> int:
        """Processes that are there."""
        return len(self._processes)

    def start(self, target: str, load: Load, seconds: float) -> float:
        """Let all of them send for ``seconds`` and a margin; return when, by ``perf_counter``."""
        if self._are_sending:  # a case failed before it heard of them
            self._kill()
            self._spawn()
        self._are_sending, self._seconds = True, seconds
        count = min(self._count, max(1, load.in_flight))
        began_s = time.perf_counter()
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            pickle.dump(_share(target, load, seconds + _MARGIN_S, number, count), process.stdin)
            process.stdin.flush()
        return began_s

    def finish(self) -> list[Sent]:
        """Wait until they have sent all; return what they say.

        Raises:
            ClientsFailed: one couldn't send, or doesn't end.
        """
        found = []
        give_up_s = time.monotonic() + self._seconds + _PATIENCE_S
        for process in self._processes:
            assert process.stdout is not None
            # One message comes for a job, so that none can be in Python's buffer already.
            if not select.select([process.stdout], [], [], max(0.0, give_up_s - time.monotonic()))[0]:
                raise ClientsFailed("a client doesn't end: calls are neither answered nor refused")
            try:
                said: Sent | str | None = pickle.load(process.stdout)
            except EOFError:
                raise ClientsFailed(f"a client's process has died: exit code {process.wait()}") from None
            if isinstance(said, str):
                raise ClientsFailed(f"a client couldn't send: {said}")
            if said is not None:
                found.append(said)
        self._are_sending = False
        return found

    def _spawn(self) -> None:
        command = [sys.executable, "-m", "loadtests.gpu.client"]
        for _ in range(self._count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
        self.finish()  # each says that it is there

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
        self._processes.clear()


def _share(target: str, load: Load, seconds: float, number: int, count: int) -> Job | None:
    """Return the share of one client of ``count``; None for those beyond."""
    if number >= count:
        return None
    share, more = divmod(load.in_flight, count)
    in_flight = share + (number < more)
    each = _LARGE_CALLS if len(load.messages[0]) >= _LARGE_BYTES else _SMALL_CALLS
    # Each begins elsewhere, so that they don't all send the same at one time.
    first = number * len(load.messages) // count
    job = Job(
        target,
        load.messages[first:] + load.messages[:first],
        -(-in_flight // each),
        seconds,
        seed=number,
    )
    if load.rate_per_s:
        return replace(job, rate_per_s=load.rate_per_s / count)
    return replace(job, in_flight=in_flight)
