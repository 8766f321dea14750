"""What is to be sent, and what became of it: streams of traffic, their calls in order, and the result."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tensorferry.benchmark.arrivals import Schedule
from tensorferry.benchmark.endings import Ending
from tensorferry.benchmark.http2 import Request

__all__ = ["METHOD", "Calls", "Result", "Stream", "Watch"]

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of traffic: calls of one kind.

    ``schedule`` is float64 (calls,), seconds since the run's start, sorted. ``messages`` are
    serialised requests, sent in turn. ``timeout_s`` is sent as grpc-timeout; the server
    enforces it, not the generator. ``metadata`` is sent with every call.
    """

    name: str
    schedule: Schedule
    messages: Sequence[bytes]
    timeout_s: float | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    method: str = METHOD

    def requests(self, authority: str) -> list[Request]:
        """Return one request for each of the messages."""
        timeout = () if self.timeout_s is None else (("grpc-timeout", _grpc_timeout(self.timeout_s)),)
        more = (*timeout, *self.metadata)
        return [Request.unary(self.method, authority, message, more) for message in self.messages]


class Watch(Protocol):
    """Who looks at a run from outside: another process, or a test. Read in every turn of the loop."""

    @property
    def stop(self) -> bool:
        """Whether the run should end."""

    def tell(self, now_s: float, sent: int, ended: int) -> None:
        """Take note of how far it is: seconds since its start, calls sent and calls ended."""


class Calls:
    """The calls of all streams in the order in which they are due, and the arrays for what happens."""

    def __init__(self, target: str, traffic: Sequence[Stream]) -> None:
        self.requests: list[Request] = []
        places: list[NDArray[np.int64]] = []
        for each in traffic:
            if not each.messages:
                raise ValueError(f"stream {each.name!r} has no messages: give it one at least")
            if len(each.schedule) and (np.diff(each.schedule).min(initial=0.0) < 0 or each.schedule[0] < 0):
                raise ValueError(f"the schedule of {each.name!r} isn't sorted, or begins before 0")
            places.append(len(self.requests) + np.arange(len(each.schedule)) % len(each.messages))
            self.requests += each.requests(target)
        sizes = [len(each.schedule) for each in traffic]
        intended_s = np.concatenate([np.empty(0), *(each.schedule for each in traffic)])
        order = np.argsort(intended_s, kind="stable")
        self.intended_s: NDArray[np.float64] = intended_s[order]
        self.stream = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)[order]
        #: Which of ``requests``; a list, because reading an item of an array makes an object.
        self.request_of: list[int] = np.concatenate([np.empty(0, dtype=np.int64), *places])[order].tolist()
        # Plain arrays: writing an item takes a fraction of what it takes in numpy's.
        self.sent_s = array("d", [np.nan]) * len(order)
        self.done_s = array("d", [np.nan]) * len(order)
        self.ending = array("i", [-1]) * len(order)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of every call, in the order of their intended times.

    ``stream`` int16: place in ``names``. ``intended_s``, ``sent_s``, ``done_s`` float64: seconds since
    the run's start; NaN for what didn't happen. ``sent_s`` is when the request was given to
    the kernel, ``done_s`` when the end of the answer, or the failure, was read. ``ending`` int32:
    place in ``endings``. All have the shape (calls,). ``held`` is the most calls that were due at one
    time while no connection had room for them.
    """

    names: tuple[str, ...]
    stream: NDArray[np.int16]
    intended_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    ending: NDArray[np.int32]
    endings: tuple[Ending, ...]
    held: int = 0
    #: How long calls were sent, and the processor's time of all, in seconds.
    lasted_s: float = 0.0
    cpu_s: float = 0.0

    def only(self, chosen: NDArray[np.bool_]) -> Result:
        """Return the result of some of the calls: where ``chosen``, of shape (calls,), is True."""
        return replace(
            self,
            stream=self.stream[chosen],
            intended_s=self.intended_s[chosen],
            sent_s=self.sent_s[chosen],
            done_s=self.done_s[chosen],
            ending=self.ending[chosen],
        )

    @property
    def status(self) -> NDArray[np.int16]:
        """The gRPC status of every call, or the ``Failure``; shape (calls,)."""
        return np.array([each.status for each in self.endings], dtype=np.int16)[self.ending]


def _grpc_timeout(seconds: float) -> str:
    """In the wire's form, which has at most 8 digits."""
    if not 0 < seconds < 1e8:
        raise ValueError(f"timeout_s is {seconds}: it must be more than 0, and less than 1e8")
    us = max(1, round(seconds * 1e6))
    return f"{us}u" if us < 10**8 else f"{round(seconds)}S"
