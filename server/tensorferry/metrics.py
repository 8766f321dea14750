"""Prometheus metrics, under Triton's names so that existing dashboards work.

Collected when scraped, from the same snapshots as ModelStatistics: counting costs the hot path
nothing beyond what the batcher counts anyway.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tensorferry.batching.statistics import BatcherStatistics
from tensorferry.engine import Engine
from tensorferry.transport import Transport

__all__ = ["exposition", "registry_of", "summed"]

_LABELS = ("model", "version")

#: Name without ``_total``, help, and the snapshot's attribute; durations are in ns there, us here.
_COUNTERS = (
    ("nv_inference_request_success", "Requests answered", "success_count", 1),
    ("nv_inference_count", "Rows inferred", "inference_count", 1),
    ("nv_inference_exec_count", "Batches run", "execution_count", 1),
    ("nv_inference_request_duration_us", "Request time, receipt to answer, summed", "success_ns", 1000),
    ("nv_inference_queue_duration_us", "Time in the queue, summed over requests", "queue_ns", 1000),
    (
        "nv_inference_compute_input_duration_us",
        "Forming inputs, summed over requests",
        "compute_input_ns",
        1000,
    ),
    ("nv_inference_compute_infer_duration_us", "Model's run, summed over requests", "compute_infer_ns", 1000),
    ("nv_inference_compute_output_duration_us", "Outputs, summed over requests", "compute_output_ns", 1000),
)

#: The same for ``CacheStatistics``. Models without the response cache have no samples here.
_CACHE_COUNTERS = (
    ("nv_cache_num_hits_per_model", "Requests answered without a run of their own", "hit_count", 1),
    ("nv_cache_num_misses_per_model", "Requests answered by a run, and then cached", "miss_count", 1),
    ("nv_cache_hit_duration_per_model", "Looking up, summed over hits, in us", "hit_ns", 1000),
    (
        "nv_cache_miss_duration_per_model",
        "Looking up and inserting, summed over misses, in us",
        "miss_ns",
        1000,
    ),
)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        snapshots = [
            ((name, str(number)), live.statistics())
            for name, versions in self._engine.models.items()
            for number, live in versions.items()
        ]
        for metric, description, attribute, divisor in _COUNTERS:
            family = CounterMetricFamily(metric, description, labels=_LABELS)
            for labels, counts in snapshots:
                family.add_metric(labels, getattr(counts, attribute) / divisor)
            yield family
        yield from _failures_and_queue(snapshots)
        yield from _response_cache(self._engine)
        yield from _loads(self._engine)
        yield from _rollouts(self._engine)
        yield GaugeMetricFamily(
            "tensorferry_in_flight_bytes",
            "Tensor bytes of requests waiting or running",
            value=self._engine.in_flight_bytes,
        )


#: Name, help, and the attribute of ``TransportStatistics``.
_HELD = (
    ("tensorferry_connections", "gRPC connections", "connections"),
    ("tensorferry_streams", "Calls in progress", "streams"),
    ("tensorferry_unsent_bytes", "Reply bytes that wait for callers to read them", "unsent_bytes"),
    ("tensorferry_receiving_bytes", "Bytes of requests that are partly here", "receiving_bytes"),
)


class _TransportCollector(Collector):
    """Only the http2 transport knows these; on grpcio they are 0."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def collect(self) -> Iterable[Metric]:
        held = self._transport.statistics()
        for metric, description, attribute in _HELD:
            yield GaugeMetricFamily(metric, description, value=getattr(held, attribute))


def _failures_and_queue(snapshots: list[tuple[tuple[str, str], BatcherStatistics]]) -> Iterable[Metric]:
    failures = CounterMetricFamily(
        "nv_inference_request_failure", "Requests that got an error", labels=(*_LABELS, "reason")
    )
    refused = CounterMetricFamily(
        "tensorferry_inference_request_refused",
        "Requests refused without running, by reason",
        labels=(*_LABELS, "reason"),
    )
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests waiting", labels=_LABELS)
    batches = HistogramMetricFamily("tensorferry_batch_rows", "Rows of the batches run", labels=_LABELS)
    for labels, counts in snapshots:
        for reason, count in counts.failures.items():
            failures.add_metric((*labels, reason), count)
        for reason, count in counts.refusals.items():
            refused.add_metric((*labels, reason), count)
        pending.add_metric(labels, counts.waiting)
        batches.add_metric(labels, *_batch_histogram(counts))
    return failures, refused, pending, batches


def _response_cache(engine: Engine) -> Iterable[Metric]:
    looked_up = [
        ((name, str(number)), live.cache_statistics())
        for name, versions in engine.models.items()
        for number, live in versions.items()
        if live.spec.response_cache
    ]
    for metric, description, attribute, divisor in _CACHE_COUNTERS:
        family = CounterMetricFamily(metric, description, labels=_LABELS)
        for labels, counts in looked_up:
            family.add_metric(labels, getattr(counts, attribute) / divisor)
        yield family
    size = engine.cache_size
    yield GaugeMetricFamily(
        "tensorferry_response_cache_entries", "Answers in the response cache", value=size.count
    )
    yield GaugeMetricFamily(
        "tensorferry_response_cache_bytes", "Bytes that the response cache holds", value=size.byte_size
    )


def _loads(engine: Engine) -> Iterable[Metric]:
    for metric, description, counts in (
        ("tensorferry_model_loads", "Versions loaded, warmed up and checked", engine.loads),
        (
            "tensorferry_model_load_failures",
            "Versions that were refused; the index has the reason",
            engine.load_failures,
        ),
    ):
        family = CounterMetricFamily(metric, description, labels=_LABELS)
        for (name, version), count in sorted(counts.items()):
            family.add_metric((name, str(version)), count)
        yield family


#: Name, help, and the attribute of ``ArmCounts``: of the versions that a rollout compares.
_ARM_COUNTERS = (
    ("tensorferry_rollout_requests", "Requests answered, failed or late during a rollout", "requests"),
    ("tensorferry_rollout_errors", "Of these, failed", "errors"),
    ("tensorferry_rollout_not_finite", "Of these, answered with a NaN or infinite score", "not_finite"),
    ("tensorferry_rollout_late", "Of these, without an answer in time", "late"),
)

#: The same for ``ShadowCounts``.
_SHADOW_COUNTERS = (
    ("tensorferry_shadow_compared", "Copies of requests whose scores were compared", "compared"),
    ("tensorferry_shadow_dropped", "Copies dropped so as not to delay answers", "dropped"),
    ("tensorferry_shadow_errors", "Copies that the shadow failed on", "errors"),
)


def _rollouts(engine: Engine) -> Iterable[Metric]:
    observers, names = engine.observers, list(engine.models)
    arms = [(name, version, counts) for name in names for version, counts in observers.counts(name).items()]
    shadows = [
        (name, version, counts) for name in names for version, counts in observers.shadow_counts(name).items()
    ]
    for table, found in ((_ARM_COUNTERS, arms), (_SHADOW_COUNTERS, shadows)):
        for metric, description, attribute in table:
            family = CounterMetricFamily(metric, description, labels=_LABELS)
            for name, version, counts in found:
                family.add_metric((name, str(version)), getattr(counts, attribute))
            yield family


def _batch_histogram(counts: BatcherStatistics) -> tuple[list[tuple[str, float]], float]:
    buckets: list[tuple[str, float]] = []
    bound = 1
    largest = max(counts.batch_sizes, default=1)
    while True:
        within = sum(size.count for rows, size in counts.batch_sizes.items() if rows <= bound)
        buckets.append((str(bound), within))
        if bound >= largest and bound >= 1024:
            break
        bound *= 2
    buckets.append(("+Inf", counts.execution_count))
    return buckets, counts.inference_count


def registry_of(engine: Engine, transport: Transport) -> CollectorRegistry:
    """Make a registry that collects from ``engine`` and ``transport``."""
    registry = CollectorRegistry()
    registry.register(_EngineCollector(engine))
    registry.register(_TransportCollector(transport))
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """Return the metrics in Prometheus' text format."""
    return generate_latest(registry)


class _SumCollector(Collector):
    def __init__(self, expositions: list[str]) -> None:
        self._expositions = expositions

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for text in self._expositions:
            for family in text_string_to_metric_families(text):
                families.setdefault(family.name, family)
                samples = sums.setdefault(family.name, {})
                for sample in family.samples:
                    key = (sample.name, tuple(sample.labels.items()))
                    samples[key] = samples.get(key, 0.0) + sample.value
        for name, family in families.items():
            total = Metric(name, family.documentation, family.type)
            for (sample_name, labels), value in sums[name].items():
                total.add_sample(sample_name, dict(labels), value)
            yield total


def summed(expositions: list[str]) -> bytes:
    """Add up the metrics of several processes, sample by sample: all of ours are counts or amounts."""
    registry = CollectorRegistry()
    registry.register(_SumCollector(expositions))
    return generate_latest(registry)
