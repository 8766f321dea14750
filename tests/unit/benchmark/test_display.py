"""What ``bench`` prints and writes of a run: figures, bars, JSON and the percentile distribution."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from tensorferry.benchmark.display import bars, milliseconds, row_heads, step_row, summary
from tensorferry.benchmark.endings import Ending, Failure
from tensorferry.benchmark.measurement import Limits, Measurement, measured
from tensorferry.benchmark.server import Counts, difference
from tensorferry.benchmark.session import Found, Plan
from tensorferry.benchmark.sweep import Step
from tensorferry.benchmark.traffic import Result

ENDINGS = (Ending(0, ""), Ending(8, "the queue is full"), Ending(Failure.LOST, "closed"))
BEFORE = Counts(requests=5, rows=5, executions=5)
AFTER = Counts(105, 0, 205, 55, 200_000_000, 100_000_000, 10_000_000, 80_000_000, 10_000_000)


def result_of(latency_ms: list[float], ending: list[int] | None = None, slip_ms: float = 0.1) -> Result:
    """A call each 10 ms; ``ending`` by place in ENDINGS."""
    count = len(latency_ms)
    intended_s = np.arange(count) / 100
    return Result(
        ("mlp",),
        np.zeros(count, np.int16),
        intended_s,
        intended_s + slip_ms / 1000,
        intended_s + np.array(latency_ms) / 1000,
        np.array(ending or [0] * count, np.int32),
        ENDINGS,
        lasted_s=count / 100,
        cpu_s=count / 400,
    )


def found_in(result: Result, *, is_open: bool = True, limits: Limits | None = None) -> Measurement:
    return measured(result, level=100, is_open=is_open, rows=2, limits=limits or Limits())


ONE_TO_HUNDRED = [float(each) for each in range(1, 101)]


def test_an_open_loop_counts_from_the_intended_time_and_a_closed_one_from_sending():
    result = result_of([10.0] * 5, slip_ms=4.0)
    assert found_in(result).at(50) == pytest.approx(10, rel=0.001)
    assert found_in(result, is_open=False).at(50) == pytest.approx(6, rel=0.001)


def test_percentiles_throughput_and_rows_are_those_of_the_answered_calls():
    found = found_in(result_of([*ONE_TO_HUNDRED, 0.001], [0] * 100 + [1]))
    assert (found.ok, found.refused, found.failed) == (100, 1, 0)
    assert found.at(50) == pytest.approx(50, rel=0.001)
    assert found.at(100) == pytest.approx(100, rel=0.001)
    assert found.calls_per_s == pytest.approx(100 / 1.09, rel=0.001)
    assert found.errors == {"RESOURCE_EXHAUSTED: the queue is full": 1}


def test_the_objective_is_kept_by_the_percentile_that_was_asked_for():
    result = result_of(ONE_TO_HUNDRED)
    assert found_in(result, limits=Limits(51, 50)).is_within
    assert not found_in(result, limits=Limits(51, 99)).is_within


def test_errors_keep_no_objective():
    assert not found_in(result_of([1.0, 1.0], [0, 2]), limits=Limits(1000)).is_within


def test_a_late_generator_makes_the_run_not_valid():
    assert not found_in(result_of([9.0] * 5)).not_valid
    assert "calls left late, 3 ms" in found_in(result_of([9.0] * 5, slip_ms=3.0)).not_valid[0]
    assert (
        "more --connections"
        in found_in(dataclasses.replace(result_of([9.0] * 5, slip_ms=3.0), held=4)).not_valid[0]
    )


def test_a_closed_loop_that_takes_its_whole_core_is_not_valid():
    busy = dataclasses.replace(result_of([1.0] * 5), cpu_s=10.0)
    assert "100% of its core" in found_in(busy, is_open=False).not_valid[0]
    assert not found_in(busy).not_valid


def test_bars_add_up_to_all_calls_and_the_longest_is_the_largest_class():
    lines = bars(found_in(result_of([1.0] * 90 + [10.0] * 9 + [100.0]))).splitlines()[1:]
    shares = [float(line.split()[1].rstrip("%")) for line in lines if "%" in line]
    assert shares == [90.0, 9.0, 1.0]
    lengths = [line.count("█") for line in lines]
    assert lengths[0] == max(lengths) == 44
    assert lines[-1].rstrip()[-1] not in "% "


@pytest.mark.parametrize("latencies", [[5.0], [5.0, 5.0], [0.001, 3000.0]])
def test_bars_stand_few_and_extreme_calls(latencies):
    assert "%" in bars(found_in(result_of(latencies)))


def test_a_run_without_answers_shows_its_errors_and_no_bars():
    found = found_in(result_of([1.0, 1.0], [2, 2]))
    assert bars(found) == ""
    assert "2 x LOST: closed" in summary(found, None, "it was restarted")


def test_everything_fits_eighty_columns():
    long = dataclasses.replace(result_of(ONE_TO_HUNDRED, [0] * 99 + [1], 30.0), endings=(
        ENDINGS[0], Ending(8, "long " * 40), ENDINGS[2],
    ))  # fmt: skip
    found = found_in(long, limits=Limits(5.0))
    says = difference(BEFORE, AFTER)
    text = [summary(found, says), row_heads(is_open=True), step_row(Step(64_000, 2, found), says)]
    assert max(map(len, "\n".join(text).splitlines())) <= 80


def test_the_server_says_where_the_time_went():
    says = difference(BEFORE, AFTER)
    assert (says.requests, says.batch_rows, says.total_ms, says.queue_ms) == (100, 4.0, 2.0, 1.0)
    assert "100 requests in 50 executions, 4.00 rows a batch" in summary(found_in(result_of([3.0])), says)


def test_counts_that_went_back_say_nothing():
    assert difference(AFTER, BEFORE) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (float("inf"), "-"), (0.1234, "0.123"), (12.345, "12.3"), (1234.5, "1,234")],
)
def test_latencies_have_three_digits(value, shown):
    assert milliseconds(value) == shown


def test_the_percentile_distribution_is_what_the_plotter_reads():
    text = found_in(result_of(ONE_TO_HUNDRED)).hgrm().decode()
    lines = text.splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert "#[Max     =      100.0" in text or "100" in lines[-2]
    assert float(lines[2].split()[0]) == pytest.approx(1, rel=0.01)


RUN_KEYS = {
    "loop", "rate_per_s", "concurrency", "seconds", "calls", "ok", "refused", "failed", "errors",
    "calls_per_s", "rows_per_s", "latency_ms", "slip_ms", "generator_busy", "valid", "not_valid_because",
    "within_objective", "histogram_us", "server",
}  # fmt: skip


def test_the_json_has_what_its_schema_says():
    found = found_in(result_of(ONE_TO_HUNDRED), limits=Limits(500.0))
    says = difference(BEFORE, AFTER)
    plan = Plan("mlp", "localhost:8001", True, (10.0, 100.0), limits=Limits(500.0))
    document = Found(found, says, [(Step(100, 1, found), says)]).to_dict(plan)
    whole = json.loads(json.dumps(document, allow_nan=False))
    assert set(whole) == {
        "schema", "model", "version", "server", "rows", "connections", "percentile", "objective_ms",
        "interrupted", "sweep", "result", "steps",
    }  # fmt: skip
    assert set(whole["result"]) == RUN_KEYS
    assert set(whole["steps"][0]) == RUN_KEYS | {"level", "attempt"}
    assert set(whole["result"]["latency_ms"]) == {"mean", "p50", "p90", "p95", "p99", "p99.9", "max"}
    assert whole["result"]["within_objective"] is True
    decoded = HdrHistogram.decode(whole["result"]["histogram_us"])
    assert decoded.get_total_count() == 100


def test_the_json_of_a_run_without_answers_has_nulls():
    found = found_in(dataclasses.replace(result_of([1.0], [2]), sent_s=np.array([np.nan])))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["latency_ms"]["p99"] is None
    assert json.loads(text)["slip_ms"]["p99"] is None
