"""The emulated device's time: lanes in order, engines one at a time, events that delay."""

from __future__ import annotations

import pytest
from tests.unit.emulation.support import BYTES, Bench, doubled

from tensorferry.testing.emulated_gpu import EmulatedGpu
from tensorferry.testing.emulated_timeline import Costs, Timeline


def timed() -> Bench:
    """Copies take 320 ns, a call 1000 and 10 for each row."""
    bench = Bench()
    bench.device.costs.copy_ns = 0
    bench.device.costs.copy_bytes_per_s = BYTES / 320e-9
    bench.device.costs.call_ns = lambda rows: 1000 + 10 * rows
    bench.device.costs.replay_ns = lambda rows: 500
    return bench


def spans(bench: Bench) -> list[tuple[str, int, int]]:
    return [(each.name, each.start_ns, each.end_ns) for each in bench.device.timeline.log]


def test_a_batch_takes_its_copies_and_its_run_one_after_another():
    bench = timed()
    began = bench.mark(bench.copy_in)
    bench.bring_in()
    arrived = bench.mark(bench.copy_in)
    outputs = bench.gpu.call(bench.run, doubled, [bench.input])
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, outputs[0])
    done = bench.mark(bench.copy_out)
    arrived.synchronize()
    done.synchronize()
    assert spans(bench) == [("copy in", 0, 320), ("call", 320, 1360), ("copy out", 1360, 1680)]
    assert began.elapsed_ns(arrived) == 320
    assert arrived.elapsed_ns(done) == 1360
    assert bench.gpu.makespan_ns() == 1680


def test_lanes_that_do_not_wait_run_side_by_side():
    bench = timed()
    bench.bring_in()
    bench.gpu.call(bench.run, doubled, [bench.input])
    other = bench.floats(bench.gpu.empty(bench.copy_in, BYTES))
    bench.gpu.copy(bench.copy_in, other, bench.source)
    call, copy = list(bench.device.timeline.log)[1:]
    assert call.overlaps(copy)
    assert (copy.start_ns, copy.end_ns) == (320, 640)


def test_nothing_begins_before_the_host_has_enqueued_it():
    bench = timed()
    bench.bring_in()
    bench.gpu.call(bench.run, doubled, [bench.input])
    bench.mark(bench.run).synchronize()
    bench.gpu.copy(bench.copy_in, bench.input, bench.source)
    assert spans(bench)[-1] == ("copy in", 1360, 1680)


@pytest.mark.parametrize(("at_once", "makespan"), [(1, 320 + 2 * 1040), (2, 320 + 1040)])
def test_two_models_take_turns_unless_the_device_runs_both(at_once: int, makespan: int):
    bench = timed()
    bench.device.costs.runs_at_once = at_once
    bench.bring_in()
    other = bench.gpu.lane(runs=True)
    bench.order(other, bench.copy_in)
    for lane in (bench.run, other):
        bench.gpu.call(lane, doubled, [bench.input])
    assert bench.gpu.makespan_ns() == makespan


def test_models_of_one_device_share_its_time():
    bench = timed()
    bench.bring_in()
    bench.mark(bench.copy_in).synchronize()
    other = EmulatedGpu(bench.device)
    lane = other.lane()
    memory = other.empty(lane, BYTES)
    bench.device.costs.zero_ns = 7
    began, ended = other.event(blocking=True), other.event(blocking=True)
    lane.record(began)
    other.zero(lane, memory)
    lane.record(ended)
    assert spans(bench)[-1] == ("zero", 320, 327)
    ended.synchronize()
    assert began.elapsed_ns(ended) == 7


def test_a_replay_takes_its_own_time():
    bench = timed()
    bench.bring_in()
    graph = bench.gpu.capture(bench.run, doubled, [bench.input], bench.gpu.pool())
    bench.gpu.replay(bench.run, graph)
    assert spans(bench)[-1] == ("replay", 320, 820)


def test_the_time_of_an_event_is_known_once_the_host_has_waited_behind_it():
    bench = timed()
    fresh = bench.gpu.event(blocking=False)
    bench.bring_in()
    first = bench.mark(bench.copy_in)
    last = bench.mark(bench.copy_in)
    with pytest.raises(RuntimeError, match="completed"):
        first.elapsed_ns(last)
    last.synchronize()
    with pytest.raises(RuntimeError, match="recorded"):
        first.elapsed_ns(fresh)
    assert first.elapsed_ns(last) == 0


def test_the_costs_of_copies_have_a_floor():
    costs = Costs(copy_bytes_per_s=1e9, copy_ns=100)
    assert [costs.of_copy(size) for size in (0, 50, 1000)] == [100, 100, 1000]


def test_the_log_keeps_the_last_operations():
    timeline = Timeline()
    for index in range(20_000):
        timeline.run(str(index), "lane 0", "in", 0, 1)
    assert timeline.log[-1].name == "19999"
    assert timeline.log[-1].end_ns == 20_000
    assert len(timeline.log) == 10_000
