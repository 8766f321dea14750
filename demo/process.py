"""Run a coroutine in a process of its own, and hear of its progress."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

__all__ = ["OwnProcessError", "in_own_process"]

T = TypeVar("T")

REPORT_EVERY_S: Final = 0.2

#: Far beyond any single call's deadline: whoever says nothing for so long hangs.
STALLED_AFTER_S: Final = 60.0


class OwnProcessError(Exception):
    """The coroutine raised, hangs, or its process ended without a result."""


def in_own_process(
    function: Callable[..., Coroutine[Any, Any, T]],
    args: tuple[object, ...],
    on_progress: Callable[[int], object],
) -> T:
    """Return what ``await function(*args, on_progress)`` returns in a fresh process.

    ``function`` must be importable by name, and its arguments and result must pickle. The process
    is gone when this returns or raises.

    Raises:
        OwnProcessError: with the type and message of what the coroutine raised.
    """
    # Spawned, not forked: this process has torch's and grpc's threads.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()  # so that reading ends when the child does
    try:
        with ours:
            return _listen(ours, on_progress)  # type: ignore[no-any-return]
    except EOFError:
        process.join()
        raise OwnProcessError(
            f"{function.__name__}: its process ended with code {process.exitcode}"
        ) from None
    finally:
        process.terminate()
        process.join()


def _listen(connection: Connection, on_progress: Callable[[int], object]) -> Any:  # noqa: ANN401
    while connection.poll(STALLED_AFTER_S):
        kind, value = connection.recv()
        if kind == "progress":
            on_progress(value)
        elif kind == "failed":
            raise OwnProcessError(value)
        else:
            return value
    raise OwnProcessError(f"no progress for {STALLED_AFTER_S:.0f} s")


def _child(
    connection: Connection, function: Callable[..., Coroutine[Any, Any, object]], args: tuple[object, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends this process
    reporter = _Reporter(connection)
    try:
        result = asyncio.run(function(*args, reporter))
    except Exception as error:
        connection.send(("failed", f"{function.__name__}: {type(error).__name__}: {error}"))
    else:
        connection.send(("result", result))


class _Reporter:
    """Passes on a count, at most every ``REPORT_EVERY_S``: it is called for each request."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._next = 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPORT_EVERY_S
            self._connection.send(("progress", done))
