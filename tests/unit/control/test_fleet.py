"""One engine as a coordinator commands it."""

from __future__ import annotations

import pytest
from tests.unit.live_support import ALL, CONFIG, ask, label, made, with_server, write_broken, write_version
from tests.unit.support import run

from tensorferry.control.fleet import LocalFleet, VersionState
from tensorferry.control.orders import Order
from tensorferry.errors import NotFound, Unavailable
from tensorferry.rollout.state import EMPTY


def test_before_the_engine_is_there_every_call_is_refused_for_now(tmp_path):
    async def main():
        fleet = LocalFleet()
        for call in (
            fleet.prepare(Order("m", tmp_path)),
            fleet.set_rollout("m", EMPTY),
            fleet.unload("m"),
            fleet.states(),
            fleet.learn("m", []),
            fleet.pairs("m"),
        ):
            with pytest.raises(Unavailable, match="starting"):
                await call

    run(main())


def test_a_prepared_version_is_not_said_to_be_ready_until_it_is_committed(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)

    async def use(server):
        write_version(tmp_path, 2)
        write_broken(tmp_path, 3)
        order = Order("m", tmp_path / "m")
        prepared = await server.fleet.prepare(order)
        assert prepared.ready == (1, 2)
        assert set(prepared.failures) == {3}
        states = {number: state for number, (state, _) in (await server.states()).items()}
        assert [number for number, state in states.items() if state == "READY"] == [1]
        assert states[3] == "UNAVAILABLE"
        await server.fleet.commit(prepared.ticket, order, {})
        states = await server.states()
        assert states[2] == ("READY", "")
        assert states[3] == ("UNAVAILABLE", prepared.failures[3])
        assert await ask(server.engine) == 2

    with_server(tmp_path, use)


def test_a_commit_takes_the_rollout_that_holds_by_then(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)
    write_version(tmp_path, 2)

    async def use(server):
        order = Order("m", tmp_path / "m", None, made(label(2)))
        prepared = await server.fleet.prepare(order)
        diverted = Order("m", tmp_path / "m", None, made(label(1)))
        await server.fleet.commit(prepared.ticket, diverted, {})
        assert await ask(server.engine) == 1

    with_server(tmp_path, use)


def test_an_abandoned_order_leaves_all_as_it_was(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        before = await server.states()
        write_version(tmp_path, 2)
        prepared = await server.fleet.prepare(Order("m", tmp_path / "m"))
        await server.fleet.abandon(prepared.ticket)
        assert await server.states() == before

    with_server(tmp_path, use)


def test_a_model_that_is_refused_as_a_whole_has_a_line_for_version_0(tmp_path):
    write_version(tmp_path, 1, config="max_batch_size: many\n")

    async def use(server):
        (line,) = (await server.fleet.states())["m"]
        assert (line.version, line.state) == (0, "UNAVAILABLE")
        assert "config.pbtxt:1" in line.reason

    with_server(tmp_path, use)


def test_a_server_that_drains_still_says_how_its_versions_are(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        server.engine.start_draining()
        assert (await server.fleet.states())["m"] == [VersionState(1, "READY")]

    with_server(tmp_path, use)


def test_a_model_that_is_not_there_is_not_found(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        with pytest.raises(NotFound):
            await server.fleet.unload("other")
        with pytest.raises(NotFound):
            await server.fleet.set_rollout("other", EMPTY)
        assert server.fleet.counts("other") == {}

    with_server(tmp_path, use)


def test_changes_are_told_to_whoever_follows_them(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        told = []
        server.fleet.connect(server.engine, lambda: told.append(dict(server.engine.served())))
        write_version(tmp_path, 2)
        order = Order("m", tmp_path / "m")
        prepared = await server.fleet.prepare(order)
        assert told == []
        await server.fleet.commit(prepared.ticket, order, {})
        await server.fleet.unload("m")
        assert told == [{"m": True}, {}]

    with_server(tmp_path, use)
