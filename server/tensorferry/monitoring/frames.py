"""What happened between two moments, as a person reads it: rates and quantiles instead of counts.

``frame_of`` is a pure function of two collections of families. The live page and ``tensorferry top``
show its frames, so a frame holds only what JSON can, numbers rounded to four digits, and no number
that isn't known: that is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping
from typing import Any, Final

from tensorferry.monitoring.change import Change, Key, rounded
from tensorferry.monitoring.families import Distribution, Families
from tensorferry.monitoring.frame_devices import device_of, gpus_of

__all__ = ["Frame", "frame_of", "frame_steps"]

#: JSON: {"at", "interval_s", "server": {...}, "gpus": [{...}, ...], "total": {...}, "models": [{...}, ...]}.
Frame = dict[str, Any]

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
    change = Change(before, after, interval_s)
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
        "gpus": gpus_of(change),
        "total": _total(models),
        "models": models,
    }


def _keys(families: Families) -> list[Key]:
    """Return (model, version) of all that have counts or a state, models by name, versions by number."""
    found: set[Key] = set()
    for name in ("nv_inference_request_success", "tensorferry_model_ready"):
        family = families.get(name)
        if family is not None:
            found.update(family.values)
    return sorted(found, key=lambda key: (key[0], int(key[1]) if key[1].isdecimal() else 0, key[1]))


def _model(change: Change, key: Key) -> dict[str, Any]:
    """Return one version's part of a frame, but for its share."""
    ready, inline = (
        change.gauge("tensorferry_model_ready", key),
        change.gauge("tensorferry_execution_inline", key),
    )
    device = device_of(change, key)
    objective_s = change.gauge("tensorferry_latency_objective_seconds", key)
    return {
        "model": key[0],
        "version": key[1],
        "ready": None if ready is None else bool(ready),
        "labels": change.last_labels("tensorferry_model_label", key),
        "share": None,
        **_pace(change, key),
        **_times(change, key),
        "objective_ms": rounded(objective_s, 1000.0),
        "waiting": change.gauge("nv_inference_pending_request_count", key),
        "streams": change.gauge("tensorferry_worker_streams", key),
        # On a GPU batches of one stream overlap: their times add up to more than passed.
        "busy": _busy(change, key) if device is None else device["run"],
        "inline": None if inline is None else bool(inline),
        "batch_rows": _batch_rows(change, key),
        **_reasons(change, key),
        "device": device,
    }


def _pace(change: Change, key: Key) -> dict[str, float | None]:
    """Return the rates of what was answered, and of batches."""
    return {
        "requests_per_s": rounded(change.rate("nv_inference_request_success", key)),
        "rows_per_s": rounded(change.rate("nv_inference_count", key)),
        "batches_per_s": rounded(change.rate("nv_inference_exec_count", key)),
    }


def _times(change: Change, key: Key) -> dict[str, float | None]:
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


def _busy(change: Change, key: Key) -> float | None:
    """Return the share of the streams' time that went into runs: of those that ended in the interval."""
    run = change.distribution("tensorferry_run_seconds", key)
    streams = change.gauge("tensorferry_worker_streams", key)
    if run is None or not streams:
        return None
    return rounded(min(1.0, run.total / (streams * change.interval_s)))


def _batch_rows(change: Change, key: Key) -> dict[str, list[float]] | None:
    rows = change.distribution("tensorferry_batch_rows", key)
    return None if rows is None else {"bounds": list(rows.bounds), "counts": list(rows.counts)}


def _reasons(change: Change, key: Key) -> dict[str, Any]:
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
        "late_per_s": rounded(misses.get("answer", 0.0)),
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
        each["share"] = rounded(count / total) if total else None


def _unready(models: list[dict[str, Any]]) -> dict[str, str]:
    names = (
        "/".join(filter(None, (each["model"], each["version"]))) for each in models if each["ready"] is False
    )
    return dict.fromkeys(names, "not ready")


def _server(change: Change, not_ready: dict[str, str]) -> dict[str, Any]:
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
        "cpu_cores": rounded(change.rate("process_cpu_seconds")),
        "rss_bytes": change.gauge("process_resident_memory_bytes"),
    }


def _total(models: list[dict[str, Any]]) -> dict[str, float | None]:
    return {
        "requests_per_s": rounded(sum(each["requests_per_s"] or 0.0 for each in models)),
        "rows_per_s": rounded(sum(each["rows_per_s"] or 0.0 for each in models)),
        "failures_per_s": rounded(sum(sum(each["failures"].values()) for each in models)),
        "refused_per_s": rounded(sum(sum(each["refusals"].values()) for each in models)),
        "late_per_s": rounded(sum(each["late_per_s"] for each in models)),
    }


def _quantile_ms(distribution: Distribution | None, share: float) -> float | None:
    return None if distribution is None else rounded(distribution.quantile(share), 1000.0)


def _all_rounded(rates: Mapping[str, float]) -> dict[str, float]:
    return {reason: float(f"{rate:.4g}") for reason, rate in rates.items()}
