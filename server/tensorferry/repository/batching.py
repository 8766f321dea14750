"""The checks on ``dynamic_batching``, and what it becomes."""

from __future__ import annotations

from typing import Final

from tensorferry.model import BatchingSpec, ModelSpec, QueuePolicy
from tensorferry.repository.source import ConfigSource, FieldPath
from tensorferry.wire.model_config_pb2 import ModelQueuePolicy

__all__ = ["MAX_PRIORITY_LEVELS", "batching_spec", "check_times"]

#: Each level has a queue and counters of its own; more than this is a slip of the finger.
MAX_PRIORITY_LEVELS: Final = 1000

_AT: Final = "dynamic_batching"
_DELAY: Final = (_AT, "max_queue_delay_microseconds")


def batching_spec(source: ConfigSource) -> BatchingSpec:
    """Check ``dynamic_batching``; without it each request runs on its own, as in Triton.

    Raises:
        ModelConfigError: no batch dimension, a preferred size or a priority level that can't be, or
            an order that the priorities contradict.
    """
    config = source.config
    if not config.HasField("dynamic_batching"):
        return BatchingSpec(enabled=False)
    if not config.max_batch_size:
        what = "dynamic_batching needs a max_batch_size above 0; set one, or remove dynamic_batching"
        raise source.error(what, _AT)
    batching = config.dynamic_batching
    for index, size in enumerate(batching.preferred_batch_size):
        if not 1 <= size <= config.max_batch_size:
            what = f"preferred_batch_size has {size}; allowed is 1 to max_batch_size {config.max_batch_size}"
            raise source.error(what, _AT, "preferred_batch_size", index)
    _check_priorities(source)
    return BatchingSpec(
        preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
        # An explicit 0 is an order not to wait; where nothing is said, the policy may.
        max_queue_delay_us=batching.max_queue_delay_microseconds if source.sets(*_DELAY) else None,
        queue_policy=_policy(source, batching.default_queue_policy, (_AT, "default_queue_policy")),
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        priority_policies=tuple(
            (level, _policy(source, policy, (_AT, "priority_queue_policy", level)))
            for level, policy in sorted(batching.priority_queue_policy.items())
        ),
        preserve_ordering=batching.preserve_ordering,
    )


def check_times(source: ConfigSource, spec: ModelSpec) -> None:
    """Check that the queue delay leaves time to answer.

    Raises:
        ModelConfigError: a delay longer than a timeout that is in force, or as long as the objective.
    """
    batching = spec.batching
    delay_us = batching.max_queue_delay_us
    if not delay_us:
        return
    policies = [(f"priority level {level}", policy) for level, policy in batching.priority_policies]
    if not policies or len(policies) < batching.priority_levels:
        policies.insert(0, ("the default policy", batching.queue_policy))
    for whose, policy in policies:
        timeout_us = policy.default_timeout_us
        if 0 < timeout_us < delay_us:
            what = f"longer than the default_timeout_microseconds {timeout_us} of {whose}"
            why = "a request would time out before its batch leaves; lower the delay, or raise the timeout"
            raise source.error(f"max_queue_delay_microseconds is {delay_us}, {what}: {why}", *_DELAY)
    objective_ms = batching.latency_objective_ms
    if objective_ms and delay_us / 1000 >= objective_ms:
        what = f"and latency_objective_ms is {objective_ms:g} ms, which leaves no time to run"
        raise source.error(
            f"max_queue_delay_microseconds is {delay_us}, {what}; lower the delay, or remove it", *_DELAY
        )


def _check_priorities(source: ConfigSource) -> None:
    batching = source.config.dynamic_batching
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY_LEVELS:
        what = f"priority_levels is {levels}, and {MAX_PRIORITY_LEVELS} is the most; use fewer"
        raise source.error(what, _AT, "priority_levels")
    if levels and not 1 <= default <= levels:
        is_set = source.sets(_AT, "default_priority_level")
        given = f"is {default}" if is_set else "is missing"
        what = f"default_priority_level {given}; with priority_levels {levels} it must be 1 to {levels}"
        field = "default_priority_level" if is_set else "priority_levels"
        raise source.error(f"{what} (1 is the highest)", _AT, field)
    if default and not levels:
        what = f"default_priority_level is {default}, and there are no priority_levels"
        raise source.error(f"{what}; set priority_levels, or remove it", _AT, "default_priority_level")
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            allowed = f"the levels are 1 to {levels}" if levels else "there are no priority_levels; set them"
            what = f"priority_queue_policy is given for level {level}, and {allowed}"
            raise source.error(what, _AT, "priority_queue_policy", level)
    if batching.preserve_ordering and levels > 1:
        what = f"preserve_ordering contradicts priority_levels {levels}, which let requests overtake others"
        raise source.error(f"{what}; remove one of the two", _AT, "preserve_ordering")
    policy = batching.default_queue_policy
    if batching.preserve_ordering and policy.timeout_action == ModelQueuePolicy.DELAY:
        what = "preserve_ordering contradicts timeout_action DELAY: one delayed request would hold all back"
        raise source.error(f"{what}; remove one of the two", _AT, "preserve_ordering")


def _policy(source: ConfigSource, policy: ModelQueuePolicy, at: FieldPath) -> QueuePolicy:
    action = policy.timeout_action
    if action not in (ModelQueuePolicy.REJECT, ModelQueuePolicy.DELAY):
        what = f"timeout_action is {action}, which doesn't exist; use REJECT or DELAY"
        raise source.error(what, *at, "timeout_action")
    return QueuePolicy(
        max_queue_size=policy.max_queue_size,
        default_timeout_us=policy.default_timeout_microseconds,
        timeout_action="DELAY" if action == ModelQueuePolicy.DELAY else "REJECT",
        # Triton's default is false. But a shorter wait harms nobody: only a written false forbids it.
        allow_timeout_override=policy.allow_timeout_override
        or not source.sets(*at, "allow_timeout_override"),
    )
