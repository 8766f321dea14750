"""A call of the grpcio transport, and what is left of it when it is over."""

from __future__ import annotations

import gc
import weakref

import grpc
import pytest
from tests.unit.support import run

from tensorferry.transport.grpcio import _adapted


class Context:
    """What a call's handler asks of grpc.aio."""

    def time_remaining(self):
        return None

    async def abort(self, code, details):
        raise grpc.RpcError(code, details)


class Held:
    """What a call's request holds, such as its batch's outputs."""


@pytest.mark.parametrize("ending", ["reply", "fail"])
def test_a_call_that_is_over_leaves_nothing_to_the_garbage_collector(ending):
    gone = []

    def handler(call, body):
        held = Held()
        gone.append(weakref.ref(held))
        call.on_cancel = lambda: (call, held)  # as the request's callback leads to its call
        if ending == "reply":
            call.reply(body)
        else:
            call.fail(grpc.StatusCode.UNAVAILABLE, "")

    async def scenario():
        try:
            assert await _adapted(handler, is_tracing=False).unary_unary(b"x", Context()) == b"x"
        except grpc.RpcError as error:
            error.__traceback__ = None

    gc.collect()
    gc.disable()
    try:
        run(scenario())
        assert [ref() for ref in gone] == [None]
    finally:
        gc.enable()
