"""What a client's process is told to do, and what it says afterwards; both go through a pipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Job", "Sent"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Job:
    """Calls of one model, for ``seconds``: a closed loop of ``in_flight``, or an open one at ``rate_per_s``.

    ``rate_per_s`` 0 means a closed loop. ``messages`` are serialised requests, sent in turn.
    """

    target: str
    messages: tuple[bytes, ...]
    connections: int
    seconds: float
    in_flight: int = 0
    rate_per_s: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What became of a job's calls. Times are those of ``time.perf_counter``, in seconds.

    Calls were sent from ``began_s`` to ``ended_s``. ``since_s`` and ``done_s`` float64 (calls,) are of those
    that were answered well: when latency counts from (in an open loop when a call was due), and when
    the answer was there. ``late_s`` is how late calls left, for all. ``errors`` counts the other endings
    by what they said. ``busy`` is the process's share of a core.
    """

    began_s: float
    ended_s: float
    since_s: Floats
    done_s: Floats
    late_s: Floats
    errors: dict[str, int]
    busy: float
