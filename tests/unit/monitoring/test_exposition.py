"""Families as Prometheus' text: names, types, and cumulative buckets under the labels that people query."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.support import run

from tensorferry.batching.histogram import BOUNDS_S, Histogram
from tensorferry.monitoring.collect_engine import distribution_of
from tensorferry.monitoring.exposition import EXPORTED_S, render
from tensorferry.monitoring.families import Distribution, Families, Family
from tensorferry.monitoring.pacing import Turns
from tensorferry.testing.clock import VirtualClock

KEY = ("m", "1")
LABELS = ("model", "version")


def text_of(*families: Family) -> str:
    told: Families = {each.name: each for each in families}
    return b"".join(run(render(told, Turns(VirtualClock())))).decode()


def durations(*values_s: float) -> Family:
    histogram = Histogram()
    for value_s in values_s:
        histogram.add(value_s)
    return Family(
        "tensorferry_run_seconds",
        "Runs",
        "histogram",
        LABELS,
        distributions={KEY: distribution_of(histogram)},
    )


def test_the_bounds_that_are_exported_are_among_those_counted():
    assert set(EXPORTED_S) <= set(BOUNDS_S)


def test_buckets_are_cumulative_and_the_last_is_the_count():
    lines = text_of(durations(0.00005, 0.0002, 0.00025, 0.003, 20.0)).splitlines()
    labels = 'model="m",version="1"'
    assert f'tensorferry_run_seconds_bucket{{le="5e-05",{labels}}} 1.0' in lines
    assert f'tensorferry_run_seconds_bucket{{le="0.0001",{labels}}} 1.0' in lines
    assert f'tensorferry_run_seconds_bucket{{le="0.00025",{labels}}} 3.0' in lines
    assert f'tensorferry_run_seconds_bucket{{le="0.005",{labels}}} 4.0' in lines
    assert f'tensorferry_run_seconds_bucket{{le="10.0",{labels}}} 4.0' in lines
    assert f'tensorferry_run_seconds_bucket{{le="+Inf",{labels}}} 5.0' in lines
    assert f"tensorferry_run_seconds_count{{{labels}}} 5.0" in lines
    (total,) = (line for line in lines if line.startswith("tensorferry_run_seconds_sum"))
    assert float(total.rpartition(" ")[2]) == pytest.approx(20.00350)


def test_the_exported_bounds_are_written_as_prometheus_reads_them():
    lines = text_of(durations(1.0)).splitlines()
    written = [line.partition('le="')[2].partition('"')[0] for line in lines if "_bucket" in line]
    assert written == [
        *("5e-05", "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025"),
        *("0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"),
    ]


def test_other_bounds_are_exported_as_they_are():
    rows = Distribution((1.0, 2.0), [3, 0, 1], 11)
    text = text_of(Family("tensorferry_batch_rows", "Rows", "histogram", distributions={(): rows}))
    assert [line for line in text.splitlines() if "_bucket" in line] == [
        'tensorferry_batch_rows_bucket{le="1.0"} 3.0',
        'tensorferry_batch_rows_bucket{le="2.0"} 3.0',
        'tensorferry_batch_rows_bucket{le="+Inf"} 4.0',
    ]


def test_our_counters_end_in_total_and_tritons_are_named_as_triton_names_them():
    ours = Family("tensorferry_model_loads", "Loads", "counter", LABELS, values={KEY: 2})
    tritons = Family("nv_inference_request_success", "Answered", "counter", LABELS, values={KEY: 3})
    assert text_of(ours, tritons).splitlines() == [
        "# HELP tensorferry_model_loads_total Loads",
        "# TYPE tensorferry_model_loads_total counter",
        'tensorferry_model_loads_total{model="m",version="1"} 2.0',
        "# HELP nv_inference_request_success Answered",
        "# TYPE nv_inference_request_success counter",
        'nv_inference_request_success{model="m",version="1"} 3.0',
    ]


@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
def test_a_family_of_many_series_has_one_head_and_all_its_series(kind: str):
    keys = [(f"m{number}", "1") for number in range(1000)]
    many = Family("tensorferry_x", "X", kind, LABELS)
    if kind == "histogram":
        many.distributions = {key: Distribution((1.0,), [1, 1], 3.0) for key in keys}
    else:
        many.values = dict.fromkeys(keys, 7.0)
    text = text_of(many, Family("tensorferry_y", "Y", "gauge", values={(): 1}))
    assert text.count("# HELP tensorferry_x") == text.count("# TYPE tensorferry_x") == 1
    (x, y) = text_string_to_metric_families(text)
    assert (x.type, y.type) == (kind, "gauge")
    assert {sample.labels["model"] for sample in x.samples} == {name for name, _ in keys}
    assert len(x.samples) == len(keys) * (4 if kind == "histogram" else 1)


def test_a_long_text_comes_in_pieces_which_other_tasks_run_between():
    keys = [(f"m{number}", "1") for number in range(5000)]
    many = Family("tensorferry_x", "X", "gauge", LABELS, values=dict.fromkeys(keys, 1.0))

    async def main() -> tuple[int, int]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        pieces = await render({many.name: many}, Turns(VirtualClock()))
        running.cancel()
        return turns, max(map(len, pieces))

    turns, longest = run(main())
    assert turns >= 25
    assert longest < 32 * 1024


def test_label_values_and_helps_are_escaped():
    odd = 'a"b\\c\nd'
    text = text_of(Family("tensorferry_x", "one\\two\nthree", "gauge", ("model",), values={(odd,): 1}))
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"model": odd}
    assert len(text.splitlines()) == 3


def test_a_family_without_series_has_its_head_alone():
    assert text_of(Family("tensorferry_x", "X", "gauge", LABELS)).splitlines() == [
        "# HELP tensorferry_x X",
        "# TYPE tensorferry_x gauge",
    ]
