"""Several processes serve the same, whatever becomes of one of them."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.control.support import with_processes
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    back,
    canary,
    entry_of,
    label,
    outcome,
    settle,
    until,
    write_broken,
    write_version,
)

from tensorferry.control.fleet import VersionState
from tensorferry.control.orders import Order
from tensorferry.errors import InvalidRequest, ModelLoadError, ModelNotReady, NotFound, Unavailable
from tensorferry.rollout.state import EMPTY
from tensorferry.rollout.store import RolloutStore
from tensorferry.testing.gate import write_gated


async def answers(parent, name="m", **more):
    """Return what each process answers."""
    return [await outcome(ask(engine, name, **more)) for engine in parent.engines]


async def ready(parent, name="m"):
    return [
        [number for number, live in engine.models[name].items() if live.state.value == "READY"]
        for engine in parent.engines
    ]


class Ailing:
    """Makes one process unable to load: its memory isn't enough."""

    def __init__(self, process) -> None:
        means = process.engine._means
        process.engine._means = means.__class__(
            **{
                name: getattr(means, name)
                for name in means.__dataclass_fields__
                if name != "memory_reserve_bytes"
            },
            memory_reserve_bytes=2**62,
        )


def test_a_load_is_in_force_in_all(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        assert await answers(parent) == [1, 1]
        write_version(tmp_path, 2)
        await parent.coordinator.load("m")
        assert await answers(parent) == [2, 2]
        await parent.coordinator.unload("m")
        assert all(isinstance(each, NotFound) for each in await answers(parent))

    with_processes(tmp_path, use)


def test_a_version_that_fails_in_one_is_in_force_in_none(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)

    async def use(parent):
        Ailing(parent.processes[1])
        write_version(tmp_path, 2)
        with pytest.raises(ModelLoadError, match="version 2"):
            await parent.coordinator.load("m")
        assert await answers(parent) == [1, 1]
        assert await ready(parent) == [[1], [1]]
        await parent.coordinator.refresh("m", tmp_path / "m")
        assert await ready(parent) == [[1], [1]]
        states = (await parent.fleet.states())["m"]
        assert [(line.version, line.state) for line in states] == [(1, "READY"), (2, "UNAVAILABLE")]
        assert "memory" in states[1].reason or "bytes" in states[1].reason or "GiB" in states[1].reason

    with_processes(tmp_path, use)


def test_new_content_that_fails_in_one_leaves_the_old_in_all(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        Ailing(parent.processes[0])
        write_version(tmp_path, 1, 7)
        await parent.coordinator.refresh("m", tmp_path / "m")
        assert await answers(parent) == [1, 1]

    with_processes(tmp_path, use)


def test_a_rollout_that_one_can_not_follow_is_refused_by_all(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(2))
        Ailing(parent.processes[0])
        with pytest.raises(ModelLoadError, match="version 1 can't be served"):
            await parent.coordinator.change_rollout("m", label(1))
        assert await answers(parent) == [2, 2]
        assert RolloutStore(tmp_path / "m").read().stable == 2

    with_processes(tmp_path, use)


def test_a_rollout_is_the_same_in_all(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version, config=CONFIG + ALL)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        written = await parent.coordinator.change_rollout("m", canary(2))
        assert [engine.rollout("m") for engine in parent.engines] == [written, written]
        keys = [f"card-{number}".encode() for number in range(50)]
        one, other = (
            [engine.route("m").choose(key).spec.version for key in keys] for engine in parent.engines
        )
        assert one == other
        rolled = await parent.coordinator.rollback("m", back)
        assert [engine.rollout("m") for engine in parent.engines] == [rolled, rolled]
        assert await answers(parent) == [1, 1]

    with_processes(tmp_path, use)


# -- processes that come and go ------------------------------------------------------------------


def test_a_process_that_joins_gets_the_orders(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        await parent.add(2)
        assert await answers(parent) == [1, 1, 1]
        await parent.coordinator.change_rollout("m", label(2))
        assert await answers(parent) == [2, 2, 2]

    with_processes(tmp_path, use)


def test_a_process_that_joins_later_serves_what_the_others_do(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        await parent.coordinator.settle()
        write_version(tmp_path, 2)  # and nobody has asked for it
        await parent.add(2)
        assert await answers(parent) == [1, 1, 1]
        await parent.coordinator.load("m")
        write_version(tmp_path, 3)
        await parent.add(3)
        assert await answers(parent) == [2, 2, 2, 2]

    with_processes(tmp_path, use)


@pytest.mark.parametrize("is_buried", [False, True])
def test_a_process_that_is_gone_does_not_hold_up_the_others(tmp_path, is_buried):
    write_version(tmp_path, 1)

    async def use(parent):
        await parent.processes[0].die()
        if is_buried:
            await parent.bury(0)
        write_version(tmp_path, 2)
        await parent.coordinator.load("m")
        assert await ask(parent.processes[1].engine) == 2

    with_processes(tmp_path, use)


def test_a_process_that_dies_while_it_loads_does_not_hold_up_the_others(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        write_version(tmp_path, 2)
        loading = asyncio.create_task(parent.coordinator.load("m"))
        await until(lambda: 2 in parent.processes[0].engine.models["m"])
        await parent.processes[0].die()
        await loading
        assert await ask(parent.processes[1].engine) == 2

    with_processes(tmp_path, use)


def test_a_process_that_dies_before_commit_and_comes_back_serves_the_new_version(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        write_version(tmp_path, 2)
        order = Order("m", tmp_path / "m")
        prepared = await parent.fleet.prepare(order)
        await parent.processes[0].die()
        await parent.bury(0)
        parent.coordinator._orders["m"] = order
        await parent.add(0)
        await parent.fleet.commit(prepared.ticket, order, {})
        assert await answers(parent) == [2, 2]

    with_processes(tmp_path, use)


def test_a_ticket_of_a_process_that_died_is_not_the_next_ones(tmp_path):
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, name="n")

    async def use(parent):
        write_version(tmp_path, 2)
        order = Order("m", tmp_path / "m")
        prepared = await parent.fleet.prepare(order)
        await parent.processes[0].die()
        await parent.bury(0)
        await parent.add(0)
        # The new process's first ticket has the old one's number, and is another model's.
        write_version(tmp_path, 2, name="n")
        other = await parent.fleet.prepare(Order("n", tmp_path / "n"))
        await parent.fleet.commit(prepared.ticket, order, {})
        assert await answers(parent, "n") == [1, 1]
        await parent.fleet.abandon(other.ticket)
        assert await answers(parent, "n") == [1, 1]
        assert await answers(parent) == [2, 2]

    with_processes(tmp_path, use)


@pytest.mark.parametrize("is_ailing", [False, True], ids=["well", "unable to load more"])
def test_a_process_that_joins_in_the_middle_of_a_change_is_changed_too(tmp_path, is_ailing):
    for version in (1, 2):
        write_version(tmp_path, version)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        gate = write_gated(tmp_path / "other", "m")
        (tmp_path / "other" / "m" / "1").rename(tmp_path / "m" / "3")
        gate.close()
        changing = asyncio.create_task(parent.coordinator.change_rollout("m", label(3)))
        await until(lambda: all(3 in engine.models["m"] for engine in parent.engines))
        late = await parent.add(2)
        assert await ask(late.engine) == 1
        if is_ailing:
            Ailing(late)
        gate.open()
        await changing
        assert (await answers(parent))[:2] == [2, 2]  # the gated model doubles
        assert await ready(parent) == [[1, 3], [1, 3], [1] if is_ailing else [1, 3]]
        late_answer = await outcome(ask(late.engine))
        assert isinstance(late_answer, ModelNotReady) if is_ailing else late_answer == 2

    with_processes(tmp_path, use)


def test_a_process_that_has_not_read_its_orders_yet_does_not_hinder_a_change(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version, config=CONFIG + ALL)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        await parent.coordinator.change_rollout("m", canary(2, steps=(1.0,)))
        process = await parent.begin(2)
        await process.desk.open()
        process.desk.connect(process.engine, lambda: None)
        await parent.coordinator.rollback("m", back)
        assert RolloutStore(tmp_path / "m").read().running is None
        assert await answers(parent) == [1, 1, 1]

    with_processes(tmp_path, use)


def test_without_any_process_a_change_is_refused_for_now(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        with pytest.raises(Unavailable):
            await parent.coordinator.load("m")
        assert await parent.fleet.states() == {}

    with_processes(tmp_path, use, count=0)


# -- what the processes say ----------------------------------------------------------------------


def test_the_state_of_a_version_is_the_worst_of_its_processes(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        engine = parent.processes[1].engine
        write_broken(tmp_path / "broken", 1)
        transition = await engine.prepare(entry_of(tmp_path / "broken", name="m"), EMPTY)
        engine.unload("m")
        engine.commit(transition)
        (line,) = (await parent.fleet.states())["m"]
        assert (line.version, line.state) == (1, "UNAVAILABLE")
        assert line.reason
        assert await parent.coordinator.ready_versions("m") == []

    with_processes(tmp_path, use)


def counted(parent, name="m"):
    return {version: counts.requests for version, counts in parent.fleet.counts(name).items()}


async def tell_counts(parent):
    """Have each process report its counts, without waiting for the time when it would."""
    for process in parent.processes.values():
        process.desk._reporter._report("m")
    await parent.fleet.states()  # answered after what was told before


def test_counts_are_those_of_all_processes(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version, config=CONFIG + ALL)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        await parent.coordinator.change_rollout("m", canary(2))
        for engine in parent.engines:
            for _ in range(5):
                await ask(engine, version="1")
                await ask(engine, version="2")
        await tell_counts(parent)
        assert counted(parent) == {1: 10, 2: 10}
        assert parent.fleet.counts("other") == {}
        await parent.processes[0].die()
        await parent.bury(0)
        assert counted(parent) == {1: 5, 2: 5}

    with_processes(tmp_path, use)


def test_a_canary_that_is_started_again_is_not_judged_by_what_the_processes_told_before(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)
    write_version(tmp_path, 2, 500)
    again = canary(2, step_requests=1000)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        await parent.coordinator.change_rollout("m", again)
        for engine in parent.engines:
            for _ in range(100):
                await ask(engine, version="1")
                await ask(engine, version="2")
        await tell_counts(parent)
        await until(lambda: parent.coordinator.rollout("m").running is None)
        await until(lambda: not (parent.command.canaries._changing or parent.command.coordinator.is_changing))
        assert min(counted(parent).values()) > 0  # for the report
        await parent.coordinator.change_rollout("m", again)
        parent.command.canaries.look("m")
        await settle()
        assert parent.coordinator.rollout("m").running is not None
        assert sum(counted(parent).values()) == 0

    with_processes(tmp_path, use)


def test_labels_are_learned_where_the_request_was_answered(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version, config=CONFIG + ALL)

    async def use(parent):
        await parent.coordinator.change_rollout("m", label(1))
        await parent.coordinator.change_rollout("m", canary(2))
        one, other = parent.engines
        await ask(one, version="1", key=b"a")
        await ask(other, version="2", key=b"b")
        assert await parent.fleet.learn("m", [(b"a", 1), (b"b", 0), (b"c", 1)]) == 2
        assert await parent.fleet.pairs("m") == {1: [(1.0, 1)], 2: [(2.0, 0)]}

    with_processes(tmp_path, use)


# -- calls through a process ---------------------------------------------------------------------


def test_a_process_passes_what_it_is_asked_to_the_parent(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        control = parent.processes[1].control
        write_version(tmp_path, 2)
        await control.load("m", None, {})
        assert await answers(parent) == [2, 2]
        assert (await control.index())["m"] == [VersionState(2, "READY")]
        await control.unload("m", False)
        assert all(isinstance(each, NotFound) for each in await answers(parent))

    with_processes(tmp_path, use)


def test_a_refusal_of_the_parents_comes_out_of_the_process(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        control = parent.processes[0].control
        with pytest.raises(NotFound, match="'other'"):
            await control.load("other", None, {})
        with pytest.raises(InvalidRequest):
            await control.load("m", "{", {})
        write_broken(tmp_path, 2)
        with pytest.raises(ModelLoadError, match="version 2"):
            await control.load("m", None, {})
        assert await answers(parent) == [1, 1]

    with_processes(tmp_path, use)


def test_a_process_that_loses_its_parent_takes_no_change_and_stops(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        process = parent.processes[0]
        await parent.bury(0)
        with pytest.raises(Unavailable):
            await process.control.load("m", None, {})
        assert await ask(process.engine) == 1  # what it has it answers
        await until(lambda: parent.stops == 1)

    with_processes(tmp_path, use)
