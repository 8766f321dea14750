"""Who is traced, and how that is changed while calls come."""

from __future__ import annotations

import pytest
from tests.unit.support import run
from tests.unit.tracing.support import NOT_SAMPLED, SAMPLED, Bench

from tensorferry.errors import InvalidRequest
from tensorferry.tracing import Untraced


def test_a_caller_that_samples_is_traced_and_its_trace_goes_on():
    trace = Bench(rate=0).tracer.sample(SAMPLED, b"a=1")
    assert trace.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert trace.parent.span_id == 0xB7AD6B7169203331
    assert trace.parent.state == (("a", "1"),)
    assert trace.span_id not in (0, trace.parent.span_id)


def test_a_caller_that_does_not_sample_is_not_traced():
    assert Bench(rate=1).sampled(100, NOT_SAMPLED) == 0


def test_a_header_that_is_garbage_is_no_decision():
    assert Bench(rate=1).sampled(10, b"garbage") == 10
    assert Bench(rate=0).sampled(10, b"garbage") == 0


@pytest.mark.parametrize("rate", [1, 2, 10, 1000])
def test_one_call_in_so_many_is_traced(rate):
    calls = 2000 * rate
    expected = calls / rate
    # The variance of so many independent trials is below the number expected.
    assert abs(Bench(rate).sampled(calls) - expected) <= 5 * expected**0.5 * (rate > 1)


def test_calls_that_come_in_turn_are_all_traced_sometimes():
    bench = Bench(rate=4)
    traced = {number % 4 for number in range(4000) if bench.sampled()}
    assert traced == {0, 1, 2, 3}


def test_rate_0_leaves_it_to_callers():
    bench = Bench(rate=0)
    assert bench.sampled(10_000) == 0
    assert bench.sampled(10, SAMPLED) == 10


def test_no_more_than_the_bound_are_traced_whoever_asks():
    bench = Bench(rate=1, max_per_s=10)
    assert bench.sampled(50, SAMPLED) == 10
    assert bench.sampled(50) == 0
    bench.clock.advance(0.5)
    assert bench.sampled(50, SAMPLED) == 5
    assert bench.tracer.counts() == {"sampled": 15, "over_limit": 135, "dropped": 0}


def test_a_bound_below_one_a_second_allows_one_now_and_then():
    bench = Bench(rate=1, max_per_s=0.1)
    assert bench.sampled(5) == 1
    bench.clock.advance(9.0)
    assert bench.sampled(5) == 0
    bench.clock.advance(2.0)
    assert bench.sampled(5) == 1


def test_a_bound_of_0_traces_nobody():
    bench = Bench(rate=1, max_per_s=0)
    assert bench.sampled(5, SAMPLED) == 0
    bench.clock.advance(100.0)
    assert bench.sampled(5) == 0


def test_ids_differ():
    bench = Bench()
    traces = [bench.tracer.sample(None, None) for _ in range(100)]
    assert len({trace.trace_id for trace in traces}) == 100
    assert len({trace.span_id for trace in traces}) == 100
    assert all(0 < trace.trace_id < 2**128 and 0 < trace.span_id < 2**64 for trace in traces)


def test_traces_leave_together_at_the_end_of_the_tick():
    bench = Bench()
    first, second = (bench.tracer.sample(None, None) for _ in range(2))
    bench.clock.advance(1.0)
    bench.tracer.ended(first)
    bench.tracer.ended(second)
    assert bench.sink.sent == []
    bench.clock.tick()
    assert bench.sink.sent == [[first, second]]
    assert (first.received_at, first.ended_at) == (0.0, 1.0)
    bench.clock.tick()
    assert len(bench.sink.sent) == 1


def test_closing_sends_what_has_ended():
    bench = Bench()
    trace = bench.tracer.sample(None, None)
    bench.tracer.ended(trace)
    run(bench.tracer.close())
    assert bench.sink.sent == [[trace]]
    assert bench.sink.is_closed


# -- settings ------------------------------------------------------------------------------------


def test_settings_are_told_by_tritons_names():
    assert Bench(rate=7).tracer.describe("") == {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": ["7"],
        "trace_count": ["-1"],
        "trace_mode": ["opentelemetry"],
        "trace_file": [""],
        "log_frequency": ["0"],
    }


def test_what_was_told_can_be_written_back():
    tracer = Bench(rate=7).tracer
    told = tracer.describe("")
    tracer.apply("", told)
    assert tracer.describe("") == told


def test_off_is_off_whoever_asks():
    bench = Bench()
    bench.tracer.apply("", {"trace_level": ["OFF"]})
    assert bench.sampled(10, SAMPLED) == bench.sampled(10) == 0
    bench.tracer.apply("", {"trace_level": []})
    assert bench.sampled(10, SAMPLED) == 10


def test_a_count_is_used_up():
    bench = Bench()
    bench.tracer.apply("", {"trace_count": ["3"]})
    assert bench.sampled(2) == 2
    assert bench.tracer.describe("")["trace_count"] == ["1"]
    assert bench.sampled(10, SAMPLED) == 1
    assert bench.tracer.describe("")["trace_count"] == ["0"]
    bench.tracer.apply("", {"trace_rate": ["1"]})
    assert bench.sampled(10) == 0, "another setting doesn't begin it anew"
    bench.tracer.apply("", {"trace_count": []})
    assert bench.sampled(10) == 10


def test_a_model_has_its_own_settings_and_the_others_have_not():
    bench = Bench(rate=0)
    assert not bench.tracer.has_scopes
    bench.tracer.apply("m", {"trace_rate": ["1"]})
    assert bench.tracer.has_scopes
    assert bench.sampled(5, model="m") == 5
    assert bench.sampled(5, model="other") == 0
    assert bench.tracer.describe("m")["trace_rate"] == ["1"]
    assert bench.tracer.describe("other")["trace_rate"] == ["0"]


def test_what_a_model_has_not_chosen_follows_all_models():
    bench = Bench(rate=1)
    bench.tracer.apply("m", {"trace_level": ["TIMESTAMPS"]})
    bench.tracer.apply("", {"trace_level": ["OFF"], "trace_rate": ["5"]})
    assert bench.tracer.describe("m")["trace_level"] == ["TIMESTAMPS"]
    assert bench.tracer.describe("m")["trace_rate"] == ["5"]
    bench.tracer.apply("m", {"trace_level": []})
    assert bench.tracer.describe("m") == bench.tracer.describe("")
    assert not bench.tracer.has_scopes


def test_a_model_shares_the_count_of_all_until_it_has_its_own():
    bench = Bench()
    bench.tracer.apply("", {"trace_count": ["4"]})
    bench.tracer.apply("m", {"trace_rate": ["1"]})
    assert bench.sampled(3, model="m") == 3
    assert bench.tracer.describe("")["trace_count"] == ["1"]
    bench.tracer.apply("m", {"trace_count": ["2"]})
    assert bench.sampled(5, model="m") == 2
    assert bench.tracer.describe("")["trace_count"] == ["1"]
    bench.tracer.apply("m", {"trace_count": []})
    assert bench.sampled(5, model="m") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trace_level": ["TENSORS"]}, "tensors never leave"),
        ({"trace_level": ["TIMESTAMPS", "TENSORS"]}, "tensors never leave"),
        ({"trace_level": ["timestamps"]}, "OFF, TIMESTAMPS"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, "OFF, TIMESTAMPS"),
        ({"trace_rate": ["-1"]}, "trace_rate must be a whole number from 0"),
        ({"trace_rate": ["1.5"]}, "trace_rate"),
        ({"trace_rate": [""]}, "trace_rate"),
        ({"trace_rate": ["9" * 5000]}, "trace_rate"),
        ({"trace_rate": ["1", "2"]}, "trace_rate"),
        ({"trace_count": ["-2"]}, "trace_count"),
        ({"trace_count": ["--1"]}, "trace_count"),
        ({"trace_mode": ["triton"]}, "OpenTelemetry"),
        ({"trace_file": ["/tmp/trace.json"]}, "written to no file"),
        ({"log_frequency": ["100"]}, "not to files"),
        ({"trace_rate": "1"}, "list of texts"),
        ({"trace_rate": [1]}, "list of texts"),
        ({"trace_level": None}, "list of texts"),
        ({"trace_colour": ["red"]}, "no trace setting 'trace_colour'; there are"),
    ],
)
def test_a_change_that_is_wrong_is_refused_as_a_whole(change, says):
    tracer = Bench(rate=7).tracer
    before = tracer.describe("")
    with pytest.raises(InvalidRequest, match=says) as caught:
        tracer.apply("", {"trace_rate": ["3"], **change})
    assert len(str(caught.value)) < 300
    assert tracer.describe("") == before


def test_models_that_have_settings_are_bounded():
    tracer = Bench().tracer
    for number in range(1024):
        tracer.apply(f"m{number}", {"trace_rate": ["1"]})
    with pytest.raises(InvalidRequest, match="take some back"):
        tracer.apply("one more", {"trace_rate": ["1"]})
    tracer.apply("m7", {"trace_rate": []})
    tracer.apply("one more", {"trace_rate": ["1"]})


def test_without_a_collector_traces_are_off_and_stay_so():
    settings = Untraced()
    told = settings.describe("")
    assert told["trace_level"] == ["OFF"]
    settings.apply("", told | {"trace_count": []})
    with pytest.raises(InvalidRequest, match="--trace-endpoint"):
        settings.apply("m", {"trace_level": ["TIMESTAMPS"]})
