"""When a failed call is made again: a decision without a clock of its own and without sleeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from tensorferry_client._errors import ClientError, DeadlineExceeded

__all__ = ["Attempts", "RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after what pause, a call is made again.

    Only an error whose ``retryable`` is true is retried, and only within the call's own deadline.
    The pause before attempt n + 1 is drawn evenly between 0 and ``initial_backoff_s`` x 2**(n - 1),
    capped at ``max_backoff_s``: callers that failed together don't come back together.

    Attributes:
        max_attempts: Attempts in all; 1 never retries.
        initial_backoff_s: Upper end of the first pause, in seconds.
        max_backoff_s: Upper end of any pause, in seconds.
    """

    max_attempts: int = 3
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 1.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; at least 1")
        if not 0 <= self.initial_backoff_s <= self.max_backoff_s < inf:
            raise ValueError(
                f"initial_backoff_s is {self.initial_backoff_s} and max_backoff_s {self.max_backoff_s};"
                " they must be 0 or more, the second not below the first"
            )

    def max_pause_s(self, failed_attempts: int) -> float:
        """Return the longest pause after so many failed attempts, in seconds."""
        # The exponent is bounded so that a policy of many attempts can't overflow a float.
        return min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** min(failed_attempts - 1, 60))


class Attempts:
    """The attempts of one call, and its one deadline.

    ``clock`` returns seconds and never goes back; ``random`` returns a number in [0, 1).
    ``timeout_s`` is None, or infinite, for a call without a deadline.
    """

    __slots__ = ("_clock", "_deadline_s", "_failed", "_policy", "_random")

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float | None,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._random = random
        self._failed = 0
        self._deadline_s = inf if timeout_s is None else clock() + timeout_s

    def remaining_s(self) -> float | None:
        """Return the seconds that the next attempt has, or None for no bound.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self._deadline_s == inf:
            return None
        remaining_s = self._deadline_s - self._clock()
        # Not "<= 0": a timeout that is no number is refused too.
        if not remaining_s > 0:
            raise DeadlineExceeded("the call's time ran out before it was sent")
        return remaining_s

    def pause_s(self, error: ClientError) -> float:
        """Count ``error`` as a failed attempt and return the seconds to wait before the next.

        Raises:
            ClientError: ``error`` itself, where there is to be no other attempt.
        """
        self._failed += 1
        pause_s = self._random() * self._policy.max_pause_s(self._failed)
        try:
            if not error.retryable or self._failed >= self._policy.max_attempts:
                raise error
            if self._clock() + pause_s >= self._deadline_s:
                raise error  # it says more than the deadline that the wait would run into
        finally:
            # The error's traceback holds this frame. Were the frame to hold the error, only the garbage
            # collector would free them, and with them the call, which keeps its channel open.
            del error
        return pause_s
