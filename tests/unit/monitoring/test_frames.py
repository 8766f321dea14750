from __future__ import annotations

import json

import pytest

from tensorferry.monitoring.families import Distribution, Families, Family
from tensorferry.monitoring.frames import frame_of, frame_steps

ONE = ("fraud", "1")
TWO = ("fraud", "2")
BOUNDS = (0.001, 0.002, 0.004)


class Told:
    """Families as a source tells them, written down series by series."""

    def __init__(self) -> None:
        self.families: Families = {}

    def number(self, name, value, *key, kind="counter") -> Told:
        self._family(name, kind).values[key] = value
        return self

    def gauge(self, name, value, *key) -> Told:
        return self.number(name, value, *key, kind="gauge")

    def histogram(self, name, counts, total, *key, bounds=BOUNDS) -> Told:
        self._family(name, "histogram").distributions[key] = Distribution(bounds, counts, total)
        return self

    def _family(self, name, kind) -> Family:
        return self.families.setdefault(name, Family(name, "", kind))


def frame(before: Told, after: Told, interval_s=1.0, not_ready=None):
    return frame_of(before.families, after.families, interval_s, 1000.0, not_ready)


def only(made):
    (model,) = made["models"]
    return model


def answered(count, *key) -> Told:
    return Told().number("nv_inference_request_success", count, *(key or ONE))


def test_rates_are_differences_by_the_seconds_between():
    before = answered(100).number("nv_inference_count", 400, *ONE).number("nv_inference_exec_count", 10, *ONE)
    after = answered(150).number("nv_inference_count", 600, *ONE).number("nv_inference_exec_count", 20, *ONE)
    made = frame(before, after, interval_s=2.0)
    model = only(made)
    assert (model["requests_per_s"], model["rows_per_s"], model["batches_per_s"]) == (25.0, 100.0, 5.0)
    assert made["total"]["requests_per_s"] == 25.0
    assert made["total"]["rows_per_s"] == 100.0
    assert (made["at"], made["interval_s"]) == (1000.0, 2.0)


def test_a_counter_that_went_down_began_anew():
    assert only(frame(answered(100), answered(30)))["requests_per_s"] == 30.0


def test_a_version_that_is_new_began_at_zero():
    assert only(frame(Told(), answered(7)))["requests_per_s"] == 7.0


def test_quantiles_are_of_the_interval_alone():
    name = "tensorferry_response_seconds"
    before = answered(0).histogram(name, [0, 0, 1000, 0], 3.0, *ONE)
    after = answered(0).histogram(name, [100, 0, 1000, 0], 3.05, *ONE)
    model = only(frame(before, after))
    assert model["p50_ms"] == pytest.approx(0.5)
    assert model["p99_ms"] == pytest.approx(0.99)


def test_a_histogram_that_went_down_began_anew():
    name = "tensorferry_run_seconds"
    before = answered(0).histogram(name, [50, 50, 0, 0], 0.1, *ONE)
    after = answered(0).histogram(name, [0, 10, 0, 0], 0.015, *ONE)
    assert only(frame(before, after))["run_p50_ms"] == pytest.approx(1.5)


def test_what_is_not_known_is_none():
    made = frame(answered(0), answered(0))
    model = only(made)
    for field in (
        "ready",
        "share",
        "p50_ms",
        "p99_ms",
        "objective_ms",
        "waiting",
        "streams",
        "busy",
        "inline",
    ):
        assert model[field] is None, field
    assert model["batch_rows"] is None
    assert made["server"].pop("not_ready") == {}
    assert set(made["server"].values()) == {None}
    json.dumps(made, allow_nan=False)


def test_an_interval_without_answers_has_no_quantile():
    same = answered(5).histogram("tensorferry_response_seconds", [5, 0, 0, 0], 0.005, *ONE)
    assert only(frame(same, same))["p99_ms"] is None


def test_busy_is_the_share_of_the_streams_time():
    def at(total):
        told = answered(0).gauge("tensorferry_worker_streams", 2, *ONE)
        return told.histogram("tensorferry_run_seconds", [int(total * 1000), 0, 0, 0], total, *ONE)

    assert only(frame(at(1.0), at(2.5), interval_s=1.0))["busy"] == 0.75
    assert only(frame(at(0.0), at(60.0), interval_s=1.0))["busy"] == 1.0  # a run that began long before


def test_batch_sizes_are_counts_of_the_interval():
    name, bounds = "tensorferry_batch_rows", (1.0, 2.0, 4.0)
    before = answered(0).histogram(name, [5, 1, 0, 0], 7, *ONE, bounds=bounds)
    after = answered(0).histogram(name, [6, 1, 3, 0], 20, *ONE, bounds=bounds)
    rows = only(frame(before, after))["batch_rows"]
    assert rows == {"bounds": [1.0, 2.0, 4.0], "counts": [1, 0, 3, 0]}


def test_shares_are_of_all_that_was_asked_of_the_model():
    def at(one, two, failed):
        told = answered(one).number("nv_inference_request_success", two, *TWO)
        told.number("nv_inference_request_success", 9 * two, "other", "1")
        return told.number("nv_inference_request_failure", failed, *TWO, "BACKEND")

    first, second, other = frame(at(0, 0, 0), at(75, 20, 5))["models"]
    assert (first["share"], second["share"], other["share"]) == (0.75, 0.25, 1.0)


def test_versions_are_in_the_order_of_their_numbers():
    told = answered(0, "b", "10").number("nv_inference_request_success", 0, "b", "9")
    told.number("nv_inference_request_success", 0, "a", "2")
    made = frame(told, told)
    assert [(each["model"], each["version"]) for each in made["models"]] == [
        ("a", "2"),
        ("b", "9"),
        ("b", "10"),
    ]


def failing(rejected, expired, objective, deadline) -> Told:
    told = answered(0)
    for reason, count in (("REJECTED", rejected), ("EXPIRED", expired), ("BACKEND", 0)):
        told.number("nv_inference_request_failure", count, *ONE, reason)
    for reason, count in (("latency_objective", objective), ("deadline", deadline)):
        told.number("tensorferry_inference_request_refused", count, *ONE, reason)
    return told


def test_a_refused_request_counts_once():
    made = frame(failing(0, 0, 0, 0), failing(rejected=8, expired=5, objective=8, deadline=3))
    model = only(made)
    assert model["refusals"] == {"latency_objective": 8.0, "deadline": 3.0}
    assert model["failures"] == {"EXPIRED": 2.0}
    assert (made["total"]["refused_per_s"], made["total"]["failures_per_s"]) == (11.0, 2.0)


def test_reasons_that_did_not_occur_are_left_out():
    def at(full, idle):
        told = answered(0).number("tensorferry_batch_departures", full, *ONE, "full")
        return told.number("tensorferry_batch_departures", idle, *ONE, "idle")

    assert only(frame(at(3, 4), at(3, 6)))["departures"] == {"idle": 2.0}


def test_late_are_those_that_were_answered_late():
    def at(queue, answer):
        told = answered(0).number("tensorferry_deadline_misses", queue, *ONE, "queue")
        return told.number("tensorferry_deadline_misses", answer, *ONE, "answer")

    made = frame(at(0, 0), at(9, 4))
    assert only(made)["late_per_s"] == made["total"]["late_per_s"] == 4.0


def test_labels_objective_and_state_are_those_of_now():
    after = answered(0).gauge("tensorferry_model_label", 1, *ONE, "stable")
    after.gauge("tensorferry_model_label", 1, *ONE, "main").gauge(
        "tensorferry_model_label", 1, *TWO, "canary"
    )
    after.gauge("tensorferry_latency_objective_seconds", 0.01, *ONE).gauge(
        "tensorferry_execution_inline", 1, *ONE
    )
    after.gauge("nv_inference_pending_request_count", 3, *ONE).gauge("tensorferry_model_ready", True, *ONE)
    model = only(frame(answered(0), after))
    assert model["labels"] == ["main", "stable"]
    assert (model["objective_ms"], model["waiting"], model["ready"], model["inline"]) == (10.0, 3, True, True)


def test_the_server_says_what_it_is_and_uses():
    def at(cpu_s, lag):
        told = Told().gauge("tensorferry_info", 1, "0.1.0", "http2").gauge("tensorferry_server_ready", 0)
        told.gauge("tensorferry_processes", 2).gauge("tensorferry_streams", 4).number(
            "process_cpu_seconds", cpu_s
        )
        told.gauge("process_resident_memory_bytes", 2**30)
        return told.histogram("tensorferry_loop_lag_seconds", [lag, 0, 0, 0], 0.0)

    server = frame(at(10.0, 0), at(11.5, 100))["server"]
    assert (server["version"], server["transport"], server["processes"]) == ("0.1.0", "http2", 2)
    assert (server["ready"], server["calls"], server["rss_bytes"]) == (False, 4, 2**30)
    assert server["cpu_cores"] == 1.5
    assert server["loop_lag_p99_ms"] == pytest.approx(0.99)


def test_without_reasons_a_model_that_is_not_ready_is_named():
    told = (
        answered(0)
        .gauge("tensorferry_model_ready", 0, *ONE)
        .gauge("tensorferry_model_ready", 0, "broken", "")
    )
    assert frame(told, told)["server"]["not_ready"] == {"broken": "not ready", "fraud/1": "not ready"}
    reasons = {"fraud/1": "no such file"}
    assert frame(told, told, not_ready=reasons)["server"]["not_ready"] == reasons


def test_many_versions_are_made_in_steps_and_the_same():
    told = Told()
    for number in range(40):
        told.number("nv_inference_request_success", number, "m", str(number))
    steps, pauses = frame_steps({}, told.families, 1.0, 1000.0), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made = end.value
            break
        pauses += 1
    assert pauses == 2
    assert made == frame_of({}, told.families, 1.0, 1000.0)
    assert len(made["models"]) == 40
