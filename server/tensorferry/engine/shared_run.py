"""A run that several requests wait for, and how urgent a request is."""

from __future__ import annotations

from tensorferry.batching.pending import NEVER, Pending
from tensorferry.engine.response_cache import Key
from tensorferry.model import BatchingSpec

__all__ = ["Run", "delays", "expires_at_of", "level_of"]


class Run:
    """A computation and those who want its answer, in the order they came.

    ``lead`` is the request whose data, deadline and timeout the run has; ``pending`` what is submitted
    in its place. ``level`` is the priority level, 1 being the highest; ``expires_at`` the instant
    at which the lead must not wait any more. ``lookup_s`` and ``follow_s`` are the seconds that
    looking up took, for the first lead and for all followers.
    """

    __slots__ = ("expires_at", "follow_s", "key", "lead", "level", "lookup_s", "members", "pending")

    def __init__(self, key: Key, lead: Pending, level: int, expires_at: float, lookup_s: float) -> None:
        self.key = key
        self.lead = lead
        self.level = level
        self.expires_at = expires_at
        self.lookup_s = lookup_s
        self.follow_s = 0.0
        #: Each member, and what it holds of the server's bytes in flight. The first lead holds
        #: none: ``pending`` does.
        self.members: dict[Pending, int] = {lead: 0}
        self.pending = lead


def level_of(request: Pending, batching: BatchingSpec) -> int:
    """Return the request's priority level; 1 is the highest, and 0 all there is without levels."""
    if not batching.priority_levels:
        return 0
    return request.priority or batching.default_priority_level or 1


def expires_at_of(request: Pending, level: int, batching: BatchingSpec) -> float:
    """Return the instant after which the request must not wait: its deadline, or its queue's timeout."""
    policy = batching.queue_policy
    for policy_level, each in batching.priority_policies:
        if policy_level == level:
            policy = each
    if policy.timeout_action != "REJECT":
        return request.deadline
    timeout_s = policy.default_timeout_us / 1e6
    if request.timeout_s and policy.allow_timeout_override:
        timeout_s = min(timeout_s or NEVER, request.timeout_s)
    return min(request.deadline, request.enqueued_at + timeout_s) if timeout_s else request.deadline


def delays(batching: BatchingSpec) -> bool:
    """Whether a request that waits for long may be moved behind all others."""
    policies = [batching.queue_policy, *[policy for _, policy in batching.priority_policies]]
    return any(policy.timeout_action == "DELAY" for policy in policies)
