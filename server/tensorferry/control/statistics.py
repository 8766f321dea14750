"""ModelStatistics of all processes: each tells its own, and the parent adds them up.

What a process told last is kept when it dies, so that no count ever falls: what it counted after that
is lost. It is dropped once the version that it is of isn't served any more, or has been loaded anew from
other files, or was unloaded: counts start with a version's life, as Triton's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from tensorferry.engine import Engine, LiveModel
from tensorferry.execution.launching import DeviceStatus
from tensorferry.wire import open_inference_pb2 as pb

__all__ = [
    "FleetStatistics",
    "VersionStatistics",
    "memory_usage",
    "merged",
    "model_statistics",
    "statistics_of",
]

_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_BATCH_DURATIONS = ("compute_input", "compute_infer", "compute_output")
#: Triton's name of pinned memory on the host, of which there is one.
_PINNED = ("CPU_PINNED", 0)


class VersionStatistics(NamedTuple):
    """A version's counts. ``identity`` names what it was loaded from: the same in every process."""

    name: str
    version: int
    identity: str
    message: pb.ModelStatistics

    def to_json(self) -> list[object]:
        """Return it as ``from_json`` takes it."""
        return [self.name, self.version, self.identity, self.message.SerializeToString().hex()]

    @classmethod
    def from_json(cls, told: Sequence[object]) -> VersionStatistics:
        """Return what ``to_json`` was given."""
        name, version, identity, message = told
        assert isinstance(name, str)
        assert isinstance(version, int)
        return cls(name, version, str(identity), pb.ModelStatistics.FromString(bytes.fromhex(str(message))))


def statistics_of(engine: Engine, name: str, version: str) -> list[VersionStatistics]:
    """Return the counts of one process's versions by name and number; "" stands for all."""
    return [
        VersionStatistics(
            own, number, sha256(repr(live.asked).encode()).hexdigest()[:16], model_statistics(live)
        )
        for own, versions in sorted(engine.models.items())
        for number, live in sorted(versions.items())
        if name in ("", own) and version in ("", str(number))
    ]


def model_statistics(live: LiveModel) -> pb.ModelStatistics:
    """Build Triton's message from one snapshot, so that its parts agree with each other."""
    counts = live.statistics()
    cache = live.cache_statistics()

    def duration(count: int, ns: int) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=count, ns=ns)

    answered = counts.success_count
    computed = answered - cache.hit_count
    return pb.ModelStatistics(
        name=live.spec.name,
        version=str(live.spec.version),
        last_inference=counts.last_inference_ms,
        inference_count=counts.inference_count,
        execution_count=counts.execution_count,
        inference_stats=pb.InferStatistics(
            success=duration(answered, counts.success_ns),
            fail=duration(counts.failure_count, counts.failure_ns),
            queue=duration(answered, counts.queue_ns),
            compute_input=duration(computed, counts.compute_input_ns),
            compute_infer=duration(computed, counts.compute_infer_ns),
            compute_output=duration(computed, counts.compute_output_ns),
            cache_hit=duration(cache.hit_count, cache.hit_ns),
            cache_miss=duration(cache.miss_count, cache.miss_ns),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=duration(size.count, size.compute_input_ns),
                compute_infer=duration(size.count, size.compute_infer_ns),
                compute_output=duration(size.count, size.compute_output_ns),
            )
            for rows, size in counts.batch_sizes.items()
        ],
        memory_usage=memory_usage(live.execution().devices),
    )


def memory_usage(devices: Iterable[DeviceStatus]) -> list[pb.MemoryUsage]:
    """Return what copies of a model hold: on each GPU, by its number, and pinned on the host.

    Empty where there are none on a GPU.
    """
    held: dict[tuple[str, int], int] = {}
    for each in devices:
        number = each.device.rpartition(":")[2]
        on_gpu = ("GPU", int(number) if number.isdecimal() else 0)
        held[on_gpu] = held.get(on_gpu, 0) + each.memory.total
        held[_PINNED] = held.get(_PINNED, 0) + each.memory.pinned
    return _usages(held)


def _usages(held: Mapping[tuple[str, int], int]) -> list[pb.MemoryUsage]:
    return [pb.MemoryUsage(type=kind, id=number, byte_size=size) for (kind, number), size in held.items()]


def merged(parts: Sequence[pb.ModelStatistics]) -> pb.ModelStatistics:
    """Add up one version's counts. There must be at least one part; they stay as they are."""
    total = pb.ModelStatistics()
    total.CopyFrom(parts[0])
    sizes = {each.batch_size: each for each in total.batch_stats}
    held = {(each.type, each.id): each.byte_size for each in total.memory_usage}
    for part in parts[1:]:
        total.last_inference = max(total.last_inference, part.last_inference)
        total.inference_count += part.inference_count
        total.execution_count += part.execution_count
        for field in _DURATIONS:
            _add(getattr(total.inference_stats, field), getattr(part.inference_stats, field))
        for each in part.batch_stats:
            size = sizes.get(each.batch_size)
            if size is None:
                size = sizes[each.batch_size] = pb.InferBatchStatistics(batch_size=each.batch_size)
            for field in _BATCH_DURATIONS:
                _add(getattr(size, field), getattr(each, field))
        for use in part.memory_usage:
            held[use.type, use.id] = held.get((use.type, use.id), 0) + use.byte_size
    del total.memory_usage[:]
    total.memory_usage.extend(_usages(held))
    del total.batch_stats[:]
    total.batch_stats.extend(size for _, size in sorted(sizes.items()))
    return total


def _add(into: pb.StatisticDuration, other: pb.StatisticDuration) -> None:
    into.count += other.count
    into.ns += other.ns


_Key = tuple[str, int, str]


class FleetStatistics:
    """What the processes have told, and what is left of those that have died. Used on the loop thread."""

    def __init__(self) -> None:
        self._told: dict[int, dict[_Key, pb.ModelStatistics]] = {}
        self._kept: dict[_Key, pb.ModelStatistics] = {}

    def total(
        self, told: dict[int, list[VersionStatistics]], name: str, version: str
    ) -> list[VersionStatistics]:
        """Take in the answers of all living processes, by process, and return the sums with the dead's."""
        parts: dict[_Key, list[pb.ModelStatistics]] = {}
        for process, own in told.items():
            of_process = self._told.setdefault(process, {})
            for key in [key for key in of_process if _is_asked(key, name, version)]:
                del of_process[key]
            for each in own:
                key = (each.name, each.version, each.identity)
                of_process[key] = each.message
                parts.setdefault(key, []).append(each.message)
        if told:
            for key in [key for key in self._kept if _is_asked(key, name, version) and key not in parts]:
                del self._kept[key]
        for key, of_dead in self._kept.items():
            if key in parts:
                parts[key].append(of_dead)
        return _one_each(parts)

    def leave(self, process: int) -> None:
        """Keep what a process told last, which has died: what it counted, not what it held."""
        for key, message in self._told.pop(process, {}).items():
            known = self._kept.get(key)
            kept = self._kept[key] = merged([message] if known is None else [known, message])
            del kept.memory_usage[:]

    def forget(self, name: str) -> None:
        """Drop what is known of a model: its life is over."""
        for known in (self._kept, *self._told.values()):
            for key in [key for key in known if key[0] == name]:
                del known[key]


def _is_asked(key: _Key, name: str, version: str) -> bool:
    return name in ("", key[0]) and version in ("", str(key[1]))


def _one_each(parts: dict[_Key, list[pb.ModelStatistics]]) -> list[VersionStatistics]:
    """Return one line for each version; processes may have one from unlike files while a change is on."""
    totals: dict[tuple[str, int], VersionStatistics] = {}
    for (name, version, identity), messages in sorted(parts.items(), key=lambda part: part[0]):
        known = totals.get((name, version))
        together: Iterable[pb.ModelStatistics] = messages if known is None else [known.message, *messages]
        totals[name, version] = VersionStatistics(name, version, identity, merged(list(together)))
    return list(totals.values())
