"""Settings that change in every process, and in those that come later."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.control.support import Parent, with_processes
from tests.unit.live_support import settle, with_server, write_version
from tests.unit.support import run

from tensorferry.control.access import LocalControl
from tensorferry.control.adjusting import FleetAdjusting
from tensorferry.control.rollout_calls import RolloutCalls
from tensorferry.errors import InvalidRequest, NotFound, Unavailable


class Dials:
    """Settings that are whole numbers from 0, by scope."""

    def __init__(self) -> None:
        self.values = {}
        self.applied = []

    def describe(self, scope):
        return self.values.get(scope, {})

    def apply(self, scope, change):
        wrong = [name for name, value in change.items() if value is not None and value < 0]
        if wrong:
            raise InvalidRequest(f"{wrong[0]} can't be less than 0")
        self.applied.append((scope, dict(change)))
        self.values.setdefault(scope, {}).update(change)


@pytest.fixture
def root(tmp_path):
    write_version(tmp_path, 1)
    return tmp_path


def connect(process, dials):
    process.desk.connect(process.engine, lambda: None, {"trace": dials})


async def added(parent: Parent, number: int) -> Dials:
    """Start a process that has dials, and let it load."""
    process = await parent.begin(number)
    dials = Dials()
    await process.desk.open()
    process.control = process.desk.connect(process.engine, lambda: None, {"trace": dials})
    return dials


def fleet(root, use, count=2):
    """Run ``use(parent, dials of each process)``."""

    async def used(parent):
        dials = [await added(parent, number) for number in range(count)]
        await use(parent, dials)

    with_processes(root, used, count=0)


def test_the_only_process_changes_itself(root):
    async def use(server):
        dials = Dials()
        calls = RolloutCalls(server.coordinator, server.fleet)
        control = LocalControl(server.coordinator, calls, {"trace": dials})
        assert await control.adjust("trace", "", {"rate": 5}) == {"rate": 5}
        assert await control.adjust("trace", "", {}) == {"rate": 5}
        with pytest.raises(InvalidRequest, match="rate"):
            await control.adjust("trace", "", {"rate": -1})
        with pytest.raises(NotFound, match="'trace'"):
            await control.adjust("colour", "", {"rate": 1})

    with_server(root, use)


def test_a_change_is_in_force_in_every_process(root):
    async def use(parent, dials):
        control = parent.processes[1].control
        assert await control.adjust("trace", "m", {"rate": 5}) == {"rate": 5}
        assert [each.values for each in dials] == [{"m": {"rate": 5}}] * 2
        assert await parent.processes[0].control.adjust("trace", "m", {}) == {"rate": 5}

    fleet(root, use)


def test_what_is_refused_is_in_force_nowhere_and_is_not_remembered(root):
    async def use(parent, dials):
        control = parent.processes[0].control
        with pytest.raises(InvalidRequest, match="other can't be less"):
            await control.adjust("trace", "", {"rate": 5, "other": -1})
        dials.append(await added(parent, 2))
        await settle()
        assert [each.applied for each in dials] == [[], [], []]

    fleet(root, use)


def test_a_process_that_starts_later_is_told_all_in_its_order(root):
    async def use(parent, dials):
        control = parent.processes[0].control
        await control.adjust("trace", "", {"rate": 1, "count": 7})
        await control.adjust("trace", "m", {"rate": 2})
        await control.adjust("trace", "", {"rate": 3})
        late = await added(parent, 2)
        await settle()
        assert late.applied == [("", {"count": 7}), ("m", {"rate": 2}), ("", {"rate": 3})]
        assert late.values == dials[0].values

    fleet(root, use)


def test_a_process_that_is_started_again_has_the_settings(root):
    async def use(parent, dials):
        await parent.processes[0].control.adjust("trace", "", {"rate": 4})
        await parent.processes[1].die()
        await parent.bury(1)
        again = await added(parent, 1)
        await settle()
        assert again.values == {"": {"rate": 4}}

    fleet(root, use)


def test_a_change_while_a_process_starts_is_not_lost(root):
    async def use(parent, dials):
        process = await parent.begin(2)
        await process.desk.open()
        await parent.processes[0].control.adjust("trace", "", {"rate": 6})
        late = Dials()
        connect(process, late)
        assert late.values == {"": {"rate": 6}}

    fleet(root, use)


def test_a_process_that_is_gone_holds_nobody_up(root):
    async def use(parent, dials):
        await parent.processes[0].die()
        assert await parent.processes[1].control.adjust("trace", "", {"rate": 8}) == {"rate": 8}
        assert dials[1].values == {"": {"rate": 8}}

    fleet(root, use)


def test_the_parent_s_own_settings_change_too(root):
    own = Dials()

    async def main():
        adjusting = FleetAdjusting({}, {"log": own})
        assert await adjusting.adjust("log", "", {"level": 1}) == {"level": 1}
        assert await adjusting.adjust("log", "", {}) == {"level": 1}
        with pytest.raises(InvalidRequest):
            await adjusting.adjust("log", "", {"level": -1})
        with pytest.raises(Unavailable):
            await adjusting.adjust("trace", "", {"rate": 1})
        # However often they change, what is remembered doesn't grow.
        for level in range(1000):
            await adjusting.adjust("log", "", {"level": level})
        assert len(adjusting._changes) == 1

    run(main())
    assert own.values == {"": {"level": 999}}


def test_what_was_taken_away_is_forgotten(root):
    async def use(parent, dials):
        control = parent.processes[0].control
        for number in range(100):
            await control.adjust("trace", "", {f"only {number}": 1})
            await control.adjust("trace", "", {f"only {number}": None})
        await control.adjust("trace", "", {"stays": 1, "goes": 2})
        await control.adjust("trace", "", {"goes": None})
        late = await added(parent, 2)
        await settle()
        assert late.applied == [("", {"stays": 1})]

    fleet(root, use)


def test_a_group_that_no_process_has_is_not_found(root):
    async def use(parent, dials):
        with pytest.raises(NotFound, match="'colour'"):
            await parent.processes[0].control.adjust("colour", "", {"a": 1})
        late = await added(parent, 2)
        await settle()
        assert late.applied == []

    fleet(root, use)


def test_two_changes_at_once_are_made_in_one_order_everywhere(root):
    async def use(parent, dials):
        first, second = (parent.processes[number].control for number in range(2))
        await asyncio.gather(
            *(first.adjust("trace", "", {"rate": 2 * number}) for number in range(10)),
            *(second.adjust("trace", "", {"rate": 2 * number + 1}) for number in range(10)),
        )
        assert dials[0].applied == dials[1].applied
        assert len(dials[0].applied) == 20

    fleet(root, use)
