"""What the poller takes of the repository, and when."""

from __future__ import annotations

import shutil

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    canary,
    expect,
    label,
    outcome,
    seal,
    shadow,
    split,
    with_server,
    write_broken,
    write_version,
)

from tensorferry.control.poller import Poller
from tensorferry.errors import NotFound
from tensorferry.rollout.store import RolloutStore


def with_poller(root, use, policy=""):
    """Run ``use`` with a server of one published version and its poller, and how often it has loaded."""
    if not root.exists() or not (root / "m").exists():
        seal(write_version(root, 1, config=CONFIG + policy))

    async def polled(server):
        poller = Poller(root, server.coordinator)
        poller.start()
        await use(server, poller)

    with_server(root, polled, "poll", ())


def tries(server, version=2, name="m"):
    return server.engine.loads[name, version] + server.engine.load_failures[name, version]


def publish(root, version, factor=None, name="m"):
    """Write a version as a push does: aside, and then by a rename."""
    directory = write_version(root / ".incoming", version, factor, name=name, config="")
    seal(directory, name)
    (root / name).mkdir(exist_ok=True)
    directory.rename(root / name / str(version))


def test_nothing_is_loaded_where_nothing_has_changed(tmp_path):
    async def use(server, poller):
        before = server.versions
        for _ in range(3):
            await poller.poll()
        assert server.versions == before

    with_poller(tmp_path, use)


def test_a_published_version_is_taken_at_the_first_look(tmp_path):
    async def use(server, poller):
        publish(tmp_path, 2)
        await poller.poll()
        assert await ask(server.engine) == 2

    with_poller(tmp_path, use)


def test_a_copied_version_is_taken_after_two_equal_looks(tmp_path):
    async def use(server, poller):
        write_version(tmp_path, 2)
        await poller.poll()
        assert await ask(server.engine) == 1
        await poller.poll()
        assert await ask(server.engine) == 2

    with_poller(tmp_path, use)


def test_a_version_is_not_taken_while_it_is_being_copied(tmp_path):
    whole = (write_version(tmp_path / "elsewhere", 2) / "model.pt").read_bytes()

    async def use(server, poller):
        target = tmp_path / "repository" / "m" / "2"
        target.mkdir()
        for part in range(1, 5):
            (target / "model.pt").write_bytes(whole[: len(whole) * part // 4])
            await poller.poll()
            assert tries(server) == 0
            assert await ask(server.engine) == 1
        await poller.poll()
        assert await ask(server.engine) == 2

    with_poller(tmp_path / "repository", use)


def test_a_version_directory_without_its_file_yet_is_waited_for(tmp_path):
    async def use(server, poller):
        (tmp_path / "m" / "2").mkdir()
        await poller.poll()
        write_version(tmp_path, 2)
        await poller.poll()
        assert await ask(server.engine) == 1
        await poller.poll()
        assert await ask(server.engine) == 2
        assert server.engine.is_ready

    with_poller(tmp_path, use)


def test_a_new_model_is_taken_and_a_removed_one_withdrawn(tmp_path):
    async def use(server, poller):
        write_version(tmp_path, 1, 7, name="new")
        await poller.poll()
        await poller.poll()
        assert await ask(server.engine, "new") == 7
        shutil.rmtree(tmp_path / "new")
        await poller.poll()
        assert isinstance(await outcome(ask(server.engine, "new")), NotFound)
        assert await ask(server.engine) == 1
        assert [order.name for order in server.coordinator.orders] == ["m"]

    with_poller(tmp_path, use)


def test_a_model_that_comes_back_is_taken_again(tmp_path):
    async def use(server, poller):
        (tmp_path / "m").rename(tmp_path / ".away")
        await poller.poll()
        assert isinstance(await outcome(ask(server.engine)), NotFound)
        (tmp_path / ".away").rename(tmp_path / "m")
        await poller.poll()
        assert await ask(server.engine) == 1

    with_poller(tmp_path, use)


def test_a_removed_version_is_withdrawn(tmp_path):
    async def use(server, poller):
        publish(tmp_path, 2)
        await poller.poll()
        shutil.rmtree(tmp_path / "m" / "2")
        await poller.poll()
        assert await ask(server.engine) == 1
        assert list(server.versions) == [1]

    with_poller(tmp_path, use)


@pytest.mark.parametrize("spoil", [lambda root: write_broken(root, 2), lambda root: _golden(root)])
def test_what_failed_is_not_tried_again_until_it_changes(tmp_path, spoil):
    async def use(server, poller):
        spoil(tmp_path)
        for _ in range(5):
            await poller.poll()
        assert tries(server) == 1
        assert await ask(server.engine) == 1
        assert (await server.states())[2][0] == "UNAVAILABLE"
        shutil.rmtree(tmp_path / "m" / "2")
        publish(tmp_path, 2)
        await poller.poll()
        assert tries(server) == 2
        assert await ask(server.engine) == 2

    with_poller(tmp_path, use)


def _golden(root):
    expect(write_version(root, 2), 7)


def test_a_configuration_that_is_wrong_for_a_while_changes_nothing(tmp_path):
    async def use(server, poller):
        before = server.versions
        (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: many\n")
        for _ in range(3):
            await poller.poll()
        assert server.versions == before
        assert await ask(server.engine) == 1
        (tmp_path / "m" / "config.pbtxt").write_text(CONFIG)
        await poller.poll()
        await poller.poll()
        assert server.versions == before
        assert (await server.states())[1] == ("READY", "")

    with_poller(tmp_path, use)


@pytest.mark.parametrize(
    "change",
    [
        label(1),
        label(1, "b"),
        split(v1=1, v2=1),
        shadow(1),
        lambda rollout: label(2)(canary(2)(label(1)(rollout))),
    ],
    ids=["stable", "a label", "a split", "a shadow", "a canary that was promoted"],
)
def test_a_rollout_that_a_command_has_changed_is_taken(tmp_path, change):
    async def use(server, poller):
        publish(tmp_path, 2)
        await poller.poll()
        written = RolloutStore(tmp_path / "m").update(change)
        for _ in range(2):
            await poller.poll()
        assert server.coordinator.rollout("m") == written
        assert server.engine.rollout("m") == written
        assert server.engine.route("m").live.spec.version == (written.stable or 2)

    with_poller(tmp_path, use, policy=ALL)


def test_a_rollout_changed_through_the_server_loads_nothing_again(tmp_path):
    async def use(server, poller):
        publish(tmp_path, 2)
        await poller.poll()
        await server.change(label(1), canary(2))
        before = server.versions
        for _ in range(3):
            await poller.poll()
        assert server.versions == before
        assert server.coordinator.rollout("m").running.version == 2

    with_poller(tmp_path, use, policy=ALL)


def test_a_rollout_file_that_is_none_leaves_the_rollout_as_it_was(tmp_path):
    async def use(server, poller):
        publish(tmp_path, 2)
        await poller.poll()
        await server.change(label(1))
        (tmp_path / "m" / "rollout.json").write_text("{")
        for _ in range(3):
            await poller.poll()
        assert await ask(server.engine) == 1

    with_poller(tmp_path, use)


def test_a_version_nobody_has_rolled_out_is_not_taken_beside_stable(tmp_path):
    async def use(server, poller):
        await server.change(label(1))
        publish(tmp_path, 2)
        for _ in range(3):
            await poller.poll()
        assert list(server.versions) == [1]

    with_poller(tmp_path, use)


def test_a_repository_that_can_not_be_read_leaves_all_as_it_is(tmp_path):
    async def use(server, poller):
        (tmp_path / "repository").rename(tmp_path / "away")
        for _ in range(3):
            await poller.poll()
        assert await ask(server.engine) == 1
        (tmp_path / "away").rename(tmp_path / "repository")
        await poller.poll()
        assert await ask(server.engine) == 1

    with_poller(tmp_path / "repository", use)


def test_one_model_that_fails_does_not_keep_another_from_being_taken(tmp_path):
    async def use(server, poller):
        write_broken(tmp_path, 1, name="bad")
        (tmp_path / "bad" / "config.pbtxt").write_text(CONFIG)
        write_version(tmp_path, 1, 7, name="good")
        await poller.poll()
        await poller.poll()
        assert await ask(server.engine, "good") == 7
        assert (await server.states("bad"))[1][0] == "UNAVAILABLE"
        assert server.engine.is_ready

    with_poller(tmp_path, use)
