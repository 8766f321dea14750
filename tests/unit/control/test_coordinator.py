"""Loading and unloading by request, and in which order things happen."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    expect,
    label,
    outcome,
    settle,
    until,
    with_server,
    write_broken,
    write_version,
)

from tensorferry.control.book import Settings
from tensorferry.control.coordinator import Coordinator
from tensorferry.control.fleet import LocalFleet
from tensorferry.errors import (
    ConfigurationError,
    ControlDisabled,
    InvalidRequest,
    ModelLoadError,
    NotFound,
    TensorferryError,
)
from tensorferry.repository.overrides import write_files
from tensorferry.testing.gate import write_gated

JSON = (
    '{"name": "m", "backend": "pytorch", "max_batch_size": 4, "version_policy": {"all": {}},'
    ' "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],'
    ' "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}]}'
)


def first_orders(root, mode, *load):
    return {order.name for order in Coordinator(Settings(root, mode, load), LocalFleet()).first_orders()}


# -- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "load", "expected"),
    [
        ("none", [], {"m", "n"}),
        ("poll", [], {"m", "n"}),
        ("explicit", [], set()),
        ("explicit", ["n"], {"n"}),
        ("explicit", ["*"], {"m", "n"}),
    ],
)
def test_the_mode_says_what_is_served_first(tmp_path, mode, load, expected):
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, name="n")
    assert first_orders(tmp_path, mode, *load) == expected


def test_a_model_to_load_that_is_not_there_stops_the_start(tmp_path):
    write_version(tmp_path, 1)
    with pytest.raises(ConfigurationError, match=r"--load-model other: .* it has \['m'\]"):
        first_orders(tmp_path, "explicit", "m", "other")


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_loading_and_unloading_need_the_explicit_mode(tmp_path, mode):
    write_version(tmp_path, 1)

    async def use(server):
        for call in (server.coordinator.load("m"), server.coordinator.unload("m")):
            with pytest.raises(ControlDisabled, match="--model-control-mode explicit"):
                await call
        assert await ask(server.engine) == 1

    with_server(tmp_path, use, mode, ())


# -- load and unload -----------------------------------------------------------------------------


def test_a_model_is_loaded_by_name_and_withdrawn(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        assert await server.coordinator.index() == {"m": []}
        await server.coordinator.load("m")
        assert await ask(server.engine) == 1
        assert [(line.version, line.state) for line in (await server.coordinator.index())["m"]] == [
            (1, "READY")
        ]
        await server.coordinator.unload("m")
        assert isinstance(await outcome(ask(server.engine)), NotFound)
        await server.coordinator.unload("m")  # nothing happens
        await server.engine.wait_retired()
        assert await server.coordinator.index() == {"m": []}

    with_server(tmp_path, use, load=())


def test_loading_again_changes_nothing_where_no_file_has_changed(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        before = server.versions
        await server.coordinator.load("m")
        assert server.versions == before
        write_version(tmp_path, 1, 5)
        await server.coordinator.load("m")
        assert await ask(server.engine) == 5

    with_server(tmp_path, use)


@pytest.mark.parametrize("name", ["", ".hidden", "../m", "a/b", "line\nfeed"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    write_version(tmp_path, 1)

    async def use(server):
        with pytest.raises(InvalidRequest):
            await server.coordinator.load(name)

    with_server(tmp_path, use)


def test_a_model_that_is_not_there_is_not_found(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        with pytest.raises(NotFound, match="has no model 'other'"):
            await server.coordinator.load("other")
        assert [order.name for order in server.coordinator.orders] == ["m"]

    with_server(tmp_path, use)


def wrong_config(root):
    (root / "m" / "config.pbtxt").write_text("max_batch_size: many\n")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: write_broken(root, 2),
        lambda root: expect(write_version(root, 2), 7),
        wrong_config,
    ],
    ids=["load failure", "golden failure", "wrong configuration"],
)
def test_a_load_that_fails_says_why_and_leaves_what_serves(tmp_path, spoil):
    write_version(tmp_path, 1)

    async def use(server):
        good = server.versions[1]
        spoil(tmp_path)
        with pytest.raises(ModelLoadError) as raised:
            await server.coordinator.load("m")
        assert server.versions[1] is good
        assert await ask(server.engine) == 1
        assert server.engine.is_ready
        reasons = [line.reason for line in (await server.coordinator.index())["m"] if line.reason]
        assert reasons
        assert any(reason.rpartition(": ")[2] in str(raised.value) for reason in reasons)

    with_server(tmp_path, use)


def test_a_first_load_that_fails_stands_in_the_index_and_can_be_repeated(tmp_path):
    write_broken(tmp_path, 1)
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG)

    async def use(server):
        with pytest.raises(ModelLoadError):
            await server.coordinator.load("m")
        (line,) = (await server.coordinator.index())["m"]
        assert (line.version, line.state) == (1, "UNAVAILABLE")
        assert "no" in line.reason
        assert server.engine.is_ready
        write_version(tmp_path, 1)
        await server.coordinator.load("m")
        assert await ask(server.engine) == 1

    with_server(tmp_path, use, load=())


def test_nothing_of_a_load_is_put_in_force_unless_all_of_it_can_be(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)

    async def use(server):
        write_version(tmp_path, 2)
        write_broken(tmp_path, 3)
        with pytest.raises(ModelLoadError, match="version 3"):
            await server.coordinator.load("m")
        assert await ask(server.engine) == 1
        assert await server.coordinator.ready_versions("m") == [1]

    with_server(tmp_path, use)


# -- what came with the request ------------------------------------------------------------------


def written(root, *versions, broken=()):
    """Write files as a request brings them; return the temporary directory of the model's shape."""
    files = {}
    for version in versions:
        files[f"file:{version}/model.pt"] = (write_version(root / "files", version) / "model.pt").read_bytes()
    files |= {f"file:{version}/model.pt": b"no model" for version in broken}
    return write_files("m", files, JSON, root)


def test_files_of_a_request_are_served_and_removed_when_replaced(tmp_path):
    repository = tmp_path / "repository"
    write_version(repository, 1, 10)

    async def use(server):
        given = written(tmp_path, 1)
        await server.coordinator.load("m", JSON, given)
        assert await ask(server.engine) == 1
        assert given.exists()
        await server.coordinator.load("m")
        assert await ask(server.engine) == 10
        assert not given.parent.exists()

    with_server(repository, use)


def test_files_of_a_request_are_removed_when_withdrawn(tmp_path):
    repository = tmp_path / "repository"
    write_version(repository, 1, 10)

    async def use(server):
        given = written(tmp_path, 1)
        await server.coordinator.load("m", JSON, given)
        await server.coordinator.unload("m")
        assert not given.parent.exists()

    with_server(repository, use)


def test_files_that_fail_are_removed_and_those_before_go_on_being_served(tmp_path):
    repository = tmp_path / "repository"
    write_version(repository, 1, 10)

    async def use(server):
        first = written(tmp_path, 2)
        await server.coordinator.load("m", JSON, first)
        second = written(tmp_path, broken=[3])
        with pytest.raises(ModelLoadError):
            await server.coordinator.load("m", JSON, second)
        assert not second.parent.exists()
        assert await ask(server.engine) == 2
        assert server.coordinator.orders[0].directory == first
        assert first.exists()

    with_server(repository, use)


def test_an_order_does_not_name_files_that_were_removed(tmp_path):
    repository = tmp_path / "repository"
    write_version(repository, 1, name="other")

    async def use(server):
        given = written(tmp_path, 1, broken=[2])
        with pytest.raises(ModelLoadError):
            await server.coordinator.load("m", JSON, given)
        # A process that starts now is given the orders.
        assert all(order.directory.exists() for order in server.coordinator.orders)

    with_server(repository, use)


def test_a_configuration_that_is_none_is_the_callers_fault(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        with pytest.raises(InvalidRequest):
            await server.coordinator.load("m", "{")
        assert await ask(server.engine) == 1

    with_server(tmp_path, use)


# -- at the same time ----------------------------------------------------------------------------


def test_loads_of_one_model_wait_for_each_other(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        write_version(tmp_path, 1, 7)
        await asyncio.gather(*(server.coordinator.load("m") for _ in range(4)))
        assert server.engine.loads["m", 1] == 2  # at the start, and once for the change
        assert await ask(server.engine) == 7

    with_server(tmp_path, use)


def test_a_load_and_a_change_of_the_rollout_of_one_model_wait_for_each_other(tmp_path):
    write_version(tmp_path, 1, config=CONFIG + ALL)

    async def use(server):
        write_version(tmp_path, 2)
        await asyncio.gather(
            server.coordinator.load("m"),
            server.change(label(2)),
            server.coordinator.load("m"),
            server.change(label(1)),
        )
        assert server.coordinator.rollout("m").stable == 1
        assert server.coordinator.rollout("m").previous_stable == 2
        assert await ask(server.engine) == 1
        assert server.engine.loads["m", 2] == 1

    with_server(tmp_path, use)


def test_a_model_does_not_wait_for_anothers_load(tmp_path):
    write_version(tmp_path, 1, name="quick")

    async def use(server):
        gate = write_gated(tmp_path, "m")
        gate.close()  # its warm-up waits
        slow = asyncio.create_task(server.coordinator.load("m"))
        await until(lambda: gate.entered > 0)
        write_version(tmp_path, 1, 5, name="quick")
        await server.coordinator.load("quick")
        assert await ask(server.engine, "quick") == 5
        assert not slow.done()
        gate.open()
        await slow
        assert await ask(server.engine) == 2

    with_server(tmp_path, use)


def test_withdrawing_while_it_loads_waits_for_the_load(tmp_path):
    write_version(tmp_path, 1, name="other")

    async def use(server):
        write_version(tmp_path, 1)
        loading = asyncio.create_task(server.coordinator.load("m"))
        await settle(1)
        await server.coordinator.unload("m")
        await loading
        assert isinstance(await outcome(ask(server.engine)), NotFound)

    with_server(tmp_path, use)


def test_a_load_that_is_cancelled_can_be_repeated(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        write_version(tmp_path, 2)
        loading = asyncio.create_task(server.coordinator.load("m"))
        await until(lambda: 2 in server.versions)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        assert await ask(server.engine) == 1
        await server.coordinator.load("m")
        assert await ask(server.engine) == 2

    with_server(tmp_path, use)


def test_before_the_engine_is_there_calls_are_refused_for_now(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        coordinator = Coordinator(Settings(tmp_path, "explicit", ("*",)), LocalFleet())
        coordinator.first_orders()
        assert isinstance(await outcome(coordinator.load("m")), TensorferryError)

    with_server(tmp_path, use)
