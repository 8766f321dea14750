"""Who is let in: the one place that refuses a request before it waits.

Bounds first (the queue's and the server's), then time: a request whose answer is forecast for
after its deadline, or after the model's latency objective, is refused at once, so that the caller
can do something else with the time that it has. A server with an idle stream and an empty queue
refuses nobody for time: the forecast may be wrong, and only running shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from tensorferry.batching.forecast import Forecast
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.batching.queue import WaitingQueue
from tensorferry.errors import DeadlineExceeded, InvalidRequest, PredictedLate, QueueFull, TensorferryError
from tensorferry.model import BatchingSpec, ModelSpec, QueuePolicy

__all__ = ["Admission", "Gate", "Refused", "Share", "late_after_s"]

#: Requests without any limit are ordered as if they had this much time, so that they aren't
#: passed for ever by those who have one.
_PATIENCE_S: Final = 1.0

#: The objective is the caller's; this share of it is for the ways in and out, which the batcher
#: doesn't see: sockets, decoding, encoding.
_HEADROOM: Final = 0.12
_LATE_FROM: Final = 0.92


#: A model may have this many times the bytes that are left free: one that is flooded leaves a
#: ninth to the others, two leave a seventeenth. Choudhury and Hahne, "Dynamic queue length
#: thresholds for shared-memory packet switches", 1998.
_TIMES_FREE: Final = 8


@dataclass(slots=True)
class Admission:
    """The bound on tensor bytes in flight, shared by all batchers of a server (one thread)."""

    max_bytes: int
    byte_size: int = 0
    shares: int = 0


class Share:
    """One batcher's part of the bytes in flight."""

    __slots__ = ("admission", "byte_size")

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.byte_size = 0
        admission.shares += 1

    def take(self, byte_size: int) -> None:
        """Count bytes as in flight."""
        self.byte_size += byte_size
        self.admission.byte_size += byte_size

    def give(self, byte_size: int) -> None:
        """Count bytes as gone."""
        self.byte_size -= byte_size
        self.admission.byte_size -= byte_size

    def close(self) -> None:
        """Leave the server to the others."""
        self.admission.shares -= 1

    def refusal(self, byte_size: int) -> str | None:
        """Say why so many bytes more can't be taken; None if they can."""
        admission = self.admission
        free = admission.max_bytes - admission.byte_size
        if byte_size > free:
            held = f"{admission.byte_size} bytes are in flight"
            return f"{held}, and the server's max_inflight_bytes is {admission.max_bytes}"
        if admission.shares > 1 and 0 < self.byte_size > _TIMES_FREE * free - byte_size:
            held = f"{self.byte_size} bytes of its requests are in flight"
            return f"{held}, and the rest of the server's max_inflight_bytes is left to other models"
        return None


class Refused(NamedTuple):
    """Why a request isn't taken: the reason to count ("" for a fault of the caller's), and the error.

    Returned, not raised: under overload most calls end here, and an exception that holds another
    is left to the garbage collector.
    """

    reason: str
    error: TensorferryError


def late_after_s(batching: BatchingSpec) -> float:
    """Return how many seconds after its receipt a request's answer is late; 0.0 without an objective."""
    return batching.latency_objective_ms / 1e3 * _LATE_FROM


class Gate:
    """The rules of one model's queue, applied to each request that comes."""

    def __init__(
        self,
        spec: ModelSpec,
        queue: WaitingQueue,
        forecast: Forecast,
        share: Share,
        max_queue_size: int,
        is_idle: Callable[[], bool],
    ) -> None:
        batching = spec.batching
        self._name = spec.name
        self._queue = queue
        self._forecast = forecast
        self._share = share
        self._admission = share.admission
        self._levels = batching.priority_levels
        self._default_level = max(0, batching.default_priority_level - 1)
        own = dict(batching.priority_policies)
        self._policies = [own.get(level + 1, batching.queue_policy) for level in range(max(1, self._levels))]
        self._is_idle = is_idle
        forecast.is_needed = self._levels > 1 or batching.latency_objective_ms > 0
        self._has_rules = self._levels > 1 or self._policies[0] != QueuePolicy(
            max_queue_size=self._policies[0].max_queue_size
        )
        # One level is no order, but the model has it: a request may still name one that it hasn't.
        self._is_plain = not (
            self._has_rules or self._levels or batching.latency_objective_ms or batching.preserve_ordering
        )
        self._plain_bound = self._policies[0].max_queue_size or max_queue_size
        self._max_queue_size = max_queue_size
        self._keeps_order = batching.preserve_ordering
        self._objective_ms = batching.latency_objective_ms
        objective_s = batching.latency_objective_ms / 1e3
        #: Seconds from receipt to answer that requests are admitted for, and from which on an
        #: answer counts as late; 0.0 without an objective.
        self.target_s = objective_s * (1.0 - _HEADROOM)
        self.late_s = late_after_s(batching)

    def admit(self, request: Pending, now: float) -> Refused | None:
        """Give the request its place in the order, or say why it is refused."""
        request.enqueued_at = now
        if self._is_plain and not request.timeout_s:
            # The common case, in a few comparisons. A half: then no share can be at its bound.
            admission, waiting, deadline = self._admission, self._queue.count, request.deadline
            if (
                waiting < self._plain_bound
                and (admission.byte_size + request.byte_size) * 2 < admission.max_bytes
            ):
                if deadline == NEVER:
                    request.due = now + _PATIENCE_S
                    return None
                if deadline > now + self._forecast.drained_s(waiting):
                    request.due = deadline
                    self._forecast.is_needed = True
                    return None
        policy = self._policies[0]
        if self._has_rules or request.timeout_s or request.priority:
            if request.priority > self._levels > 0:
                return self._unknown_level(request)
            policy = self._rules_for(request, now)
        if self.target_s:
            request.limit = min(request.limit, now + self.late_s)
        if self._keeps_order:
            request.due = now
        else:
            due = min(request.limit, request.deadline)
            request.due = due if due != NEVER else now + _PATIENCE_S
        refused = self._over_bounds(request, policy)
        if refused is None and (request.deadline != NEVER or request.limit != NEVER):
            refused = self._too_late(request, now)
        return refused

    def delay(self, request: Pending, now: float) -> bool:
        """Say whether a request whose queue timeout came is to run late; if so, set its new limits."""
        if not self.delays(request) or request.call_deadline <= now:
            return False
        request.deadline = request.call_deadline
        request.due = request.deadline if request.deadline != NEVER else now + _PATIENCE_S
        return True

    def delays(self, request: Pending) -> bool:
        """Whether the queue timeout of a request at this level delays it instead of ending it."""
        return request.level < len(self._policies) and (
            self._policies[request.level].timeout_action == "DELAY"
        )

    def refuse_late(self, request: Pending, completion: float) -> Refused:
        """Make the refusal of a request that would be answered at ``completion``, too late."""
        predicted_ms = (completion - request.enqueued_at) * 1e3
        if request.call_deadline < completion:
            allowed_ms = (request.call_deadline - request.enqueued_at) * 1e3
            what = f"its deadline is {allowed_ms:.1f} ms after that"
            reason = "deadline"
        else:
            what = (
                f"the latency objective of {self._objective_ms:g} ms leaves it {self.target_s * 1e3:.1f} ms"
            )
            reason = "latency_objective"
        return Refused(
            reason,
            PredictedLate(
                f"model {self._name!r}: the answer is expected up to {predicted_ms:.1f} ms after the request"
                f" came, and {what}; {self._queue.count} requests wait; the request was not run: retry"
                " elsewhere or after a pause"
            ),
        )

    def _unknown_level(self, request: Pending) -> Refused:
        return Refused(
            "",
            InvalidRequest(
                f"model {self._name!r}: priority {request.priority} is out of range; the model has levels"
                f" 1 (the highest) to {self._levels}, and 0 or none means {self._default_level + 1}"
            ),
        )

    def _rules_for(self, request: Pending, now: float) -> QueuePolicy:
        """Set the level and the queue timeout, for models and requests that have any."""
        has_own = self._levels and request.priority
        request.level = request.priority - 1 if has_own else self._default_level
        policy = self._policies[request.level]
        timeout_s = policy.default_timeout_us / 1e6
        if request.timeout_s and policy.allow_timeout_override:
            timeout_s = min(timeout_s or NEVER, request.timeout_s)
        if timeout_s:
            # As in Triton, this bounds the wait, not the run: it isn't a limit for the answer.
            request.deadline = min(request.deadline, now + timeout_s)
        return policy

    def _over_bounds(self, request: Pending, policy: QueuePolicy) -> Refused | None:
        queue = self._queue
        most = policy.max_queue_size
        # Each level has the bound for itself: else a flood of the lowest would shut the highest out.
        waiting = queue.counts[request.level] + queue.delayed_counts[request.level]
        if waiting >= (most or self._max_queue_size):
            return Refused(
                "max_queue_size",
                QueueFull(
                    f"model {self._name!r}: {waiting} requests wait already, and max_queue_size is"
                    f" {most or self._max_queue_size}; retry after a pause"
                ),
            )
        if (why := self._share.refusal(request.byte_size)) is not None:
            return Refused(
                "max_inflight_bytes", QueueFull(f"model {self._name!r}: {why}; retry after a pause")
            )
        return None

    def _too_late(self, request: Pending, now: float) -> Refused | None:
        self._forecast.is_needed = True
        if request.deadline <= now:
            return Refused(
                "deadline",
                DeadlineExceeded(
                    f"model {self._name!r}: the deadline had passed when the request came; it was not run"
                ),
            )
        queue, forecast = self._queue, self._forecast
        if not self.target_s and request.limit - now > forecast.drained_s(queue.count):
            return None
        if self._is_idle():
            return None
        first = queue.first(now)
        first_limit = NEVER
        if first is not None and first.head.due <= request.due:
            first_limit = first.head.limit - (self.late_s - self.target_s)
        ahead = queue.rows_before(request.level, request.due)
        rows = request.bound.rows
        if 1 < self._levels == request.level + 1:
            predicted_at = forecast.lowest_completion(now, ahead, rows)
        else:
            predicted_at = forecast.completion(now, ahead, rows, first_limit)
        # A deadline is the caller's own risk; the objective is a promise, and is given with a margin.
        promised = predicted_at + (forecast.margin_s if self.target_s else 0.0)
        if predicted_at > request.call_deadline or (self.target_s and promised > now + self.target_s):
            return self.refuse_late(request, promised)
        return None
