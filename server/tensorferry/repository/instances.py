"""The checks on ``instance_group``, and the device of each worker stream that it asks for."""

from __future__ import annotations

from typing import Final

from tensorferry.repository.source import ConfigSource
from tensorferry.wire.model_config_pb2 import ModelInstanceGroup

__all__ = ["MAX_STREAMS", "complete_groups", "devices"]

#: Each stream has a thread and a copy of the model; more than this is a slip of the finger.
MAX_STREAMS: Final = 64

_KINDS: Final = frozenset(ModelInstanceGroup.Kind.values())


def complete_groups(source: ConfigSource, name: str) -> list[ModelInstanceGroup]:
    """Check the instance groups of the model called ``name`` and return them with defaults filled in.

    None is one stream on the CPU. KIND_AUTO becomes KIND_GPU where GPUs are given and KIND_CPU
    elsewhere; KIND_GPU without GPUs gets the first.

    Raises:
        ModelConfigError: a count, kind or list of GPUs that can't be, or more than ``MAX_STREAMS`` streams.
    """
    written = list(source.config.instance_group) or [ModelInstanceGroup()]
    groups = [_complete_group(source, group, index) for index, group in enumerate(written)]
    for index, group in enumerate(groups):
        group.name = group.name or f"{name}_{index}"
    streams = sum(group.count * max(1, len(group.gpus)) for group in groups)
    if streams > MAX_STREAMS:
        what = f"{streams} worker streams in all, and {MAX_STREAMS} is the most"
        raise source.error(f"instance_group asks for {what}; lower count", "instance_group")
    return groups


def devices(groups: list[ModelInstanceGroup]) -> tuple[str, ...]:
    """Return the device of each worker stream of completed groups: ``cpu`` or ``cuda:N``."""
    return tuple(
        device
        for group in groups
        for device in ([f"cuda:{gpu}" for gpu in group.gpus] or ["cpu"])
        for _ in range(group.count)
    )


def _complete_group(source: ConfigSource, group: ModelInstanceGroup, index: int) -> ModelInstanceGroup:
    at = ("instance_group", index)
    what = f"instance_group {index}"
    if group.count < 0:
        raise source.error(f"{what} has count {group.count}; use 1 or more", *at, "count")
    if group.kind == ModelInstanceGroup.KIND_MODEL or group.kind not in _KINDS:
        raise source.error(f"{what} has a kind that isn't supported; use KIND_CPU or KIND_GPU", *at, "kind")
    if group.kind == ModelInstanceGroup.KIND_CPU and group.gpus:
        raise source.error(f"{what} is KIND_CPU and lists gpus; remove them, or use KIND_GPU", *at, "gpus")
    seen: set[int] = set()
    for position, gpu in enumerate(group.gpus):
        if gpu < 0:
            raise source.error(f"{what} has GPU {gpu}; they count from 0", *at, "gpus", position)
        if gpu in seen:
            raise source.error(f"{what} has GPU {gpu} twice; raise count instead", *at, "gpus", position)
        seen.add(gpu)
    complete = ModelInstanceGroup()
    complete.CopyFrom(group)
    complete.count = group.count or 1
    if group.kind == ModelInstanceGroup.KIND_AUTO:
        complete.kind = ModelInstanceGroup.KIND_GPU if group.gpus else ModelInstanceGroup.KIND_CPU
    if complete.kind == ModelInstanceGroup.KIND_GPU and not group.gpus:
        complete.gpus.append(0)
    return complete
