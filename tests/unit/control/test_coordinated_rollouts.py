"""Changes of a rollout: loaded, written down, put in force; and taken back."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    back,
    canary,
    label,
    outcome,
    shadow,
    split,
    until,
    with_server,
    write_broken,
    write_version,
)

from tensorferry.errors import (
    ControlDisabled,
    InvalidRequest,
    ModelLoadError,
    ModelNotReady,
    NotFound,
    Unavailable,
)
from tensorferry.rollout import changes
from tensorferry.rollout.store import FILENAME, RolloutStore
from tensorferry.testing.gate import write_gated


def stored(root, name="m"):
    return RolloutStore(root / name).read()


def block(root, name="m"):
    """Make the state unwritable, for root as well: the lock's file can't be opened."""
    lock = root / name / ".rollout.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    return lock


def with_versions(root, use, *numbers, policy="", mode="explicit"):
    for number in numbers:
        write_version(root, number, config=CONFIG + policy)
    with_server(root, use, mode)


def test_a_change_is_written_down_and_in_force(tmp_path):
    async def use(server):
        written = await server.change(label(1))
        assert written == stored(tmp_path) == server.coordinator.rollout("m") == server.engine.rollout("m")
        assert written.generation == 1
        assert await ask(server.engine) == 1

    with_versions(tmp_path, use, 1, 2)


def test_a_change_loads_the_version_that_it_needs(tmp_path):
    async def use(server):
        assert sorted(server.versions) == [3]
        await server.change(label(3), label(1, "old"))
        assert sorted(server.versions) == [1, 3]
        assert server.engine.route("m", label="old").live.spec.version == 1

    with_versions(tmp_path, use, 1, 2, 3)


def test_a_restart_serves_the_state_as_it_was(tmp_path):
    async def first(server):
        await server.change(label(1), label(2, "b"), canary(2))

    async def second(server):
        assert server.coordinator.rollout("m").running.version == 2
        assert {arm.spec.version for arm in server.engine.route("m").arms} == {1, 2}

    with_versions(tmp_path, first, 1, 2, 3)
    with_server(tmp_path, second)


@pytest.mark.parametrize("change", [label(2), canary(2), split(v1=1, v2=1), shadow(2), label(2, "b")])
@pytest.mark.parametrize("fault", ["file", "configuration"])
def test_a_change_that_needs_a_version_that_fails_changes_nothing(tmp_path, change, fault):
    async def use(server):
        await server.change(label(1))
        before, versions, routes = stored(tmp_path), server.versions, server.engine.route("m")
        if fault == "file":
            write_broken(tmp_path, 2)
        else:
            (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: many\n")
        with pytest.raises(ModelLoadError, match="2 can't be served"):
            await server.change(change)
        assert stored(tmp_path) == before == server.coordinator.rollout("m") == server.engine.rollout("m")
        assert server.versions == versions
        assert server.engine.route("m") == routes
        assert await ask(server.engine) == 1

    with_versions(tmp_path, use, 1, 2)


def test_another_version_that_fails_does_not_hinder_a_change(tmp_path):
    async def use(server):
        await server.change(label(1), label(3, "old"))
        write_broken(tmp_path, 3)
        await server.change(label(2))
        assert await ask(server.engine) == 2
        assert await ask(server.engine, version="3") == 3  # as before

    with_versions(tmp_path, use, 1, 2, 3)


def test_a_version_that_is_not_there_is_not_found(tmp_path):
    async def use(server):
        with pytest.raises(NotFound, match="version 7"):
            await server.change(label(7))
        assert not (tmp_path / "m" / FILENAME).exists()

    with_versions(tmp_path, use, 1)


def test_the_mode_none_takes_no_change(tmp_path):
    async def use(server):
        for call in (server.coordinator.change_rollout, server.coordinator.rollback):
            with pytest.raises(ControlDisabled):
                await call("m", label(1))

    with_versions(tmp_path, use, 1, mode="none")


def test_a_change_that_can_not_be_written_changes_nothing(tmp_path):
    async def use(server):
        await server.change(label(1))
        versions = server.versions
        block(tmp_path)
        with pytest.raises(Unavailable, match="can't be written"):
            await server.change(label(2))
        assert server.versions == versions
        assert await ask(server.engine) == 1
        assert stored(tmp_path).stable == 1

    with_versions(tmp_path, use, 1, 2)


def test_a_change_is_made_of_what_the_file_holds_by_now(tmp_path):
    async def use(server):
        await server.change(label(1))
        RolloutStore(tmp_path / "m").update(label(2, "b"))  # a command, in another process
        await server.change(label(1, "c"))
        assert dict(stored(tmp_path).labels) == {"stable": 1, "b": 2, "c": 1}
        assert server.engine.route("m", label="b").live.spec.version == 2

    with_versions(tmp_path, use, 1, 2)


# -- back ----------------------------------------------------------------------------------------


def test_a_rollback_to_a_loaded_version_waits_for_nothing(tmp_path):
    async def use(server):
        await server.change(label(1), label(2))
        assert 1 in server.versions  # kept warm
        # Another change of the model is under way, and takes its time.
        gate = write_gated(tmp_path / "other", "m")
        (tmp_path / "other" / "m" / "1").rename(tmp_path / "m" / "3")
        gate.close()
        loading = asyncio.create_task(server.change(label(3, "new")))
        await until(lambda: 3 in server.versions)
        rolling = asyncio.create_task(server.coordinator.rollback("m", back))
        await until(lambda: server.engine.rollout("m").stable == 1)
        assert await ask(server.engine) == 1
        assert not loading.done()
        gate.open()
        await asyncio.gather(loading, rolling)
        assert await ask(server.engine) == 1
        assert stored(tmp_path).stable == 1
        assert stored(tmp_path).labels["new"] == 3

    with_versions(tmp_path, use, 1, 2)


def test_a_rollback_loads_the_version_before_if_it_has_to(tmp_path):
    async def use(server):
        await server.change(label(1), label(2))
        path = tmp_path / "m" / "1"
        path.rename(tmp_path / "m" / ".away")
        await server.coordinator.refresh("m", tmp_path / "m")
        assert sorted(server.versions) == [2]
        (tmp_path / "m" / ".away").rename(path)
        await server.coordinator.rollback("m", back)
        assert await ask(server.engine) == 1

    with_versions(tmp_path, use, 1, 2)


def test_a_rollback_to_a_version_that_fails_is_refused(tmp_path):
    async def first(server):
        await server.change(label(1), label(2))

    async def second(server):
        assert await server.coordinator.ready_versions("m") == [2]
        with pytest.raises(ModelLoadError, match="version 1 can't be served"):
            await server.coordinator.rollback("m", back)
        assert await ask(server.engine) == 2
        assert stored(tmp_path).stable == 2

    with_versions(tmp_path, first, 1, 2)
    write_broken(tmp_path, 1)
    with_server(tmp_path, second)


def test_a_rollback_with_nothing_before_it_is_refused(tmp_path):
    async def use(server):
        with pytest.raises(InvalidRequest, match="nothing to roll back"):
            await server.coordinator.rollback("m", back)

    with_versions(tmp_path, use, 1)


def test_a_rollback_that_can_not_be_written_is_in_force_all_the_same(tmp_path):
    async def use(server):
        await server.change(label(1), canary(2, steps=(1.0,)))
        assert await ask(server.engine) == 2
        block(tmp_path)
        await server.coordinator.rollback("m", back)
        assert await ask(server.engine) == 1
        assert server.coordinator.rollout("m").running is None
        assert stored(tmp_path).running is not None

    with_versions(tmp_path, use, 1, 2, policy=ALL)


@pytest.mark.parametrize("again", ["refresh", "load"])
def test_a_rollback_that_was_not_written_outlives_a_refresh_and_is_written_when_it_can_be(tmp_path, again):
    async def use(server):
        await server.change(label(1), canary(2, steps=(1.0,)))
        lock = block(tmp_path)
        await server.coordinator.rollback("m", back)
        write_version(tmp_path, 3)
        calls = {"refresh": (tmp_path / "m",), "load": ()}
        await getattr(server.coordinator, again)("m", *calls[again])
        assert await ask(server.engine) == 1
        lock.rmdir()
        await getattr(server.coordinator, again)("m", *calls[again])
        assert await ask(server.engine) == 1
        assert stored(tmp_path).running is None

    with_versions(tmp_path, use, 1, 2, policy=ALL)


def test_a_canary_goes_on_though_its_steps_can_not_be_written(tmp_path):
    async def use(server):
        await server.change(label(1), canary(2, steps=(0.1, 0.5, 1.0)))
        temporary = tmp_path / "m" / ".rollout.json.tmp"
        temporary.mkdir()  # read and locked it can be, and not written
        for step in (1, 2):
            await server.coordinator.divert("m", lambda rollout: _advanced(rollout))
            assert server.coordinator.rollout("m").running.step == step
        temporary.rmdir()
        await server.coordinator.divert("m", lambda rollout: _advanced(rollout))
        assert stored(tmp_path).stable == 2

    def _advanced(rollout):
        return changes.advance(rollout, 1)

    with_versions(tmp_path, use, 1, 2, policy=ALL)


def test_a_model_whose_state_file_is_none_is_refused_until_it_is_mended(tmp_path):
    async def use(server):
        assert isinstance(await outcome(ask(server.engine)), ModelNotReady)
        assert FILENAME in server.engine.fault("m")
        assert await outcome(server.change(label(1)))  # refused: the file is somebody's to mend
        assert (tmp_path / "m" / FILENAME).read_text() == "{"
        (tmp_path / "m" / FILENAME).unlink()
        await server.coordinator.load("m")
        assert await ask(server.engine) == 2

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / FILENAME).write_text("{")
    with_versions(tmp_path, use, 1, 2)


def test_the_version_before_may_be_deleted(tmp_path):
    async def use(server):
        await server.change(label(1), label(2))
        shutil.rmtree(tmp_path / "m" / "1")
        await server.coordinator.load("m")
        assert sorted(server.versions) == [2]
        await server.change(label(2, "b"))
        assert isinstance(await outcome(server.coordinator.rollback("m", back)), NotFound)
        assert await ask(server.engine) == 2

    with_versions(tmp_path, use, 1, 2)


def test_a_diversion_that_could_not_be_made_is_not_made_up_for_later(tmp_path):
    async def use(server):
        await server.change(label(1), label(2))
        server.engine.unload("m")  # behind the coordinator's back
        assert isinstance(await outcome(server.coordinator.divert("m", back)), NotFound)
        await server.coordinator.load("m")
        assert server.coordinator.rollout("m") == stored(tmp_path) == server.engine.rollout("m")
        assert await ask(server.engine) == stored(tmp_path).stable

    with_versions(tmp_path, use, 1, 2)


def test_a_change_of_the_rollout_takes_nothing_else_of_what_came_into_the_repository(tmp_path):
    async def use(server):
        await server.coordinator.settle()
        write_version(tmp_path, 2)
        await server.change(label(1, "old"))
        assert sorted(server.versions) == [1]
        await server.coordinator.load("m")
        assert await ask(server.engine) == 2

    with_versions(tmp_path, use, 1)
