"""Requests while versions come and go under them: each is answered once, by the version that took it."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    canary,
    entry_of,
    label,
    made,
    outcome,
    serving,
    settle,
    until,
    with_server,
    write_version,
)
from tests.unit.support import run

from tensorferry.engine.live import ModelState
from tensorferry.errors import Draining, ModelNotReady, NotFound
from tensorferry.repository import read_model
from tensorferry.rollout.state import EMPTY
from tensorferry.testing.gate import write_gated

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
ensemble_scheduling {
  step { model_name: "m" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "y" value: "middle" } }
  step { model_name: "last" model_version: -1
    input_map { key: "x" value: "middle" } output_map { key: "y" value: "y" } }
}
"""


async def asked(server, count=6, **more):
    """Return tasks of requests that have been submitted, more than one batch holds."""
    tasks = [asyncio.create_task(ask(server.engine, value=float(n), **more)) for n in range(1, count + 1)]
    await settle()
    return tasks


async def swap_to(server, version):
    write_version(server.root, version, 10.0)
    transition = await server.engine.prepare(entry_of(server.root), EMPTY)
    server.engine.commit(transition)


def test_requests_are_answered_by_the_version_that_took_them(tmp_path):
    gate = write_gated(tmp_path, "m")

    async def use(server):
        old = server.versions[1]
        gate.close()
        before = await asked(server)
        await swap_to(server, 2)
        after = await asked(server)
        assert await asyncio.gather(*after) == [10.0 * n for n in range(1, 7)]
        assert old.state is ModelState.UNLOADING
        assert old.in_flight == 6
        assert server.engine.retiring == [old]
        assert isinstance(await outcome(ask(server.engine, version="1")), NotFound)
        gate.open()
        assert await asyncio.gather(*before) == [2.0 * n for n in range(1, 7)]
        await server.engine.wait_retired()
        assert (old.state, old.in_flight, old.reason) == (ModelState.UNAVAILABLE, 0, "unloaded")
        assert server.engine.retiring == []

    with_server(tmp_path, use)


def test_a_version_that_drains_is_in_the_index_until_it_is_gone(tmp_path):
    gate = write_gated(tmp_path, "m")

    async def use(server):
        gate.close()
        before = await asked(server)
        await swap_to(server, 2)
        await settle()
        assert {number: state for number, (state, _) in (await server.states()).items()} == {
            1: "UNLOADING",
            2: "READY",
        }
        gate.open()
        await asyncio.gather(*before)
        await server.engine.wait_retired()
        assert list(await server.states()) == [2]

    with_server(tmp_path, use)


def test_unloading_answers_all_that_wait(tmp_path):
    gate = write_gated(tmp_path, "m")

    async def use(server):
        live = server.versions[1]
        gate.close()
        before = await asked(server)
        assert live.waiting > 0
        server.engine.unload("m")
        with pytest.raises(NotFound):
            server.engine.route("m")
        gate.open()
        assert await asyncio.gather(*before) == [2.0 * n for n in range(1, 7)]
        await server.engine.wait_retired()
        assert live.state is ModelState.UNAVAILABLE
        assert server.engine.is_ready

    with_server(tmp_path, use)


def test_requests_go_on_through_many_swaps(tmp_path):
    write_version(tmp_path, 1, 1)

    async def use(server):
        answers = []
        for factor in (2, 3, 4, 5):
            pending = [asyncio.create_task(ask(server.engine)) for _ in range(3)]
            write_version(tmp_path, 1, factor)
            server.engine.commit(await server.engine.prepare(entry_of(tmp_path), EMPTY))
            pending += [asyncio.create_task(ask(server.engine)) for _ in range(3)]
            answers += await asyncio.gather(*pending)
        await server.engine.wait_retired()
        return answers

    assert with_server(tmp_path, use) == [1] * 3 + [2] * 6 + [3] * 6 + [4] * 6 + [5] * 3


def test_a_route_that_was_held_over_a_swap_refuses_instead_of_losing_the_request(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        held = server.engine.route("m").live
        await swap_to(server, 2)
        await server.engine.wait_retired()
        with pytest.raises(ModelNotReady):
            held.check_ready()

    with_server(tmp_path, use)


def test_closing_while_a_version_drains_ends_its_requests(tmp_path):
    gate = write_gated(tmp_path, "m")

    async def main():
        async with serving(tmp_path) as server:
            old = server.versions[1]
            gate.close()
            running = await asked(server)
            await swap_to(server, 2)
            await settle()
            closing = asyncio.create_task(server.engine.close())
            await settle()
            gate.open()
            await closing
            ended = await asyncio.gather(*running, return_exceptions=True)
            assert old.in_flight == 0
            assert old.state is ModelState.UNAVAILABLE
            assert all(isinstance(each, (float, ModelNotReady)) for each in ended)

    run(main())


def test_cancelling_a_load_leaves_what_serves(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        before = server.versions
        write_version(tmp_path, 2)
        preparing = asyncio.create_task(server.engine.prepare(entry_of(tmp_path), EMPTY))
        await settle(1)
        assert server.engine.models["m"][2].state is ModelState.LOADING
        preparing.cancel()
        await asyncio.gather(preparing, return_exceptions=True)
        assert server.versions == before
        await swap_to(server, 2)
        assert await ask(server.engine) == 10

    with_server(tmp_path, use)


def test_choosing_by_key_is_sticky_through_the_engine(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version, config=CONFIG + ALL)

    async def use(server):
        server.engine.set_rollout("m", made(label(1), canary(2)))
        keys = [f"card-{number}".encode() for number in range(60)]
        first = [await ask(server.engine, key=key) for key in keys]
        route = server.engine.route("m")
        assert [float(route.choose(key).spec.version) for key in keys] == first
        assert set(first) == {1.0, 2.0}
        assert server.engine.resolve("m", "").spec.version == 1
        assert server.engine.route("m", label="canary").live.spec.version == 2

    with_server(tmp_path, use)


# -- ensembles -----------------------------------------------------------------------------------


def write_ensemble(root):
    (root / "chain" / "1").mkdir(parents=True)
    (root / "chain" / "config.pbtxt").write_text(ENSEMBLE)


def with_ensemble(root, use):
    """Run ``use`` with an ensemble of a gated model that doubles and one that multiplies by ten."""
    gate = write_gated(root, "m")
    write_version(root, 1, 10, name="last")
    write_ensemble(root)

    async def gated(server):
        await use(server, gate)

    with_server(root, gated)


def test_an_ensemble_finishes_what_it_has_under_way_while_the_server_drains(tmp_path):
    async def use(server, gate):
        gate.close()
        running = await asked(server, name="chain")
        server.engine.start_draining()
        assert isinstance(await outcome(ask(server.engine, "chain")), Draining)
        gate.open()
        assert await asyncio.gather(*running) == [20.0 * n for n in range(1, 7)]
        await server.engine.wait_idle()

    with_ensemble(tmp_path, use)


def test_an_ensemble_is_away_while_a_model_of_its_steps_is(tmp_path):
    async def use(server, gate):
        assert await ask(server.engine, "chain") == 20
        server.engine.unload("last")
        assert (await server.states("chain"))[1][0] == "UNAVAILABLE"
        assert "last" in (await server.states("chain"))[1][1]
        assert isinstance(await outcome(ask(server.engine, "chain")), ModelNotReady)
        entry = read_model(tmp_path / "last")
        server.engine.commit(await server.engine.prepare(entry, EMPTY))
        assert (await server.states("chain"))[1] == ("READY", "")
        assert await ask(server.engine, "chain") == 20

    with_ensemble(tmp_path, use)


def test_an_ensemble_is_withdrawn_with_its_requests_answered(tmp_path):
    async def use(server, gate):
        gate.close()
        running = await asked(server, name="chain")
        server.engine.unload("chain")
        gate.open()
        assert await asyncio.gather(*running) == [20.0 * n for n in range(1, 7)]
        await server.engine.wait_retired()
        assert "chain" not in server.engine.models

    with_ensemble(tmp_path, use)


def test_a_model_swapped_under_an_ensemble_serves_it_from_then_on(tmp_path):
    async def use(server, gate):
        chain = server.engine.models["chain"][1]
        write_version(tmp_path, 1, 100, name="last")
        entry = entry_of(tmp_path, name="last")
        server.engine.commit(await server.engine.prepare(entry, EMPTY))
        assert server.engine.models["chain"][1] is chain
        assert await ask(server.engine, "chain") == 200
        await until(lambda: not server.engine.retiring)

    with_ensemble(tmp_path, use)
