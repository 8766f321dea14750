"""Families of what the engine knows: every version's counts and state, rollouts, and the response cache.

Collected when asked for, from the same snapshots as ModelStatistics. One version's values are of one
moment, so that they agree with each other; between versions the loop goes on with its work.

Label values are names from the repository and of rollouts, and words of this program: nothing that a
caller sends becomes one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tensorferry.batching.histogram import BOUNDS_S, Histogram
from tensorferry.batching.statistics import BatcherStatistics
from tensorferry.engine import Engine, LiveModel, ModelState
from tensorferry.monitoring.collect_devices import device_families, put_devices
from tensorferry.monitoring.families import Distribution, Families, Family

__all__ = ["ROWS_BOUNDS", "EngineCollector", "distribution_of"]

#: Upper bounds of ``tensorferry_batch_rows``.
ROWS_BOUNDS: Final = tuple(float(1 << power) for power in range(13))

#: Versions that are collected at a stretch: about a millisecond.
_AT_A_STRETCH: Final = 16

_Key = tuple[str, ...]

_VERSION: Final = ("model", "version")
_REASON: Final = ("model", "version", "reason")

#: Name, help, attribute of ``BatcherStatistics``; what is in ns there is in us here.
_COUNTS: Final = (
    ("nv_inference_request_success", "Requests answered", "success_count"),
    ("nv_inference_count", "Rows inferred", "inference_count"),
    ("nv_inference_exec_count", "Batches run", "execution_count"),
)
_DURATIONS: Final = (
    ("nv_inference_request_duration_us", "Receipt to answer, summed over requests answered", "success_ns"),
    ("nv_inference_queue_duration_us", "Time in the queue, summed over requests answered", "queue_ns"),
    (
        "nv_inference_compute_input_duration_us",
        "Forming inputs, summed over requests answered",
        "compute_input_ns",
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "The model's run, summed over requests answered",
        "compute_infer_ns",
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Outputs and the way back, summed over requests answered",
        "compute_output_ns",
    ),
)

#: Name, help, attribute of ``Histograms``. An ensemble has no batches of its own, and the last alone.
_HISTOGRAMS: Final = (
    ("tensorferry_queue_seconds", "How long a request waited until its batch left", "queue"),
    ("tensorferry_hold_seconds", "How long a batch was held while a worker stream was idle", "hold"),
    ("tensorferry_run_seconds", "How long a batch took to run", "run"),
    ("tensorferry_response_seconds", "From a request's receipt to its answer", "response"),
)

#: Name, help, attribute of ``CacheStatistics``, and what a unit of that is here.
_CACHE: Final = (
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

#: Name, help, attribute of ``ArmCounts``: of the versions that a rollout compares.
_ARMS: Final = (
    ("tensorferry_rollout_requests", "Requests answered, failed or late during a rollout", "requests"),
    ("tensorferry_rollout_errors", "Of these, failed", "errors"),
    ("tensorferry_rollout_not_finite", "Of these, answered with a NaN or infinite score", "not_finite"),
    ("tensorferry_rollout_late", "Of these, without an answer in time", "late"),
)

#: The same of ``ShadowCounts``.
_SHADOWS: Final = (
    ("tensorferry_shadow_compared", "Copies of requests whose scores were compared", "compared"),
    ("tensorferry_shadow_dropped", "Copies dropped so as not to delay answers", "dropped"),
    ("tensorferry_shadow_errors", "Copies that the shadow failed on", "errors"),
)

#: Name, help, kind, labels, and how processes combine.
_OTHERS: Final = (
    ("nv_inference_request_failure", "Requests that got an error", "counter", _REASON, "sum"),
    ("nv_inference_pending_request_count", "Requests waiting", "gauge", _VERSION, "sum"),
    ("tensorferry_batch_rows", "Rows of the batches run", "histogram", _VERSION, "sum"),
    ("tensorferry_batch_departures", "Why batches left the queue", "counter", _REASON, "sum"),
    (
        "tensorferry_deadline_misses",
        "Requests that expired before they ran (queue), or were answered after their deadline or the"
        " model's objective (answer)",
        "counter",
        ("model", "version", "kind"),
        "sum",
    ),
    (
        "tensorferry_inference_request_refused",
        "Requests refused without running, by reason",
        "counter",
        _REASON,
        "sum",
    ),
    ("tensorferry_true_elements", "Elements of padded batches that callers sent", "counter", _VERSION, "sum"),
    (
        "tensorferry_padded_elements",
        "Elements run beside them that are padding alone",
        "counter",
        _VERSION,
        "sum",
    ),
    ("tensorferry_latency_objective_seconds", "The model's latency objective", "gauge", _VERSION, "max"),
    ("tensorferry_worker_streams", "Copies of the model that run batches", "gauge", _VERSION, "sum"),
    ("tensorferry_worker_streams_busy", "Of these, running one now", "gauge", _VERSION, "sum"),
    (
        "tensorferry_execution_inline",
        "1 where the model runs on the event loop, 0 on a thread",
        "gauge",
        _VERSION,
        "max",
    ),
    (
        "tensorferry_execution_moves",
        "Moves of the model between the event loop and a thread",
        "counter",
        _VERSION,
        "sum",
    ),
    ("tensorferry_model_ready", "1 where the version takes requests", "gauge", _VERSION, "min"),
    (
        "tensorferry_model_label",
        "1 for each label that points at the version",
        "gauge",
        ("model", "version", "label"),
        "max",
    ),
    (
        "tensorferry_model_share",
        "Share of the requests that name neither version nor label which the version gets",
        "gauge",
        _VERSION,
        "max",
    ),
    ("tensorferry_model_loads", "Versions loaded, warmed up and checked", "counter", _VERSION, "sum"),
    (
        "tensorferry_model_load_failures",
        "Versions that were refused; the index has the reason",
        "counter",
        _VERSION,
        "sum",
    ),
    (
        "tensorferry_in_flight_bytes",
        "Tensor bytes of requests waiting or running",
        "gauge",
        (),
        "sum",
    ),
    ("tensorferry_response_cache_entries", "Answers in the response cache", "gauge", (), "sum"),
    ("tensorferry_response_cache_bytes", "Bytes that the response cache holds", "gauge", (), "sum"),
)


def distribution_of(histogram: Histogram) -> Distribution:
    """Return a histogram's counts of now. The histogram may go on counting."""
    return Distribution(BOUNDS_S, list(histogram.counts), histogram.sum_s)


class EngineCollector:
    """Makes families of an engine. Used on the loop thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: The GPUs that versions were on when they were collected last: names here (cuda:0) by UUID.
        self.devices: dict[str, str] = {}

    async def collect(self) -> Families:
        """Return what the engine has counted, and how it is."""
        engine, families = self._engine, _empty()
        versions = {
            (name, str(number)): live
            for name, of_model in engine.models.items()
            for number, live in of_model.items()
        }
        _put_state(families, engine, versions)
        # Withdrawn ones have counts until they have answered what they took.
        retiring = {(live.spec.name, str(live.spec.version)): live for live in engine.retiring}
        devices: dict[str, str] = {}
        for index, (key, live) in enumerate((retiring | versions).items(), 1):
            _put_version(families, key, live)
            state = live.execution()
            if state.devices:
                put_devices(families, key, state, live.is_lost)
                devices |= {each.gpu_uuid: each.device for each in state.devices if each.gpu_uuid}
            if index % _AT_A_STRETCH == 0:
                await asyncio.sleep(0)
        self.devices = devices
        _put_rollouts(families, engine)
        return families


def _empty() -> Families:
    counters = [(name, help) for name, help, _ in (*_COUNTS, *_DURATIONS, *_ARMS, *_SHADOWS)]
    counters += [(name, help) for name, help, _, _ in _CACHE]
    families = [Family(name, help, "counter", _VERSION) for name, help in counters]
    families += [Family(name, help, "histogram", _VERSION) for name, help, _ in _HISTOGRAMS]
    families += [Family(*each) for each in _OTHERS]
    families += device_families()
    return {each.name: each for each in families}


# -- one version --------------------------------------------------------------------------------------


def _put_version(families: Families, key: _Key, live: LiveModel) -> None:
    counts = live.statistics()
    for name, _, attribute in _COUNTS:
        families[name].values[key] = getattr(counts, attribute)
    for name, _, attribute in _DURATIONS:
        families[name].values[key] = getattr(counts, attribute) / 1000
    families["nv_inference_pending_request_count"].values[key] = counts.waiting
    families["tensorferry_batch_rows"].distributions[key] = _rows(counts)
    _put_reasons(families, key, counts)
    _put_histograms(families, key, live, counts)
    if not live.spec.steps:
        _put_batching(families, key, live, counts)
    if live.spec.response_cache:
        looked_up = live.cache_statistics()
        for name, _, attribute, unit in _CACHE:
            families[name].values[key] = getattr(looked_up, attribute) / unit


def _put_reasons(families: Families, key: _Key, counts: BatcherStatistics) -> None:
    for name, by_reason in (
        ("nv_inference_request_failure", counts.failures),
        ("tensorferry_inference_request_refused", counts.refusals),
    ):
        values = families[name].values
        for reason, count in by_reason.items():
            values[*key, reason] = count
    misses = families["tensorferry_deadline_misses"].values
    misses[*key, "queue"] = counts.failures["EXPIRED"]
    misses[*key, "answer"] = counts.late_count


def _put_histograms(families: Families, key: _Key, live: LiveModel, counts: BatcherStatistics) -> None:
    if counts.histograms is None:
        return
    for name, _, attribute in _HISTOGRAMS[-1:] if live.spec.steps else _HISTOGRAMS:
        families[name].distributions[key] = distribution_of(getattr(counts.histograms, attribute))


def _put_batching(families: Families, key: _Key, live: LiveModel, counts: BatcherStatistics) -> None:
    departures = families["tensorferry_batch_departures"].values
    for reason, count in counts.departures.items():
        departures[*key, reason] = count
    state = live.execution()
    found: list[tuple[str, float]] = [
        ("tensorferry_worker_streams", state.streams),
        ("tensorferry_worker_streams_busy", state.busy),
        ("tensorferry_execution_inline", state.is_inline),
        ("tensorferry_execution_moves", state.moves),
    ]
    if live.spec.padding is not None:
        found.append(("tensorferry_true_elements", counts.true_elements))
        found.append(("tensorferry_padded_elements", counts.padded_elements))
    for name, value in found:
        families[name].values[key] = value


def _rows(counts: BatcherStatistics) -> Distribution:
    buckets = [0] * (len(ROWS_BOUNDS) + 1)
    for rows, size in counts.batch_sizes.items():
        buckets[min(max(rows - 1, 0).bit_length(), len(ROWS_BOUNDS))] += size.count
    return Distribution(ROWS_BOUNDS, buckets, counts.inference_count)


# -- the whole ----------------------------------------------------------------------------------------


def _put_state(families: Families, engine: Engine, versions: dict[tuple[str, str], LiveModel]) -> None:
    ready, objective = (
        families["tensorferry_model_ready"].values,
        families["tensorferry_latency_objective_seconds"].values,
    )
    for key, live in versions.items():
        ready[key] = live.state is ModelState.READY
        if live.spec.batching.latency_objective_ms:
            objective[key] = live.spec.batching.latency_objective_ms / 1000
    for name in engine.models:
        if engine.fault(name) and not engine.models[name]:
            ready[name, ""] = False  # its configuration was refused: nobody knows its versions
        for number, share in engine.shares(name).items():
            families["tensorferry_model_share"].values[name, str(number)] = share
        for label, number in engine.rollout(name).labels.items():
            families["tensorferry_model_label"].values[name, str(number), label] = 1
    for counted, counts in (
        ("tensorferry_model_loads", engine.loads),
        ("tensorferry_model_load_failures", engine.load_failures),
    ):
        for (name, version), count in sorted(counts.items()):
            families[counted].values[name, str(version)] = count
    size = engine.cache_size
    families["tensorferry_in_flight_bytes"].values[()] = engine.in_flight_bytes
    families["tensorferry_response_cache_entries"].values[()] = size.count
    families["tensorferry_response_cache_bytes"].values[()] = size.byte_size


def _put_rollouts(families: Families, engine: Engine) -> None:
    observers = engine.observers
    for name in list(engine.models):
        for version, arm in observers.counts(name).items():
            for family, _, attribute in _ARMS:
                families[family].values[name, str(version)] = getattr(arm, attribute)
        for version, shadow in observers.shadow_counts(name).items():
            for family, _, attribute in _SHADOWS:
                families[family].values[name, str(version)] = getattr(shadow, attribute)
