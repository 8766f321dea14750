from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.unit.execution.launching_support import RUN, SPEC, HandStream, LaunchingPuppet, batch_of
from tests.unit.support import PythonModel, run

from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.clock import LoopClock
from tensorferry.errors import DeviceLost, ModelFailed, OutOfDeviceMemory
from tensorferry.execution.lines import Lines
from tensorferry.execution.pool import Pool
from tensorferry.execution.warmup import WarmupReport
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor
from tensorferry.testing.clock import VirtualClock

#: A run of so many rows takes so many hundredths of a second.
EXPECTED = {rows: rows / 100 for rows in range(1, 9)}.__getitem__


def result(**changes) -> RunResult:
    return RunResult([], 1, 2, 3, replace(RUN, **changes))


class Yard:
    """A pool on virtual time. ``places`` holds a number of slots for each stream; 0 is one on the CPU."""

    def __init__(self, *places: int, devices: tuple[str, ...] = ()) -> None:
        self.now = 100.0
        devices = devices or ("cuda:0",) * len(places)
        models = [
            LaunchingPuppet(slots=slots, device=device) if slots else PythonModel(SPEC)
            for slots, device in zip(places, devices, strict=True)
        ]
        self.streams = [HandStream() for _ in places]
        lines = Lines(self.streams, models, lambda: self.now)
        self.pool = Pool(list(self.streams), SPEC, WarmupReport({}), lines=lines)
        self.outcomes = []

    def start(self, rows: int = 1):
        batch = batch_of(b"a" * rows)
        self.pool.start(batch, self.outcomes.append)
        return batch

    @property
    def rows(self) -> list[list[int]]:
        """Rows of the batches in flight, by stream."""
        return [stream.rows for stream in self.streams]

    @property
    def room(self) -> tuple[int, int]:
        return self.pool.idle, self.pool.spare

    def follow_in(self) -> float:
        return self.pool.follow_at(EXPECTED) - self.now


def test_stream_has_room_for_as_many_batches_as_it_has_slots():
    yard = Yard(3)
    assert yard.room == (1, 0), "there is nothing to be behind of"
    yard.start()
    assert yard.room == (0, 2)
    yard.start()
    yard.start()
    assert yard.room == (0, 0)
    yard.streams[0].end()
    assert yard.room == (0, 1)
    yard.streams[0].end()
    yard.streams[0].end()
    assert yard.room == (1, 0)
    assert yard.pool.count == 1


def test_stream_of_one_slot_takes_no_batch_behind_another():
    yard = Yard(1)
    yard.start()
    assert yard.room == (0, 0)
    assert yard.pool.follow_at(EXPECTED) == math.inf
    assert yard.pool.devices != ()


def test_room_is_there_before_the_outcome_is_told():
    yard = Yard(2)
    seen = []
    yard.pool.start(batch_of(b"a"), lambda _: seen.append(yard.room))
    yard.streams[0].end()
    assert seen == [(1, 0)]


def test_batch_goes_to_a_stream_with_nothing_to_do_the_last_that_had_something():
    yard = Yard(2, 2, 2)
    for _ in range(3):
        yard.start()
    yard.streams[0].end()
    yard.streams[2].end()
    yard.start(5)
    assert yard.rows == [[], [1], [5]]
    yard.start(6)
    assert yard.rows == [[6], [1], [5]]


def test_batch_goes_behind_the_one_that_is_to_end_first():
    yard = Yard(3, 3)
    yard.start(8)
    yard.start(4)
    first, second = yard.rows
    yard.pool.follow_at(EXPECTED)
    yard.start(2)
    yard.start(1)
    yard.start(3)
    assert sorted(yard.rows) == [[4, 2, 1], [8, 3]], "0.04 + 0.02 + 0.01 < 0.08"
    assert (first, second) != ([], [])


def test_batches_are_spread_while_nothing_is_known_of_run_times():
    yard = Yard(3, 3)
    for _ in range(6):
        yard.start()
    assert yard.rows == [[1, 1, 1], [1, 1, 1]]
    yard = Yard(2, 2)
    yard.start(1)
    yard.now += 1.0
    yard.start(2)
    yard.start(3)
    assert [1, 3] in yard.rows, "behind the one that was started first"


def test_batch_behind_another_knows_it():
    yard = Yard(3)
    first, second, third = yard.start(), yard.start(), yard.start()
    assert (first.behind, second.behind, third.behind) == (None, first, second)
    yard.streams[0].end()
    yard.streams[0].end()
    yard.streams[0].end()
    assert yard.start().behind is None


def test_follower_is_best_started_when_the_run_before_it_is_expected_to_end():
    yard = Yard(3)
    yard.start(5)
    assert yard.follow_in() == pytest.approx(0.05)
    yard.now += 0.02
    assert yard.follow_in() == pytest.approx(0.03)
    yard.start(2)
    assert yard.follow_in() == pytest.approx(0.05), "behind both"
    yard.start(1)
    assert yard.pool.follow_at(EXPECTED) == math.inf


def test_run_that_is_overdue_ends_at_any_moment():
    yard = Yard(3)
    yard.start(5)
    yard.now += 1.0
    assert yard.follow_in() == pytest.approx(0.0)
    yard.start(2)
    assert yard.follow_in() == pytest.approx(0.02)


def test_run_of_a_follower_begins_when_the_one_before_it_ends():
    yard = Yard(3)
    yard.start(5)
    yard.now += 0.01
    yard.start(4)
    yard.now += 0.07  # the first took 0.08
    yard.streams[0].end(result(staged_ns=0, copy_in_ns=0, copy_out_ns=0))
    assert yard.follow_in() == pytest.approx(0.04)


def test_stream_with_a_spare_place_that_ends_first_decides():
    yard = Yard(2, 2, 2)
    yard.start(8)
    yard.start(3)
    assert yard.follow_in() == pytest.approx(0.03), "the third is idle, and not spare"
    yard.start(4)
    yard.start(1)
    assert sorted(yard.rows) == [[3, 1], [4], [8]]
    assert yard.follow_in() == pytest.approx(0.04), "the one that would end first has no place left"


def test_lead_is_what_staging_and_copying_take_and_follows_them_slowly():
    yard = Yard(2)
    yard.start(5)
    assert yard.follow_in() == pytest.approx(0.05), "nothing is known yet"
    yard.streams[0].end(result(staged_ns=500_000, copy_in_ns=1_500_000, copy_out_ns=1_000_000))
    yard.start(5)
    assert yard.follow_in() == pytest.approx(0.05 - 0.003)
    yard.streams[0].end(result(staged_ns=8_000_000, copy_in_ns=3_000_000, copy_out_ns=2_000_000))
    yard.start(5)
    assert yard.follow_in() == pytest.approx(0.05 - 0.004), "a tenth of the way"
    yard.streams[0].end(error=ModelFailed("no figures"))
    yard.start(5)
    assert yard.follow_in() == pytest.approx(0.05 - 0.004)


def test_each_stream_has_a_lead_of_its_own():
    yard = Yard(2, 2, devices=("cuda:0", "cuda:1"))
    yard.start(5)
    yard.start(6)
    slow = next(stream for stream in yard.streams if stream.rows == [5])
    slow.end(result(staged_ns=0, copy_in_ns=20_000_000, copy_out_ns=10_000_000))
    yard.start(5)
    assert yard.follow_in() == pytest.approx(0.02)


def test_counts_are_by_device():
    yard = Yard(2, 2, 2, devices=("cuda:0", "cuda:1", "cuda:0"))
    assert list(yard.pool.device_counts) == ["cuda:0", "cuda:1"]
    for _ in range(3):
        yard.start()
    yard.streams[0].end(result(bytes_in=10, is_graph=True))
    yard.streams[2].end(result(bytes_in=20, padded_rows=3))
    yard.streams[1].end(error=OutOfDeviceMemory("not even a row"))
    first, second = yard.pool.device_counts["cuda:0"], yard.pool.device_counts["cuda:1"]
    assert (first.batches, first.graph_batches, first.bytes_in, first.padded_rows) == (2, 1, 30, 3)
    assert (first.copy_in_ns, first.run_ns) == (2 * RUN.copy_in_ns, 2 * RUN.run_ns)
    assert (second.batches, second.out_of_memory) == (0, 1)
    assert [status.device for status in yard.pool.devices] == ["cuda:0", "cuda:1", "cuda:0"]


def test_least_row_limit_of_a_devices_streams_is_the_devices():
    yard = Yard(1, 1, 1, devices=("cuda:0", "cuda:0", "cuda:1"))
    limits = []
    for stream, limit in [(0, 4), (1, 2), (1, 0), (0, 0)]:
        for _ in range(yard.pool.idle):
            yard.start()
        yard.streams[stream].end(result(row_limit=limit))
        limits.append(yard.pool.device_counts["cuda:0"].row_limit)
    assert limits == [4, 2, 4, 0]


def test_outcome_names_its_stream():
    yard = Yard(2, 2)
    yard.start()
    yard.start()
    yard.streams[1].end()
    yard.streams[0].end()
    assert [outcome.stream for outcome in yard.outcomes] == [1, 0]


def test_streams_on_the_cpu_beside_those_on_a_gpu_take_one_batch_at_a_time():
    yard = Yard(0, 2, devices=("", "cuda:0"))
    yard.start(1)
    yard.start(2)
    assert yard.rows == [[2], [1]]
    assert yard.room == (0, 1)
    yard.start(3)
    assert yard.rows == [[2], [1, 3]]
    yard.streams[0].end(RunResult([], 1, 2, 3))
    assert [status.device for status in yard.pool.devices] == ["cuda:0"]
    assert yard.pool.device_counts["cuda:0"].batches == 0


def test_lost_device_is_told_once():
    yard = Yard(2, 2)
    told = []
    yard.pool.when_lost(told.append)
    assert not yard.pool.is_lost
    for _ in range(4):
        yard.start()
    yard.streams[1].end(error=DeviceLost("cuda:0 fell off the bus"))
    assert yard.pool.is_lost
    assert told == ["cuda:0 fell off the bus"]
    yard.streams[1].end(error=DeviceLost("cuda:0 fell off the bus"))
    yard.streams[0].end(error=DeviceLost("another"))
    assert told == ["cuda:0 fell off the bus"]
    assert yard.room == (1, 1), "its batches end all the same"


def test_loss_is_told_before_the_outcome():
    yard = Yard(2)
    order = []
    yard.pool.when_lost(lambda _: order.append("lost"))
    yard.pool.start(batch_of(b"a"), lambda _: order.append("outcome"))
    yard.streams[0].end(error=DeviceLost("gone"))
    assert order == ["lost", "outcome"]


def test_closed_pool_has_no_room():
    yard = Yard(2, 2)
    run(yard.pool.close())
    assert yard.room == (0, 0)
    assert all(stream.is_closed for stream in yard.streams)


def test_pool_on_the_cpu_has_no_spare_place_and_no_device():
    pool = Pool([HandStream()], SPEC, WarmupReport({}))
    pool.start(batch_of(b"a"), print)
    assert (pool.idle, pool.spare, pool.follow_at(EXPECTED)) == (0, 0, math.inf)
    assert (pool.devices, pool.device_counts, pool.is_lost) == ((), {}, False)


def test_time_is_the_loop_clocks_where_none_is_given():
    lines = Lines([HandStream()], [LaunchingPuppet()])
    before = LoopClock.now()
    lines.start(batch_of(b"a"), print)
    assert before + 0.01 <= lines.follow_at(EXPECTED) <= LoopClock.now() + 0.01


def test_batch_with_a_limit_waits_for_the_stream_on_which_it_is_in_time():
    clock = VirtualClock()
    streams = [HandStream(), HandStream()]
    lines = Lines(streams, [LaunchingPuppet(SPEC, slots=2) for _ in streams], clock.now)
    pool = Pool(list(streams), SPEC, WarmupReport({}), lines=lines)
    batcher = Batcher(SPEC, pool, clock, Admission(2**20), 100, {rows: float(rows) for rows in (1, 2, 4, 8)})

    def submit(rows: int, deadline: float = NEVER) -> None:
        tensor = Tensor("x", "UINT8", (rows, 1), b"a" * rows)
        batcher.submit(Pending(SPEC.bind([tensor]), print, deadline))
        clock.tick()

    for rows in (2, 8, 1):
        submit(rows)
    clock.advance(2.0)
    short, long = sorted(streams, key=lambda stream: stream.rows[0])
    assert (short.rows, long.rows) == ([2, 1], [8]), "the last left when the two should have ended"
    submit(8, deadline=12.5)
    assert long.rows == [8], "behind the eight it would end at 16 s"
    short.end(result(staged_ns=0, copy_in_ns=0, copy_out_ns=0))
    clock.advance(1.0)
    assert (short.rows, long.rows) == ([1, 8], [8]), "behind the one it ends at 11 s"
