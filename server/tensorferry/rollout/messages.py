"""A rollout as messages of ``protos/rollout.proto``, and back.

In messages, 0 and "" mean that a field was left out; where the field has a default, that is what
``*_from`` fills in. Nothing is judged here: ``changes.py`` does that.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from tensorferry.rollout.state import Canary, CanaryState, Event, Guards, Rollout, Shadow, Share
from tensorferry.wire import rollout_pb2 as pb

__all__ = [
    "canary_from",
    "canary_message",
    "from_hex",
    "guards_from",
    "guards_message",
    "rollout_from",
    "rollout_message",
    "shadow_from",
    "shadow_message",
    "shares_from",
    "shares_message",
    "to_hex",
]

_GUARDS = Guards()


def rollout_message(rollout: Rollout) -> pb.Rollout:
    """Return a rollout's message."""
    return pb.Rollout(
        labels=rollout.labels,
        split=shares_message(rollout.split),
        shadow=shadow_message(rollout.shadow) if rollout.shadow is not None else None,
        canary=canary_message(rollout.canary) if rollout.canary is not None else None,
        previous_stable=rollout.previous_stable,
        history=[pb.RolloutEvent(time_ms=event.time_ms, what=event.what) for event in rollout.history],
        generation=rollout.generation,
    )


def rollout_from(message: pb.Rollout) -> Rollout:
    """Return the rollout that a message holds."""
    return Rollout(
        labels=MappingProxyType(dict(message.labels)),
        split=shares_from(message.split),
        shadow=shadow_from(message.shadow) if message.HasField("shadow") else None,
        canary=canary_from(message.canary) if message.HasField("canary") else None,
        previous_stable=message.previous_stable,
        history=tuple(Event(event.time_ms, event.what) for event in message.history),
        generation=message.generation,
    )


def to_hex(rollout: Rollout) -> str:
    """Return a rollout as text for another process of the same server."""
    return rollout_message(rollout).SerializeToString().hex()


def from_hex(text: str) -> Rollout:
    """Return the rollout that ``to_hex`` made the text from."""
    return rollout_from(pb.Rollout.FromString(bytes.fromhex(text)))


def shares_message(shares: Iterable[Share]) -> list[pb.Share]:
    """Return a split's messages."""
    return [pb.Share(target=share.target, weight=share.weight) for share in shares]


def shares_from(messages: Iterable[pb.Share]) -> tuple[Share, ...]:
    """Return the split that messages hold."""
    return tuple(Share(message.target, message.weight) for message in messages)


def shadow_message(shadow: Shadow) -> pb.Shadow:
    """Return a shadow's message."""
    return pb.Shadow(target=shadow.target, share=shadow.share)


def shadow_from(message: pb.Shadow) -> Shadow:
    """Return the shadow that a message holds."""
    return Shadow(message.target, message.share)


def guards_message(guards: Guards) -> pb.Guards:
    """Return the guards' message, with every field."""
    return pb.Guards(
        max_error_rate_increase=guards.max_error_rate_increase,
        max_p99_ratio=guards.max_p99_ratio,
        max_score_shift=guards.max_score_shift,
        min_requests=guards.min_requests,
        score_output=guards.score_output,
    )


def guards_from(message: pb.Guards) -> Guards:
    """Return the guards that a message holds; what it leaves out has its default."""
    return Guards(
        max_error_rate_increase=message.max_error_rate_increase or _GUARDS.max_error_rate_increase,
        max_p99_ratio=message.max_p99_ratio or _GUARDS.max_p99_ratio,
        max_score_shift=message.max_score_shift or _GUARDS.max_score_shift,
        min_requests=message.min_requests or _GUARDS.min_requests,
        score_output=message.score_output,
    )


def canary_message(canary: Canary) -> pb.Canary:
    """Return a canary's message."""
    return pb.Canary(
        state=pb.Canary.State.Name(canary.state.value),
        stable_version=canary.stable_version,
        version=canary.version,
        steps=canary.steps,
        step=canary.step,
        step_requests=canary.step_requests,
        step_s=canary.step_s,
        guards=guards_message(canary.guards),
        reason=canary.reason,
    )


def canary_from(message: pb.Canary) -> Canary:
    """Return the canary that a message holds. The state has to be one that this version knows."""
    return Canary(
        state=CanaryState(message.state),
        stable_version=message.stable_version,
        version=message.version,
        steps=tuple(message.steps),
        step=message.step,
        step_requests=message.step_requests,
        step_s=message.step_s,
        guards=guards_from(message.guards),
        reason=message.reason,
    )
