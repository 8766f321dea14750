"""What a cached model and an ensemble count is consistent, and is of the callers' requests."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.batching.test_statistics import assert_not_fallen
from tests.unit.engine.test_cached_intake import CachedStation
from tests.unit.engine.test_ensemble import step, two_steps, values
from tests.unit.support import bytes_spec, picky

from tensorferry.batching.pending import NEVER
from tensorferry.engine.response_cache import CacheStatistics
from tensorferry.errors import TensorferryError

SPLIT = {"split_oversized": True}


class Slow:
    """Makes a station's look-ups take time: each look at the clock takes a microsecond."""

    def __init__(self, station: CachedStation) -> None:
        clock = station.clock
        now = clock.now

        def slow() -> float:
            clock.sleep(1e-6)
            return now()

        clock.now = slow


def assert_cached_counts_add_up(station: CachedStation) -> None:
    counts, cache = station.statistics, station.intake.cache_statistics()
    parts_ns = counts.queue_ns + counts.compute_input_ns + counts.compute_infer_ns + counts.compute_output_ns
    assert counts.success_ns == parts_ns + cache.hit_ns
    assert counts.success_count == cache.hit_count + cache.miss_count
    assert counts.failure_count == sum(counts.failures.values())


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.sampled_from([b"a", b"b", b"c\xff"]),
            st.sampled_from([1, 1, 3, 10]),
            st.sampled_from([NEVER, NEVER, 1.0]),
        ),
        st.tuples(
            st.sampled_from(["finish", "finish", "advance", "tick", "cancel", "unload"]), st.integers(0, 9)
        ),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS, split=st.booleans(), is_slow=st.booleans())
def test_a_cached_models_counts_add_up(actions, split, is_slow):
    station = CachedStation(
        bytes_spec(4 if split else 16, **(SPLIT if split else {})), split=split, behaviour=picky
    )
    if is_slow:
        Slow(station)
    requests = []
    before = station.statistics
    for name, *more in actions:
        if name == "submit":
            data, rows, after = more
            with contextlib.suppress(TensorferryError):
                requests.append(station.submit(data, rows, station.clock.now() + after))
        elif name == "finish" and station.executor.running:
            station.executor.finish()
        elif name == "advance":
            station.clock.advance(0.5)
        elif name == "tick":
            station.tick()
        elif name == "cancel" and requests:
            station.intake.cancel(requests[more[0] % len(requests)])
        elif name == "unload":
            station.unload()
        counts = station.statistics
        assert_not_fallen(before, counts)
        before = counts
    station.finish_all()
    if not split:  # a split run's batches may be under way when it is answered
        assert_not_fallen(before, station.statistics)
    assert_cached_counts_add_up(station)
    counts = station.statistics
    assert counts.success_count == sum(request.error is None for request in requests)
    assert counts.failure_count >= sum(request.error is not None for request in requests)


def test_a_hits_time_is_looking_up_and_else_waiting():
    station = CachedStation()
    station.submit(b"a")
    station.finish_all()
    Slow(station)
    before, cached = station.statistics, station.intake.cache_statistics()
    station.submit(b"a")
    station.clock.sleep(0.5)
    station.tick()
    counts, cache = station.statistics, station.intake.cache_statistics()
    assert (counts.success_count, cache.hit_count) == (2, 1)
    assert counts.success_ns - before.success_ns > 5e8
    assert counts.compute_infer_ns == before.compute_infer_ns
    waited_ns = counts.queue_ns - before.queue_ns
    assert waited_ns + cache.hit_ns - cached.hit_ns == counts.success_ns - before.success_ns
    assert 0 < cache.hit_ns < 1e8


def test_a_follower_is_a_hit_whose_time_is_waiting():
    station = CachedStation()
    station.submit(b"a")
    station.clock.advance(0.5)
    station.submit(b"a")
    station.clock.sleep(1.0)
    station.finish_all()
    counts, cache = station.statistics, station.intake.cache_statistics()
    assert cache == CacheStatistics(1, cache.hit_ns, 1, cache.miss_ns)
    assert (counts.success_count, counts.inference_count, counts.execution_count) == (2, 1, 1)
    assert_cached_counts_add_up(station)


def test_an_ensembles_time_is_its_steps_runs_and_else_waiting():
    world, live = two_steps()
    request = world.submit(live, 1, 2)
    for name in ("add", "times"):
        world.clock.tick()
        world.clock.sleep(1.0)
        world.models[name, ""].executor.finish()
    world.clock.tick()
    assert values(request) == [20, 30]
    counts = live.check_ready().statistics()
    assert (counts.success_count, counts.inference_count, counts.execution_count) == (1, 2, 1)
    runs = [world.models[name, ""].check_ready().statistics() for name in ("add", "times")]
    assert counts.compute_infer_ns == sum(each.batch_sizes[2].compute_infer_ns for each in runs) > 0
    parts_ns = counts.compute_input_ns + counts.compute_infer_ns + counts.compute_output_ns
    assert counts.success_ns == counts.queue_ns + parts_ns >= 2e9
    assert counts.batch_sizes[2].compute_infer_ns == counts.compute_infer_ns


def test_an_ensemble_in_an_ensemble_hands_its_runs_times_on():
    world, _ = two_steps()
    outer = world.ensemble("outer", *chain_of_ensemble())
    world.submit(outer, 1)
    for name in ("add", "times"):
        world.clock.tick()
        world.clock.sleep(1.0)
        world.models[name, ""].executor.finish()
    world.clock.tick()
    inner, own = world.models["e", ""].check_ready().statistics(), outer.check_ready().statistics()
    assert own.compute_infer_ns == inner.compute_infer_ns > 0
    assert own.success_ns == inner.success_ns


def chain_of_ensemble():
    """One step: the ensemble of ``two_steps``, whose input and output are named otherwise than a model's."""
    return [step("e", {"in": "in"}, {"out": "out"})]


def test_answers_of_a_cached_model_are_late_after_its_objective():
    station = CachedStation(bytes_spec(latency_objective_ms=1000.0))
    station.submit(b"a")
    station.tick()
    station.clock.advance(0.5)
    station.submit(b"a")  # joins the run, and has half of the time behind it when that is back
    station.clock.advance(0.75)
    station.executor.finish()
    station.tick()
    station.submit(b"a")  # kept
    station.tick()
    assert len(station.done) == 3
    assert station.statistics.late_count == 1
