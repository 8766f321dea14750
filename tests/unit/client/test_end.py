"""Which status a streaming call ended with, when gRPC names two."""

import grpc
import pytest
from tests.unit.client.support import run

from tensorferry_client import ServerError, Unavailable
from tensorferry_client._end import StreamEnd

TRUE = (grpc.StatusCode.UNAVAILABLE, "draining")
GRPCS_OWN = (grpc.StatusCode.INTERNAL, "Internal error from Core")


class Ended:
    """The part of gRPC's call that tells how it ended; a status may be set more than once, as there."""

    def add_done_callback(self, callback):
        self._callback = callback

    def end(self, status):
        self._status = status
        self._callback(self)

    async def code(self):
        return self._status[0]

    async def details(self):
        return self._status[1]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([TRUE], Unavailable("draining")),
        ([TRUE, GRPCS_OWN], Unavailable("draining")),
        ([GRPCS_OWN, TRUE], Unavailable("draining")),
        ([GRPCS_OWN], Unavailable("the stream broke while a request was written")),
        ([(grpc.StatusCode.OK, ""), GRPCS_OWN], ServerError("the server ended the stream")),
    ],
    ids=["alone", "overwritten", "late", "never", "no error"],
)
def test_the_servers_own_status_counts(statuses, expected):
    async def scenario():
        call = Ended()
        end = StreamEnd(call, grace_s=0.0)
        for status in statuses:
            call.end(status)
        return await end.error()

    error = run(scenario())
    assert (type(error), str(error)) == (type(expected), str(expected))
