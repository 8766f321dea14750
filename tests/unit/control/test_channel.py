"""Calls between two ends of a socket pair."""

from __future__ import annotations

import asyncio
import inspect
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.live_support import outcome, settle
from tests.unit.support import run

from tensorferry import errors
from tensorferry.control.channel import Channel

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TensorferryError)
]


@asynccontextmanager
async def connected(handlers=None, other_handlers=None):
    ours, theirs = socket.socketpair()
    one, other = Channel(handlers or {}), Channel(other_handlers or {})
    await one.open(ours)
    await other.open(theirs)
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


async def echo(**arguments):
    return arguments


def raising(error):
    async def handler():
        raise error

    return {"fail": handler}


def test_either_side_may_call():
    async def main():
        async with connected({"echo": echo}, {"echo": echo}) as (one, other):
            assert await one.call("echo", a=1, b=["ä", None]) == {"a": 1, "b": ["ä", None]}
            assert await other.call("echo") == {}

    run(main())


def test_answers_may_come_in_any_order():
    async def main():
        gates = [asyncio.Event() for _ in range(3)]

        async def wait(number):
            await gates[number].wait()
            return number

        async with connected({}, {"wait": wait}) as (one, _):
            calls = [asyncio.create_task(one.call("wait", number=number)) for number in range(3)]
            for number in (2, 0, 1):
                gates[number].set()
                assert await calls[number] == number

    run(main())


def test_a_handler_may_call_back():
    async def main():
        async def back():
            return await other.call("echo", deep=True)

        async with connected({"echo": echo}, {"back": back}) as (one, other):
            assert await one.call("back") == {"deep": True}

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_errors_keep_their_class_and_text(kind):
    async def main():
        async with connected({}, raising(kind("what is wrong: äöü"))) as (one, _):
            return await outcome(one.call("fail"))

    error = run(main())
    assert type(error) is kind
    assert str(error) == "what is wrong: äöü"


def test_the_error_of_a_configuration_keeps_file_and_line():
    async def main():
        error = errors.ModelConfigError("is wrong", Path("m/config.pbtxt"), 3)
        async with connected({}, raising(error)) as (one, _):
            return await outcome(one.call("fail"))

    assert str(run(main())) == "m/config.pbtxt:3: is wrong"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("nothing of that name", {}), ("echo_one", {"other": 1}), ("divide", {}), ("set", {})],
    ids=["no such method", "no such argument", "a mistake", "a result that JSON can't hold"],
)
def test_a_mistake_of_ours_is_an_error_and_the_channel_stays(method, arguments):
    async def echo_one(value):
        return value

    async def divide():
        return 1 / 0

    async def a_set():
        return {1, 2}

    async def main():
        handlers = {"echo_one": echo_one, "divide": divide, "set": a_set}
        async with connected({}, handlers) as (one, _):
            error = await outcome(one.call(method, **arguments))
            assert type(error) is errors.TensorferryError
            assert "internal error" in str(error)
            assert await one.call("echo_one", value=1) == 1

    run(main())


def test_numbers_that_are_none_pass():
    async def main():
        async with connected({}, {"echo": echo}) as (one, _):
            assert await one.call("echo", inf=float("inf")) == {"inf": float("inf")}

    run(main())


def test_long_messages_pass():
    async def main():
        async with connected({}, {"echo": echo}) as (one, _):
            long = "x" * 3_000_000
            assert (await one.call("echo", long=long))["long"] == long

    run(main())


def test_calls_that_wait_fail_when_the_other_end_goes():
    async def main():
        begun = asyncio.Event()

        async def forever():
            begun.set()
            await asyncio.Event().wait()

        async with connected({}, {"forever": forever}) as (one, other):
            call = asyncio.create_task(one.call("forever"))
            await begun.wait()
            await other.close()
            assert type(await outcome(call)) is errors.Unavailable
            assert not one.is_open
            assert type(await outcome(one.call("forever"))) is errors.Unavailable
            one.tell("forever")  # nothing happens

    run(main())


def test_calls_that_wait_fail_when_this_end_is_closed():
    async def main():
        async with connected({}, {"forever": asyncio.Event().wait}) as (one, _):
            call = asyncio.create_task(one.call("forever"))
            await settle()
            await one.close()
            assert type(await outcome(call)) is errors.Unavailable

    run(main())


def test_a_channel_that_was_never_opened_is_gone():
    async def main():
        channel = Channel({})
        assert not channel.is_open
        assert type(await outcome(channel.call("echo"))) is errors.Unavailable
        channel.tell("echo")

    run(main())


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b'{"number": 1}\n', b'{"call": "x"}\n', b"{}\n"])
def test_a_message_that_is_none_ends_the_channel(line):
    async def main():
        ours, theirs = socket.socketpair()
        channel = Channel({})
        await channel.open(ours)
        call = asyncio.create_task(channel.call("anything"))
        await settle()
        theirs.send(line)
        with theirs:
            assert type(await outcome(call)) is errors.Unavailable
        assert not channel.is_open
        await channel.close()

    run(main())


def test_telling_runs_the_handler_and_waits_for_nothing():
    async def main():
        heard = asyncio.Queue()

        async def hear(what):
            await heard.put(what)
            raise errors.NotFound("nobody hears of it")

        async with connected({}, {"hear": hear}) as (one, _):
            for what in range(3):
                one.tell("hear", what=what)
            assert [await heard.get() for _ in range(3)] == [0, 1, 2]
            assert one.is_open

    run(main())


def test_a_call_that_is_cancelled_ignores_its_answer():
    async def main():
        gate = asyncio.Event()

        async def wait():
            await gate.wait()

        async with connected({}, {"wait": wait, "echo": echo}) as (one, _):
            call = asyncio.create_task(one.call("wait"))
            await settle()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            gate.set()
            assert await one.call("echo", still=1) == {"still": 1}

    run(main())
