"""Several processes as one server: sums, and counters that never go down, whatever becomes of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.support import run

from tensorferry.monitoring.families import Distribution, Families, Family, from_json, to_json
from tensorferry.monitoring.fleet import FleetSource
from tensorferry.testing.clock import VirtualClock

T = TypeVar("T")
KEY = ("m", "1")
VERSION = ("model", "version")
COUNT = "nv_inference_count"
RUNS = "tensorferry_run_seconds"
WAITING = "nv_inference_pending_request_count"


def told(count: float, *, waiting: float = 1, ready: float = 1, keys: tuple[tuple[str, str], ...] = (KEY,)):
    """What a process tells that has inferred ``count`` rows in as many runs of each version."""
    runs = {key: Distribution((1.0, 2.0), [int(count), 0, 0], count / 2) for key in keys}
    families = [
        Family(COUNT, "Rows", "counter", VERSION, values=dict.fromkeys(keys, count)),
        Family(WAITING, "Waiting", "gauge", VERSION, values=dict.fromkeys(keys, waiting)),
        Family(RUNS, "Runs", "histogram", VERSION, distributions=runs),
        Family("tensorferry_model_ready", "Ready", "gauge", VERSION, "min", dict.fromkeys(keys, ready)),
        Family("tensorferry_server_ready", "Ready", "gauge", merge="min", values={(): ready}),
        Family("tensorferry_model_share", "Share", "gauge", VERSION, "max", dict.fromkeys(keys, 0.25)),
        Family("tensorferry_processes", "Processes", "gauge", values={(): 1}),
        Family("process_start_time_seconds", "Start", "gauge", merge="min", values={(): 1000 + count}),
    ]
    return from_json(to_json({each.name: each for each in families}))


class FakeMember:
    """A process that tells what the test has given it; None: it doesn't answer."""

    def __init__(self, answer: Families | None) -> None:
        self.starts = 1
        self.answer = answer
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self) -> tuple[int, Families] | None:
        self.asked += 1
        await self.gate.wait()
        return None if self.answer is None else (self.starts, self.answer)

    def die(self) -> None:
        self.answer = None

    def restart(self, answer: Families) -> None:
        self.starts += 1
        self.answer = answer


class Fleet:
    """A source of fake members on virtual time."""

    def __init__(self, *counts: float) -> None:
        self.clock = VirtualClock()
        self.members = [FakeMember(told(count)) for count in counts]
        self.source = FleetSource(self.members, self.clock)

    async def families(self) -> Families:
        return await self.after(asyncio.create_task(self.source.families()))

    async def after(self, asked: Awaitable[T]) -> T:
        """Let virtual time pass until ``asked`` is answered."""
        future = asyncio.ensure_future(asked)
        while not future.done():
            await asyncio.sleep(0)
            self.clock.advance(0.01)
        return await future

    async def count(self) -> float:
        families = await self.families()
        rows = families[COUNT].values[KEY]
        assert families[RUNS].distributions[KEY].count == rows
        assert families[RUNS].distributions[KEY].total == rows / 2
        return rows


def test_counts_add_up_and_gauges_combine_as_they_say():
    async def main() -> None:
        fleet = Fleet(10, 32)
        fleet.members[1].answer = told(32, waiting=5, ready=0)
        families = await fleet.families()
        assert families[COUNT].values == {KEY: 42}
        assert families[WAITING].values == {KEY: 6}
        assert families[RUNS].distributions[KEY].counts == [42, 0, 0]
        assert families["tensorferry_model_ready"].values == {KEY: 0}
        assert families["tensorferry_server_ready"].values == {(): 0}
        assert families["tensorferry_model_share"].values == {KEY: 0.25}
        assert families["tensorferry_processes"].values == {(): 2}
        assert families["tensorferry_process_restarts"].values == {(): 0}
        assert families["process_start_time_seconds"].values == {(): 1010}

    run(main())


def test_the_askers_own_families_count_as_well():
    async def main() -> None:
        fleet = Fleet(10)
        start = Family("process_start_time_seconds", "Start", "gauge", merge="min", values={(): 7})
        fleet.source = FleetSource(fleet.members, fleet.clock, lambda: {start.name: start})
        assert (await fleet.families())["process_start_time_seconds"].values == {(): 7}

    run(main())


def test_a_dead_process_keeps_its_counts_in_the_sum_and_its_successor_adds_to_them():
    async def main() -> None:
        fleet = Fleet(10, 32)
        assert await fleet.count() == 42
        first = fleet.members[0]
        first.die()
        families = await fleet.families()
        assert families[COUNT].values == {KEY: 42}
        assert families[WAITING].values == {KEY: 1}, "a gauge is of those that answer"
        assert families["tensorferry_processes"].values == {(): 1}
        assert families["tensorferry_server_ready"].values == {(): 0}
        first.restart(told(0))
        assert await fleet.count() == 42
        first.answer = told(3)
        assert await fleet.count() == 45
        assert (await fleet.families())["tensorferry_process_restarts"].values == {(): 1}
        assert (await fleet.families())["tensorferry_server_ready"].values == {(): 1}

    run(main())


def test_a_successor_that_has_counted_more_already_is_told_from_the_one_before():
    async def main() -> None:
        fleet = Fleet(10)
        assert await fleet.count() == 10
        fleet.members[0].restart(told(11))
        assert await fleet.count() == 21

    run(main())


def test_a_process_that_dies_again_and_again_loses_nothing():
    async def main() -> None:
        fleet = Fleet(0)
        await fleet.count()
        for number in range(1, 20):
            fleet.members[0].restart(told(5))
            assert await fleet.count() == 5 * number
            fleet.members[0].die()
            assert await fleet.count() == 5 * number

    run(main())


def test_a_silent_process_counts_with_what_it_told_last():
    async def main() -> None:
        fleet = Fleet(10, 32)
        await fleet.count()
        silent = fleet.members[1]
        silent.answer = None
        assert await fleet.count() == 42
        silent.answer = told(40)
        assert await fleet.count() == 50

    run(main())


def test_when_nobody_answers_the_counts_stay():
    async def main() -> None:
        fleet = Fleet(10, 32)
        await fleet.count()
        for member in fleet.members:
            member.die()
        families = await fleet.families()
        assert families[COUNT].values == {KEY: 42}
        assert families["tensorferry_processes"].values == {(): 0}
        assert families["tensorferry_server_ready"].values == {(): 0}
        assert WAITING not in families

    run(main())


def test_a_version_that_is_loaded_anew_in_one_process_doesnt_take_its_counts_from_the_sum():
    async def main() -> None:
        fleet = Fleet(10, 32)
        await fleet.count()
        fleet.members[1].answer = told(0)
        assert await fleet.count() == 42
        fleet.members[0].answer = told(1)
        assert await fleet.count() == 43

    run(main())


def test_a_version_withdrawn_in_one_process_before_the_other_leaves_the_sum_only_in_the_end():
    async def main() -> None:
        fleet = Fleet(10, 32)
        await fleet.count()
        fleet.members[0].answer = told(0, keys=())
        assert await fleet.count() == 42
        fleet.members[1].answer = told(0, keys=())
        assert (await fleet.families())[COUNT].values == {}
        for member in fleet.members:
            member.answer = told(2)
        assert await fleet.count() == 4, "what was withdrawn everywhere begins anew"

    run(main())


def test_what_is_told_now_doesnt_change_later():
    async def main() -> None:
        fleet = Fleet(10, 32)
        before = await fleet.families()
        seen = to_json(before)
        fleet.members[0].restart(told(5))
        await fleet.count()
        assert to_json(before) == seen

    run(main())


def test_scrapers_share_a_round_and_rounds_are_at_most_ten_a_second():
    async def main() -> None:
        fleet = Fleet(10)
        member = fleet.members[0]
        member.gate.clear()
        asked = [asyncio.create_task(fleet.source.families()) for _ in range(20)]
        for _ in range(10):
            await asyncio.sleep(0)
            fleet.clock.advance(0.0)
        assert member.asked == 1
        member.gate.set()
        await fleet.after(asyncio.gather(*asked))
        assert member.asked == 1
        begun = fleet.clock.now()
        for _ in range(30):
            await fleet.families()
        assert (member.asked - 1) / (fleet.clock.now() - begun) <= 10

    run(main())


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.001, 10.0), st.booleans()), max_size=12))
def test_sums_never_fall_by_rounding_when_a_process_ends(steps):
    async def main() -> None:
        fleet = Fleet(0.1, 0.2, 0.3)
        counted = [0.1, 0.2, 0.3]
        before = (await fleet.families())[COUNT].values[KEY]
        for number, more, dies in steps:
            member = fleet.members[number]
            if dies:
                member.die()
                counted[number] = more
                member.restart(told(more))
            else:
                counted[number] += more
                member.answer = told(counted[number])
            now = (await fleet.families())[COUNT].values[KEY]
            assert now >= before
            before = now

    run(main())
