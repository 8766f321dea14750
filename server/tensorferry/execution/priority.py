"""Lets a stream of long runs give way to everything that is short: the loop, and quicker models.

A stream whose batches keep the CPU for long runs its threads at a higher niceness, so that the
scheduler takes a core from it for a thread that needs one for a fraction of a millisecond. On its
own, a slow model loses nothing: niceness only says who goes first where two want the same core.

A loading thread gives way from the start (``give_way``), and a stream that answers nobody goes
after everything else (``Priority(background=True)``).

Giving way is for ever: a thread without privileges can't lower its niceness again. Linux has a
niceness for each thread, and intra-op (OpenMP) threads inherit theirs when they are made, which is
before the run time is known; so they are found by the name that they inherit as well.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from tensorferry.execution.warmup import WarmupReport

__all__ = ["MOST_NICE", "NICER_BY", "SLOW_RUN_S", "Priority", "give_way", "run_aside"]

T = TypeVar("T")

#: A stream gives way when its mean run takes longer than this.
SLOW_RUN_S: Final = 2e-3
#: Steps of niceness. Ten make its weight about a tenth of an ordinary thread's.
NICER_BY: Final = 10
#: The highest niceness there is: a weight of a seventieth.
MOST_NICE: Final = 19

#: The weight of the newest run in the mean, and what it counts as at most: one run that was held
#: up by something else decides nothing.
_WEIGHT: Final = 1 / 16
_MOST_COUNTED_S: Final = 4 * SLOW_RUN_S
#: What the kernel keeps of a thread's name, in bytes.
_NAME_BYTES: Final = 15

_TASKS: Final = Path("/proc/self/task")
_numbers: Final = itertools.count(1)


def give_way(steps: int = NICER_BY) -> None:
    """Make the calling thread nicer by ``steps``, and with it the threads that it starts after this."""
    _make_nicer([threading.get_native_id()], steps)


def run_aside(work: Callable[[], T], name: str) -> T:
    """Run ``work`` on a thread of its own that gives way, and wait for it; it ends with the work.

    The calling thread keeps its own priority, and so do the threads that it starts later.

    Raises:
        BaseException: what ``work`` raises.
    """
    outcome: Future[T] = Future()

    def main() -> None:
        give_way()
        try:
            outcome.set_result(work())
        except BaseException as error:  # the caller's, wherever it belongs
            outcome.set_exception(error)

    thread = threading.Thread(target=main, name=name, daemon=True)
    thread.start()
    thread.join()
    return outcome.result()


class Priority:
    """The calling thread's, and that of the threads that it starts after this. Used on that thread.

    It gives the thread a name of its own, ``tf<number>/<name>``, which ``top -H`` shows. In the
    ``background`` it is as nice as can be from the start.
    """

    def __init__(self, name: str, *, background: bool = False) -> None:
        self._name = f"tf{next(_numbers):x}/{name}".encode()[:_NAME_BYTES]
        self._mean_s = 0.0
        self._has_given_way = background
        if background:
            give_way(MOST_NICE)
        with contextlib.suppress(OSError):  # without the name, this thread alone gives way
            (_TASKS / str(threading.get_native_id()) / "comm").write_bytes(self._name)

    def measured(self, report: WarmupReport) -> None:
        """Take in what warm-up measured."""
        self._mean_s = min(report.slowest_s or 0.0, _MOST_COUNTED_S)
        self._decide()

    def saw(self, cpu_s: float) -> None:
        """Take in what a batch's run took of this thread's CPU time, in seconds.

        Not the time that passed: a quick model that others hold up would seem slow, give way to
        them, and be held up the more.
        """
        if not self._has_given_way:
            self._mean_s += (min(cpu_s, _MOST_COUNTED_S) - self._mean_s) * _WEIGHT
            self._decide()

    def _decide(self) -> None:
        if self._mean_s <= SLOW_RUN_S or self._has_given_way:
            return
        self._has_given_way = True
        _make_nicer([threading.get_native_id(), *self._namesakes()], NICER_BY)

    def _namesakes(self) -> list[int]:
        found = []
        with contextlib.suppress(OSError):
            for task in _TASKS.iterdir():
                with contextlib.suppress(OSError):  # ended meanwhile
                    if (task / "comm").read_bytes().rstrip(b"\n") == self._name:
                        found.append(int(task.name))
        return found


def _make_nicer(threads: list[int], steps: int) -> None:
    """Give all of ``threads`` the niceness of the first and ``steps`` more."""
    niceness = min(os.getpriority(os.PRIO_PROCESS, threads[0]) + steps, MOST_NICE)
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended, or the system forbids it
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
