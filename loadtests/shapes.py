"""How the number of users changes over a run, as a pure function.

locust's ``LoadTestShape`` is given it in ``locustfile.py``: whoever imports locust gets gevent's
patches of the standard library, and a test must not.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["users_at"]


def users_at(elapsed_s: float, steps: Sequence[int], warmup_s: float, duration_s: float) -> int | None:
    """Return how many users there should be, or None when the run is over.

    The warm-up runs at the first step's users; then the steps share ``duration_s`` equally.
    """
    measured_s = elapsed_s - warmup_s
    if measured_s < 0:
        return steps[0]
    if measured_s >= duration_s:
        return None
    return steps[int(measured_s / duration_s * len(steps))]
