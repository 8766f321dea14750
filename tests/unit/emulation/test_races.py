"""Each way to race is found, and programs that order what they share are left alone."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.emulation.support import BYTES, Bench, doubled

from tensorferry.testing.emulated_gpu import RaceError


def test_a_batch_that_is_ordered_all_the_way_comes_back():
    bench = Bench()
    bench.bring_in()
    outputs = bench.gpu.call(bench.run, doubled, [bench.input])
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, outputs[0])
    bench.mark(bench.copy_out).synchronize()
    assert bench.read(bench.target) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    assert bench.device.races == []


def test_a_run_that_does_not_wait_for_its_input_races():
    bench = Bench()
    bench.fill()
    bench.gpu.copy(bench.copy_in, bench.input, bench.source)
    with pytest.raises(RaceError, match=r"call on lane 1 \(runs\) reads .* behind copy in on lane 0 writes"):
        bench.gpu.call(bench.run, doubled, [bench.input])
    assert len(bench.device.races) == 1


def test_a_copy_out_that_does_not_wait_for_the_run_races():
    bench = Bench()
    bench.bring_in()
    outputs = bench.gpu.call(bench.run, doubled, [bench.input])
    with pytest.raises(RaceError, match=r"copy out on lane 2 reads .* behind call"):
        bench.gpu.copy(bench.copy_out, bench.target, outputs[0])


def test_an_input_that_is_overwritten_while_the_run_reads_it_races():
    bench = Bench()
    bench.bring_in()
    bench.gpu.call(bench.run, doubled, [bench.input])
    with pytest.raises(RaceError, match=r"copy in on lane 0 writes .* behind call"):
        bench.gpu.copy(bench.copy_in, bench.input, bench.source)


def test_a_slot_that_is_used_again_while_it_is_copied_out_races():
    bench = Bench()
    bench.bring_in()
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, bench.input)
    with pytest.raises(RaceError, match=r"zero .* behind copy out"):
        bench.gpu.zero(bench.run, bench.input)


def test_pinned_memory_that_is_filled_before_its_copy_is_over_races():
    bench = Bench()
    bench.fill()
    bench.gpu.copy(bench.copy_in, bench.input, bench.source)
    arrived = bench.mark(bench.copy_in)
    with pytest.raises(RaceError, match=r"fill on the host writes .* behind copy in"):
        bench.fill()
    arrived.synchronize()
    bench.fill()


def test_a_view_before_its_copy_is_over_races():
    bench = Bench()
    bench.bring_in()
    bench.order(bench.copy_out, bench.run)
    started = bench.mark(bench.copy_out)
    bench.gpu.copy(bench.copy_out, bench.target, bench.input)
    done = bench.mark(bench.copy_out)
    started.synchronize()
    with pytest.raises(RaceError, match=r"view on the host reads .* behind copy out"):
        bench.read(bench.target)
    done.synchronize()
    assert bench.read(bench.target)[1] == 1.0


def test_memory_that_the_host_still_views_is_not_written_to():
    bench = Bench()
    bench.bring_in()
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, bench.input)
    bench.mark(bench.copy_out).synchronize()
    view = bench.gpu.view(bench.target.view(torch.uint8).view(-1))
    part = view[4:8]
    del view
    with pytest.raises(RaceError, match="still holds a view"):
        bench.gpu.copy(bench.copy_out, bench.target, bench.input)
    del part
    gc.collect()
    bench.gpu.copy(bench.copy_out, bench.target, bench.input)


def test_an_event_orders_what_was_before_it_when_it_was_waited_for():
    bench = Bench()
    bench.fill()
    event = bench.mark(bench.copy_in)
    bench.run.wait(event)
    bench.gpu.copy(bench.copy_in, bench.input, bench.source)
    bench.copy_in.record(event)
    with pytest.raises(RaceError):
        bench.gpu.zero(bench.run, bench.input)
    bench.run.wait(event)
    bench.gpu.zero(bench.run, bench.input)


def test_what_the_host_waited_for_orders_the_lanes():
    bench = Bench()
    bench.fill()
    bench.gpu.copy(bench.copy_in, bench.input, bench.source)
    arrived = bench.mark(bench.copy_in)
    waiter = threading.Thread(target=arrived.synchronize)
    waiter.start()
    waiter.join()
    bench.gpu.call(bench.run, doubled, [bench.input])
    assert bench.device.races == []


def test_parts_of_one_buffer_do_not_race_with_each_other():
    bench = Bench()
    bench.fill()
    bench.gpu.copy(bench.copy_in, bench.input[:2], bench.source[:2])
    bench.gpu.zero(bench.run, bench.input[2:])
    with pytest.raises(RaceError):
        bench.gpu.zero(bench.run, bench.input[1:])


def test_an_output_that_is_dropped_while_it_is_copied_out_may_be_overwritten():
    # torch gives its memory to the next that asks on the lane, whatever other lanes do with it.
    bench = Bench()
    bench.bring_in()
    outputs = bench.gpu.call(bench.run, doubled, [bench.input])
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, outputs[0])
    done = bench.mark(bench.copy_out)
    del outputs
    with pytest.raises(RaceError, match="was freed, and torch may give it out again"):
        bench.gpu.call(bench.run, doubled, [bench.input])
    done.synchronize()
    bench.gpu.call(bench.run, doubled, [bench.input])


def test_an_output_that_is_kept_until_its_copy_is_over_is_safe():
    bench = Bench()
    bench.bring_in()
    outputs = bench.gpu.call(bench.run, doubled, [bench.input])
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, outputs[0])
    bench.gpu.call(bench.run, doubled, [bench.input])
    bench.mark(bench.copy_out).synchronize()
    del outputs
    bench.gpu.call(bench.run, doubled, [bench.input])
    assert bench.device.races == []


def test_new_memory_is_used_first_on_the_lane_that_it_was_made_for():
    bench = Bench()
    memory = bench.gpu.empty(bench.copy_in, BYTES)
    with pytest.raises(RaceError, match=r"zero on lane 1 .* behind empty on lane 0"):
        bench.gpu.zero(bench.run, memory)
    bench.order(bench.run, bench.copy_in)
    bench.gpu.zero(bench.run, memory)


#: What a program does: with a lane (0 to 2), a piece of memory (0 to 2), and an operation before.
STEP = st.tuples(
    st.sampled_from(["in", "out", "zero", "fill", "view", "wait", "sync"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 30),
)
PIECES = [(0, BYTES // 2), (BYTES // 2, BYTES), (0, BYTES)]


class Programme:
    """Runs steps on a device, and knows of each pair of steps, on its own account, which is ordered."""

    def __init__(self) -> None:
        self.bench = Bench()
        gpu, lane = self.bench.gpu, self.bench.copy_in
        self.pinned, self.memory = gpu.pinned(BYTES), gpu.empty(lane, BYTES)
        gpu.fill(self.pinned, [bytes(BYTES)])
        gpu.copy(lane, self.memory, self.pinned)
        self.bench.mark(lane).synchronize()
        self.lanes = [lane, self.bench.run, self.bench.copy_out]
        self.events = []
        #: For each step, the steps that come before it in every run; itself included.
        self.before: list[set[int]] = []
        self.last = {}
        #: For each step: the memory, the range, whether it writes.
        self.uses: list[list[tuple[str, int, int, bool]]] = []

    def expect(self, kind: str, lane: int, piece: int, other: int) -> bool:
        """Enter a step; return whether it races."""
        now = len(self.before)
        agent = "host" if kind in ("fill", "view", "sync") else lane
        before = {now} | self.last.get(agent, set()) | self.last.get("host", set())
        if kind in ("wait", "sync") and self.before:
            before |= self.before[other % now]
        self.before.append(before)
        self.last[agent] = before
        low, high = PIECES[piece]
        self.uses.append(
            {
                "in": [("pinned", low, high, False), ("device", low, high, True)],
                "out": [("device", low, high, False), ("pinned", low, high, True)],
                "zero": [("device", low, high, True)],
                "fill": [("pinned", low, high, True)],
                "view": [("pinned", low, high, False)],
            }.get(kind, [])
        )
        return any(
            place == where and start < until and begin < end and (writes or wrote) and step not in before
            for place, begin, until, writes in self.uses[now]
            for step, uses in enumerate(self.uses[:now])
            for where, start, end, wrote in uses
        )

    def do(self, kind: str, lane: int, piece: int, other: int) -> None:
        gpu, on = self.bench.gpu, self.lanes[lane]
        low, high = PIECES[piece]
        pinned, memory = self.pinned[low:high], self.memory[low:high]
        event = self.events[other % len(self.events)] if self.events else gpu.event(blocking=True)
        if kind == "in":
            gpu.copy(on, memory, pinned)
        elif kind == "out":
            gpu.copy(on, pinned, memory)
        elif kind == "zero":
            gpu.zero(on, memory)
        elif kind == "fill":
            gpu.fill(pinned, [bytes(high - low)])
        elif kind == "view":
            gpu.view(pinned)
        elif kind == "wait":
            on.wait(event)
        else:
            event.synchronize()
        # Behind a step of the host is whatever is enqueued next, on any lane.
        self.events.append(
            self.bench.mark(on) if kind in ("in", "out", "zero", "wait") else self.host_event()
        )

    def host_event(self):
        return self.bench.mark(self.bench.gpu.lane())


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_a_race_is_found_where_there_is_one_and_nowhere_else(steps):
    programme = Programme()
    for step in steps:
        if programme.expect(*step):
            with pytest.raises(RaceError):
                programme.do(*step)
            return
        programme.do(*step)
    assert programme.bench.device.races == []
