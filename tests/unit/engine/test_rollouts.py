"""What an engine's recorders see as a rollout goes on."""

from __future__ import annotations

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    back,
    canary,
    label,
    settle,
    shadow,
    split,
    with_server,
    write_version,
)

from tensorferry.rollout import changes


def with_two(root, use):
    """Run ``use`` with a server that has versions 1, which is stable, and 2."""
    for version in (1, 2):
        write_version(root, version, config=CONFIG + ALL)

    async def labelled(server):
        await server.change(label(1))
        return await use(server)

    return with_server(root, labelled)


def requests(server):
    return {version: arm.requests for version, arm in server.engine.observers.counts("m").items()}


async def send(server, count=20, start=0):
    return [await ask(server.engine, key=f"card-{number}".encode()) for number in range(start, start + count)]


def test_nothing_is_counted_without_a_rollout(tmp_path):
    async def use(server):
        await send(server)
        assert requests(server) == {}

    with_two(tmp_path, use)


def test_both_arms_of_a_canary_are_counted(tmp_path):
    async def use(server):
        await server.change(canary(2))
        answers = await send(server, 40)
        assert requests(server) == {1: answers.count(1.0), 2: answers.count(2.0)}
        assert min(requests(server).values()) > 0

    with_two(tmp_path, use)


def test_a_request_that_names_its_version_is_counted_with_that_version(tmp_path):
    async def use(server):
        await server.change(canary(2))
        await ask(server.engine, version="2")
        assert requests(server) == {1: 0, 2: 1}

    with_two(tmp_path, use)


def test_counts_stay_for_the_report_when_the_rollout_is_over(tmp_path):
    async def use(server):
        await server.change(canary(2))
        await send(server)
        counted = requests(server)
        await server.change(back)
        await send(server)
        assert requests(server) == counted

    with_two(tmp_path, use)


def test_counts_go_on_from_step_to_step(tmp_path):
    async def use(server):
        await server.change(canary(2))
        await send(server)
        await server.change(lambda rollout: changes.advance(rollout, 1))
        await send(server)
        assert sum(requests(server).values()) == 40
        assert requests(server)[2] > 20

    with_two(tmp_path, use)


@pytest.mark.parametrize(
    "before",
    [[shadow(2)], [split(v1=1, v2=1)], [canary(2), back], [split(v1=1, v2=1), shadow(3)]],
    ids=["a shadow", "a split", "a canary that was taken back", "a split with a shadow"],
)
def test_a_canary_is_judged_from_its_start_whatever_was_before(tmp_path, before):
    write_version(tmp_path, 3, config=CONFIG + ALL)

    async def use(server):
        await server.change(*before)
        await send(server)
        await server.change(canary(2))
        assert requests(server) == {1: 0, 2: 0}
        await send(server, 40)
        counted = requests(server)
        assert sum(counted.values()) == 40
        assert counted[2] > 0

    with_two(tmp_path, use)


def test_a_shadow_is_compared_and_never_answers(tmp_path):
    async def use(server):
        await server.change(shadow(2))
        assert set(await send(server, 10)) == {1.0}
        await server.engine.wait_idle()
        (counts,) = server.engine.observers.shadow_counts("m").values()
        assert counts.compared + counts.dropped == 10

    with_two(tmp_path, use)


def test_a_shadow_beside_a_split_begins_to_be_compared(tmp_path):
    write_version(tmp_path, 3, config=CONFIG + ALL)

    async def use(server):
        await server.change(split(v1=1, v2=1))
        await send(server, 10)
        await server.change(shadow(3))
        await send(server, 10)
        await server.engine.wait_idle()
        assert set(server.engine.observers.shadow_counts("m")) == {3}
        assert set(requests(server)) == {1, 2}

    with_two(tmp_path, use)


def test_a_model_that_is_withdrawn_is_forgotten(tmp_path):
    async def use(server):
        await server.change(canary(2))
        await send(server)
        await server.coordinator.withdraw("m")
        assert requests(server) == {}

    with_two(tmp_path, use)


def test_progress_is_told_as_answers_are_recorded(tmp_path):
    async def use(server):
        told = []
        server.engine.observers.on_progress = told.append
        await server.change(canary(2))
        await send(server, 200)
        await settle()
        assert set(told) == {"m"}

    with_two(tmp_path, use)
