"""How a server process hears what to serve, from its start to its end."""

from __future__ import annotations

import asyncio
import signal
import socket

import pytest
from tests.unit.live_support import ask, outcome, settle, write_version
from tests.unit.support import run

from tensorferry.config import ServerConfig
from tensorferry.control.channel import Channel
from tensorferry.control.desk import LocalDesk, RemoteDesk
from tensorferry.control.orders import read_order
from tensorferry.engine import Engine
from tensorferry.errors import ConfigurationError, ControlDisabled, Unavailable


async def started(desk, on_change=lambda: None):
    """Return an engine that serves what the desk orders, and the way to change it."""
    orders = await desk.open()
    engine = Engine(100, 2**30)
    control = desk.connect(engine, on_change)
    await engine.load_all([read_order(order) for order in orders])
    await desk.start()
    return engine, control


def config(root, mode="explicit", load=("*",)):
    return ServerConfig(model_repository=root, model_control_mode=mode, load_model=load)


def test_the_only_process_commands_itself(tmp_path):
    write_version(tmp_path, 1)

    async def main():
        told = []
        desk = LocalDesk(config(tmp_path))
        engine, control = await started(desk, lambda: told.append(1))
        assert await ask(engine) == 1
        assert told == []
        write_version(tmp_path, 2)
        await control.load("m", None, {})
        assert await ask(engine) == 2
        assert told
        await desk.close()
        await engine.close()

    run(main())


def test_a_closed_desk_leaves_no_task_behind(tmp_path):
    write_version(tmp_path, 1)

    async def main():
        before = asyncio.all_tasks()
        desk = LocalDesk(config(tmp_path, "poll", ()))
        engine, _ = await started(desk)
        assert asyncio.all_tasks() > before
        await desk.close()
        await engine.close()
        await settle()
        assert asyncio.all_tasks() == before

    run(main())


def test_a_desk_closes_before_it_was_started(tmp_path):
    write_version(tmp_path, 1)

    async def main():
        desk = LocalDesk(config(tmp_path))
        await desk.open()
        await desk.close()

    run(main())


def test_changes_are_refused_where_the_mode_is_none(tmp_path):
    write_version(tmp_path, 1)

    async def main():
        desk = LocalDesk(config(tmp_path, "none", ()))
        engine, control = await started(desk)
        assert isinstance(await outcome(control.load("m", None, {})), ControlDisabled)
        await desk.close()
        await engine.close()

    run(main())


def test_a_repository_that_is_none_stops_the_start(tmp_path):
    async def main():
        with pytest.raises(ConfigurationError, match="no such directory"):
            await LocalDesk(config(tmp_path / "nowhere")).open()

    run(main())


def test_a_process_whose_parent_is_gone_stops_instead_of_starting(tmp_path):
    async def main():
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        ours, theirs = socket.socketpair()
        ours.close()
        desk = RemoteDesk(theirs, "explicit")
        assert isinstance(await outcome(desk.open()), Unavailable)
        await stopped.wait()
        await desk.close()

    run(main())


def test_a_process_that_closes_its_end_itself_is_not_told_to_stop(tmp_path):
    async def main():
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        ours, theirs = socket.socketpair()
        parent = Channel({"join": no_orders})
        await parent.open(ours)
        desk = RemoteDesk(theirs, "explicit")
        assert list(await desk.open()) == []
        await desk.close()
        await settle()
        assert not stopped.is_set()
        await parent.close()

    async def no_orders():
        return []

    run(main())
