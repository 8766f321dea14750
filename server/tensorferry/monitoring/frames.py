"""What happened between two moments, as a person reads it: rates and quantiles instead of counts.

``frame_of`` is a pure function of two collections of families. The live page and ``tensorferry top``
show its frames, so a frame holds only what JSON can, numbers rounded to four digits, and no number
that isn't known: that is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Final

from tensorferry.monitoring.families import Distribution, Families, Family

__all__ = ["Frame", "frame_of", "frame_steps"]

#: JSON: {"at", "interval_s", "server": {...}, "total": {...}, "models": [{...}, ...]}.
Frame = dict[str, Any]

_Key = tuple[str, ...]

#: Versions whose part of a frame is made in one step.
_IN_A_STEP: Final = 16

#: A refused request counts as failed too. Here it counts once: what failed for a reason on the left is
#: lessened by what was refused for those on the right.
_REFUSED_AS: Final[Mapping[str, tuple[str, ...]]] = {
    "REJECTED": ("max_queue_size", "max_inflight_bytes", "latency_objective"),
    "EXPIRED": ("deadline",),
}


def frame_of(
    before: Families,
    after: Families,
    interval_s: float,
    at: float,
    not_ready: Mapping[str, str] | None = None,
) -> Frame:
    """Return what happened between two collections, ``interval_s`` apart; the later was made ``at``.

    ``at`` is in seconds since 1970. A count that went down is that of a server that started anew: all of
    it happened since. ``not_ready`` says of models why they aren't; None where nobody knows more than
    that they aren't. In ``departures``, ``refusals`` and ``failures`` stand the reasons that occurred.
    A refused request is in ``refusals`` only, one whose deadline came while it waited is in ``failures``,
    and one that was answered after its deadline or the model's objective is in ``late_per_s``.
    """
    steps = frame_steps(before, after, interval_s, at, not_ready)
    while True:
        try:
            next(steps)
        except StopIteration as made:
            frame: Frame = made.value
            return frame


def frame_steps(
    before: Families,
    after: Families,
    interval_s: float,
    at: float,
    not_ready: Mapping[str, str] | None = None,
) -> Generator[None, None, Frame]:
    """Make a frame as ``frame_of`` does, in steps of about a millisecond, and return it in the end."""
    change = _Change(before, after, interval_s)
    models = []
    for index, key in enumerate(_keys(after), 1):
        models.append(_model(change, key))
        if index % _IN_A_STEP == 0:
            yield
    _share_out(models)
    return {
        "at": round(at, 3),
        "interval_s": round(interval_s, 3),
        "server": _server(change, _unready(models) if not_ready is None else dict(not_ready)),
        "total": _total(models),
        "models": models,
    }


class _Change:
    """Looks things up in two collections of families, by name and label values."""

    def __init__(self, before: Families, after: Families, interval_s: float) -> None:
        self._before = before
        self._after = after
        self.interval_s = interval_s
        self._reasons: dict[str, dict[_Key, dict[str, float]]] = {}
        self._labels: dict[_Key, list[str]] | None = None

    def rate(self, name: str, key: _Key = ()) -> float | None:
        """Return by how much a counter grew, a second."""
        family = self._after.get(name)
        value = None if family is None else family.values.get(key)
        return None if value is None else _grown(value, self._earlier(name, key)) / self.interval_s

    def gauge(self, name: str, key: _Key = ()) -> float | None:
        """Return what a gauge shows now."""
        family = self._after.get(name)
        return None if family is None else family.values.get(key)

    def distribution(self, name: str, key: _Key = ()) -> Distribution | None:
        """Return what a histogram counted in the interval."""
        family = self._after.get(name)
        now = None if family is None else family.distributions.get(key)
        if now is None:
            return None
        old = self._before.get(name)
        return now.since(None if old is None else old.distributions.get(key))

    def reasons(self, name: str, key: _Key) -> dict[str, float]:
        """Return the rates above 0 of a counter whose labels are model, version and one more."""
        found = self._reasons.get(name)
        if found is None:
            found = self._reasons[name] = self._by_reason(name)
        return found.get(key, {})

    def rollout_labels(self, key: _Key) -> list[str]:
        """Return the labels that point at a version."""
        if self._labels is None:
            self._labels = defaultdict(list)
            for model, version, label in self.labels_of("tensorferry_model_label"):
                self._labels[model, version].append(label)
        return sorted(self._labels.get(key, ()))

    def _by_reason(self, name: str) -> dict[_Key, dict[str, float]]:
        found: dict[_Key, dict[str, float]] = defaultdict(dict)
        family = self._after.get(name)
        for key, value in family.values.items() if family else ():
            if grown := _grown(value, self._earlier(name, key)):
                found[key[:-1]][key[-1]] = grown / self.interval_s
        return found

    def _earlier(self, name: str, key: _Key) -> float:
        family = self._before.get(name)
        return 0.0 if family is None else family.values.get(key, 0.0)

    def labels_of(self, name: str) -> Iterable[_Key]:
        """Return the label values that a family has series of."""
        family: Family | None = self._after.get(name)
        return () if family is None else family.values


def _grown(now: float, earlier: float) -> float:
    return now - earlier if now >= earlier else now


def _keys(families: Families) -> list[_Key]:
    """Return (model, version) of all that have counts or a state, models by name, versions by number."""
    found: set[_Key] = set()
    for name in ("nv_inference_request_success", "tensorferry_model_ready"):
        family = families.get(name)
        if family is not None:
            found.update(family.values)
    return sorted(found, key=lambda key: (key[0], int(key[1]) if key[1].isdecimal() else 0, key[1]))


def _model(change: _Change, key: _Key) -> dict[str, Any]:
    """Return one version's part of a frame, but for its share."""
    ready, inline = (
        change.gauge("tensorferry_model_ready", key),
        change.gauge("tensorferry_execution_inline", key),
    )
    objective_s = change.gauge("tensorferry_latency_objective_seconds", key)
    return {
        "model": key[0],
        "version": key[1],
        "ready": None if ready is None else bool(ready),
        "labels": change.rollout_labels(key),
        "share": None,
        **_pace(change, key),
        **_times(change, key),
        "objective_ms": _rounded(objective_s, 1000.0),
        "waiting": change.gauge("nv_inference_pending_request_count", key),
        "streams": change.gauge("tensorferry_worker_streams", key),
        "busy": _busy(change, key),
        "inline": None if inline is None else bool(inline),
        "batch_rows": _batch_rows(change, key),
        **_reasons(change, key),
    }


def _pace(change: _Change, key: _Key) -> dict[str, float | None]:
    """Return the rates of what was answered, and of batches."""
    return {
        "requests_per_s": _rounded(change.rate("nv_inference_request_success", key)),
        "rows_per_s": _rounded(change.rate("nv_inference_count", key)),
        "batches_per_s": _rounded(change.rate("nv_inference_exec_count", key)),
    }


def _times(change: _Change, key: _Key) -> dict[str, float | None]:
    """Return quantiles, in ms."""
    response = change.distribution("tensorferry_response_seconds", key)
    queue = change.distribution("tensorferry_queue_seconds", key)
    hold = change.distribution("tensorferry_hold_seconds", key)
    run = change.distribution("tensorferry_run_seconds", key)
    return {
        "p50_ms": _quantile_ms(response, 0.5),
        "p99_ms": _quantile_ms(response, 0.99),
        "queue_p99_ms": _quantile_ms(queue, 0.99),
        "hold_p50_ms": _quantile_ms(hold, 0.5),
        "run_p50_ms": _quantile_ms(run, 0.5),
    }


def _busy(change: _Change, key: _Key) -> float | None:
    """Return the share of the streams' time that went into runs: of those that ended in the interval."""
    run = change.distribution("tensorferry_run_seconds", key)
    streams = change.gauge("tensorferry_worker_streams", key)
    if run is None or not streams:
        return None
    return _rounded(min(1.0, run.total / (streams * change.interval_s)))


def _batch_rows(change: _Change, key: _Key) -> dict[str, list[float]] | None:
    rows = change.distribution("tensorferry_batch_rows", key)
    return None if rows is None else {"bounds": list(rows.bounds), "counts": list(rows.counts)}


def _reasons(change: _Change, key: _Key) -> dict[str, Any]:
    """Return why batches left, why requests were refused or failed, and how many were late, a second."""
    refusals = change.reasons("tensorferry_inference_request_refused", key)
    failures = dict(change.reasons("nv_inference_request_failure", key))
    for failure, refused in _REFUSED_AS.items():
        left = failures.pop(failure, 0.0) - sum(refusals.get(reason, 0.0) for reason in refused)
        if left > 1e-9:
            failures[failure] = left
    misses = change.reasons("tensorferry_deadline_misses", key)
    return {
        "departures": _all_rounded(change.reasons("tensorferry_batch_departures", key)),
        "refusals": _all_rounded(refusals),
        "failures": _all_rounded(failures),
        "late_per_s": _rounded(misses.get("answer", 0.0)),
    }


def _share_out(models: list[dict[str, Any]]) -> None:
    """Fill in each version's share of what was asked of its model, failed or not."""
    asked = [
        (each["requests_per_s"] or 0.0) + sum(each["failures"].values()) + sum(each["refusals"].values())
        for each in models
    ]
    of_model: dict[str, float] = defaultdict(float)
    for each, count in zip(models, asked, strict=True):
        of_model[each["model"]] += count
    for each, count in zip(models, asked, strict=True):
        total = of_model[each["model"]]
        each["share"] = _rounded(count / total) if total else None


def _unready(models: list[dict[str, Any]]) -> dict[str, str]:
    names = (
        "/".join(filter(None, (each["model"], each["version"]))) for each in models if each["ready"] is False
    )
    return dict.fromkeys(names, "not ready")


def _server(change: _Change, not_ready: dict[str, str]) -> dict[str, Any]:
    info = next(iter(change.labels_of("tensorferry_info")), ("", ""))
    ready = change.gauge("tensorferry_server_ready")
    lag = change.distribution("tensorferry_loop_lag_seconds")
    return {
        "version": info[0] or None,
        "transport": info[1] or None,
        "processes": change.gauge("tensorferry_processes"),
        "ready": None if ready is None else bool(ready),
        "not_ready": not_ready,
        "connections": change.gauge("tensorferry_connections"),
        "calls": change.gauge("tensorferry_streams"),
        "in_flight_bytes": change.gauge("tensorferry_in_flight_bytes"),
        "unsent_bytes": change.gauge("tensorferry_unsent_bytes"),
        "loop_lag_p99_ms": _quantile_ms(lag, 0.99),
        "cpu_cores": _rounded(change.rate("process_cpu_seconds")),
        "rss_bytes": change.gauge("process_resident_memory_bytes"),
    }


def _total(models: list[dict[str, Any]]) -> dict[str, float | None]:
    return {
        "requests_per_s": _rounded(sum(each["requests_per_s"] or 0.0 for each in models)),
        "rows_per_s": _rounded(sum(each["rows_per_s"] or 0.0 for each in models)),
        "failures_per_s": _rounded(sum(sum(each["failures"].values()) for each in models)),
        "refused_per_s": _rounded(sum(sum(each["refusals"].values()) for each in models)),
        "late_per_s": _rounded(sum(each["late_per_s"] for each in models)),
    }


def _quantile_ms(distribution: Distribution | None, share: float) -> float | None:
    return None if distribution is None else _rounded(distribution.quantile(share), 1000.0)


def _rounded(value: float | None, factor: float = 1.0) -> float | None:
    """Return four digits of it: what a chart shows, in few bytes."""
    return None if value is None else float(f"{value * factor:.4g}")


def _all_rounded(rates: Mapping[str, float]) -> dict[str, float]:
    return {reason: float(f"{rate:.4g}") for reason, rate in rates.items()}
