"""Who is traced: the caller's decision, else one call in so many, and never more than so many a second.

The calls between two traced ones are drawn from the geometric distribution. So each call is traced with
the same chance, whatever came before it (independent trials of chance 1/rate), for one countdown a call. A
fixed step would cost the same and see nothing but the first kind of call of a client that sends its
kinds in turn.
"""

from __future__ import annotations

import math
from random import Random
from typing import Final

__all__ = ["UNLIMITED", "Bucket", "Budget", "Rule"]

#: A count of traces without a bound.
UNLIMITED: Final = -1


class Budget:
    """How many traces more there may be: ``left``, or UNLIMITED. Shared by all that are counted together."""

    __slots__ = ("left",)

    def __init__(self, left: int = UNLIMITED) -> None:
        self.left = left


class Rule:
    """What holds for a model's calls, or for all: on or off, one in ``rate`` (0: none), and a budget.

    Used on the loop thread.
    """

    __slots__ = ("_random", "budget", "is_on", "rate", "skip")

    def __init__(self, is_on: bool, rate: int, budget: Budget, random: Random) -> None:
        self.is_on = is_on
        self.rate = rate
        self.budget = budget
        self._random = random
        #: Calls to pass over before the next to trace. Below 0 it never comes to 0: counted down, it
        #: moves away, and a call that isn't to be traced costs no second test.
        self.skip = -1
        self.draw()

    def draw(self) -> None:
        """Draw how many calls to pass over (Devroye, "Non-Uniform Random Variate Generation", X.2)."""
        if not self.is_on or not self.rate:
            self.skip = -1
        elif self.rate == 1:
            self.skip = 0
        else:
            draw = 1.0 - self._random.random()  # above 0
            self.skip = int(math.log(draw) / math.log1p(-1.0 / self.rate))


class Bucket:
    """A token bucket: ``per_s`` traces a second lastingly, and as many in a burst (at least one); 0: none."""

    __slots__ = ("_at", "_most", "_per_s", "_tokens")

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s) if per_s else 0.0
        self._tokens = self._most
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed at the instant ``now``, in seconds; counts it if so."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
