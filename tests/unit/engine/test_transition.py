"""Prepare, commit, abandon: what a change of a model does to what serves, and what it doesn't."""

from __future__ import annotations

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    canary,
    entry_of,
    expect,
    label,
    made,
    outcome,
    seal,
    shadow,
    split,
    with_server,
    write_broken,
    write_version,
)

from tensorferry.engine.live import ModelState
from tensorferry.engine.transition import wanted_specs
from tensorferry.errors import ModelNotReady, NotFound
from tensorferry.rollout.state import EMPTY

WRONG = {
    "load failure": lambda root: write_broken(root, 2),
    "golden failure": lambda root: expect(write_version(root, 2), 7),
    "checksum failure": lambda root: _tampered(root),
    "missing file": lambda root: (root / "m" / "2").mkdir(),
}


def _tampered(root):
    directory = write_version(root, 2)
    seal(directory)
    content = bytearray((directory / "model.pt").read_bytes())
    content[-1] ^= 1
    (directory / "model.pt").write_bytes(bytes(content))


async def move(server, rollout=EMPTY):
    """Prepare and commit what the repository holds; return the transition."""
    transition = await server.engine.prepare(entry_of(server.root, rollout), rollout)
    server.engine.commit(transition)
    return transition


@pytest.mark.parametrize("write_wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("policy", ["", ALL], ids=["latest", "all"])
def test_a_new_version_that_fails_replaces_nobody_and_says_why(tmp_path, write_wrong, policy):
    write_version(tmp_path, 1, config=CONFIG + policy)

    async def use(server):
        good = server.versions[1]
        write_wrong(tmp_path)
        transition = await move(server)
        assert server.versions[1] is good
        assert await ask(server.engine) == 1
        states = await server.states()
        assert states[1][0] == "READY"
        reasons = [reason for _, reason in states.values() if reason]
        assert reasons, "the index says nothing of the failure"
        assert set(transition.failures) <= {0, 2}
        assert next(iter(transition.failures.values())) in reasons[-1]
        assert server.engine.is_ready

    with_server(tmp_path, use)


@pytest.mark.parametrize("write_wrong", WRONG.values(), ids=WRONG)
def test_new_content_that_fails_leaves_the_old_content_serving(tmp_path, write_wrong):
    write_version(tmp_path, 1, config=CONFIG + ALL)
    write_version(tmp_path, 2, 20)

    async def use(server):
        one, two = server.versions[1], server.versions[2]
        (tmp_path / "m" / "2" / "model.pt").unlink()
        if write_wrong is WRONG["missing file"]:
            pass
        else:
            write_wrong(tmp_path)
        await move(server)
        assert (server.versions[1], server.versions[2]) == (one, two)
        assert await ask(server.engine, version="2") == 20
        state, reason = (await server.states())[2]
        assert state == "READY"
        assert "serves as before" in reason
        assert server.engine.is_ready

    with_server(tmp_path, use)


def test_a_configuration_that_is_wrong_leaves_all_as_it_was_and_says_why(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        good = server.versions[1]
        (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: many\n")
        transition = await move(server)
        assert "config.pbtxt" in transition.failures[0]
        assert server.versions[1] is good
        assert await ask(server.engine) == 1
        assert server.engine.is_ready
        return await server.states()

    states = with_server(tmp_path, use)
    assert any("config.pbtxt" in reason for _, reason in states.values())


def test_the_reason_goes_when_the_fault_is_mended(tmp_path):
    path = write_version(tmp_path, 1) / "model.pt"

    async def use(server):
        good = server.versions[1]
        path.rename(tmp_path / "kept.pt")
        write_broken(tmp_path, 1)
        await move(server)
        assert "serves as before" in (await server.states())[1][1]
        (tmp_path / "kept.pt").rename(path)
        await move(server)
        assert server.versions[1] is good
        return await server.states()

    assert with_server(tmp_path, use) == {1: ("READY", "")}


def test_loading_a_version_leaves_the_others_the_same_objects(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)
    write_version(tmp_path, 2)

    async def use(server):
        before = server.versions
        write_version(tmp_path, 3)
        transition = await move(server)
        assert set(transition.loaded) == {3}
        assert (server.versions[1], server.versions[2]) == (before[1], before[2])
        assert await ask(server.engine) == 3
        assert await ask(server.engine, version="1") == 1

    with_server(tmp_path, use)


def test_a_change_of_one_file_swaps_that_version_alone(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)
    write_version(tmp_path, 2)

    async def use(server):
        before = server.versions
        write_version(tmp_path, 1, 10)
        await move(server)
        assert server.versions[2] is before[2]
        assert server.versions[1] is not before[1]
        assert await ask(server.engine, version="1") == 10
        await server.engine.wait_retired()
        assert before[1].state is ModelState.UNAVAILABLE

    with_server(tmp_path, use)


def test_nothing_is_loaded_where_nothing_has_changed(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        before, loads = server.versions, server.engine.loads.copy()
        transition = await move(server)
        assert transition.loaded == {}
        assert server.versions == before
        assert server.engine.loads == loads

    with_server(tmp_path, use)


def test_a_change_of_the_configuration_loads_anew(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        before = server.versions[1]
        (tmp_path / "m" / "config.pbtxt").write_text(CONFIG.replace("max_batch_size: 4", "max_batch_size: 2"))
        await move(server)
        assert server.versions[1] is not before
        assert server.versions[1].spec.max_batch_size == 2

    with_server(tmp_path, use)


def test_nothing_is_in_force_before_commit(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        write_version(tmp_path, 2)
        generation = server.engine.generation
        transition = await server.engine.prepare(entry_of(tmp_path), EMPTY)
        assert server.engine.generation == generation
        assert await ask(server.engine) == 1
        assert isinstance(await outcome(ask(server.engine, version="2")), ModelNotReady)
        server.engine.commit(transition)
        assert server.engine.generation > generation
        assert await ask(server.engine) == 2

    with_server(tmp_path, use)


def test_a_version_that_is_prepared_is_not_said_to_be_ready(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)

    async def use(server):
        write_version(tmp_path, 2)
        await server.engine.prepare(entry_of(tmp_path), EMPTY)
        states = await server.states()
        assert states[1][0] == "READY"
        assert states.get(2, ("", ""))[0] != "READY"
        assert await server.coordinator.ready_versions("m") == [1]

    with_server(tmp_path, use)


def test_what_is_abandoned_is_freed_and_leaves_no_trace(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        before = server.versions
        write_version(tmp_path, 2)
        transition = await server.engine.prepare(entry_of(tmp_path), EMPTY)
        await server.engine.abandon(transition)
        assert transition.loaded[2].state is ModelState.UNAVAILABLE
        assert server.versions == before
        assert isinstance(await outcome(ask(server.engine, version="2")), NotFound)

    with_server(tmp_path, use)


def test_a_rejected_version_is_treated_as_failed(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        good = server.versions[1]
        write_version(tmp_path, 2)
        transition = await server.engine.prepare(entry_of(tmp_path), EMPTY)
        server.engine.commit(transition, {2: "process 1: no memory"})
        assert server.versions[1] is good
        assert await ask(server.engine) == 1
        assert (await server.states())[2] == ("UNAVAILABLE", "process 1: no memory")
        await server.engine.wait_retired()
        assert transition.loaded[2].state is ModelState.UNAVAILABLE

    with_server(tmp_path, use)


def test_a_model_that_is_pushed_later_and_fails_does_not_change_readiness(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        write_broken(tmp_path, 1, name="late")
        (tmp_path / "late" / "config.pbtxt").write_text(CONFIG)
        transition = await server.engine.prepare(entry_of(tmp_path, name="late"), EMPTY)
        server.engine.commit(transition)
        assert server.engine.is_ready
        assert (await server.states("late"))[1][0] == "UNAVAILABLE"
        assert server.engine.load_failures["late", 1] == 1

    with_server(tmp_path, use)


def test_a_model_that_fails_at_the_start_keeps_the_server_unready_until_it_is_mended(tmp_path):
    write_broken(tmp_path, 1)
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG)

    async def use(server):
        assert not server.engine.is_ready
        write_version(tmp_path, 1)
        await move(server)
        assert server.engine.is_ready
        assert await ask(server.engine) == 1

    with_server(tmp_path, use)


@pytest.mark.parametrize(
    ("rollout", "background"),
    [
        (made(label(1), shadow(2)), {2}),
        (made(label(1), label(2, "b"), shadow(2)), {2}),
        (made(label(1), shadow(2), canary(2)), set()),
        (made(split(v1=1, v2=1)), set()),
        (EMPTY, set()),
    ],
    ids=["a shadow alone", "labelled too", "became a canary", "a split", "none"],
)
def test_a_version_runs_in_the_background_if_it_only_shadows(tmp_path, rollout, background):
    write_version(tmp_path, 1, config=CONFIG + ALL)
    write_version(tmp_path, 2)
    specs = wanted_specs(entry_of(tmp_path, rollout), rollout)
    assert [spec.version for spec in specs] == [1, 2]
    assert {spec.version for spec in specs if spec.background} == background


POLICIES = {
    "latest": ("", [3]),
    "latest 2": ("version_policy { latest { num_versions: 2 } }\n", [2, 3]),
    "all": (ALL, [1, 2, 3]),
    "specific": ("version_policy { specific { versions: [1, 3] } }\n", [1, 3]),
}


@pytest.mark.parametrize(("policy", "expected"), POLICIES.values(), ids=POLICIES)
def test_the_version_policy_says_what_is_served(tmp_path, policy, expected):
    for version in (1, 2, 3):
        write_version(tmp_path, version, config=CONFIG + policy)

    async def use(server):
        assert sorted(server.versions) == expected
        return await ask(server.engine)

    assert with_server(tmp_path, use) == 3


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("latest", [2]), ("latest 2", [2]), ("all", [1, 2, 3]), ("specific", [1, 2, 3])],
)
def test_a_stable_label_pins_the_version_and_makes_latest_ineffective(tmp_path, policy, expected):
    for version in (1, 2, 3):
        write_version(tmp_path, version, config=CONFIG + POLICIES[policy][0])

    async def use(server):
        rollout = made(label(2))
        await move(server, rollout)
        assert sorted(server.versions) == expected
        assert await ask(server.engine) == 2
        write_version(tmp_path, 4)
        await move(server, rollout)
        assert await ask(server.engine) == 2
        return sorted(server.versions)

    with_server(tmp_path, use)
