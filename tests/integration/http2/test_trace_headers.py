"""The two trace headers are kept for handlers that get no other, where the server traces."""

from __future__ import annotations

import pytest

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def tracing(serve):
    """A transport of a server that traces."""
    return serve(trace_endpoint="http://127.0.0.1:4318")


def headers_of(bench, *fields):
    """What a unary handler is given of the headers."""
    bench.connect().call("/t/Hold", b"", *fields)
    call = bench.held()
    return call.traceparent, call.tracestate


def test_a_handler_gets_both(tracing):
    fields = (("traceparent", PARENT), ("user-agent", "x"), ("tracestate", "a=1"))
    assert headers_of(tracing, *fields) == (PARENT.encode(), b"a=1")


def test_a_handler_gets_none_where_none_came(tracing):
    assert headers_of(tracing, ("tracecontext", PARENT), ("user-agent", "x" * 55)) == (None, None)


def test_a_server_that_does_not_trace_keeps_none(bench):
    assert headers_of(bench, ("traceparent", PARENT), ("tracestate", "a=1")) == (None, None)


def test_two_parents_contradict_each_other(tracing):
    assert headers_of(tracing, ("traceparent", PARENT), ("traceparent", PARENT)) == (b"", None)
    assert headers_of(tracing, *[("traceparent", PARENT)] * 3) == (b"", None)


def test_a_parent_of_no_possible_length_counts_as_garbage(tracing):
    assert headers_of(tracing, ("traceparent", "00")) == (b"", None)
    assert headers_of(tracing, ("traceparent", "0" * 4096)) == (b"", None)


def test_states_make_one_list(tracing):
    fields = (("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2"), ("tracestate", "c=3"))
    assert headers_of(tracing, *fields)[1] == b"a=1,b=2,c=3"


@pytest.mark.parametrize(
    "states",
    [["v=" + "x" * 4096], ["v=" + "x" * 300, "w=" + "x" * 300], ["v=" + "x" * 600, "w=1"]],
    ids=["one", "together", "before"],
)
def test_a_state_that_is_too_long_is_left_out(tracing, states):
    fields = [("tracestate", state) for state in states]
    assert headers_of(tracing, ("traceparent", PARENT), *fields) == (PARENT.encode(), b"")


def test_a_stream_has_them_among_its_metadata(tracing):
    peer = tracing.connect()
    stream = peer.call("/t/Chat", b"hello", ("traceparent", PARENT), ("tracestate", "a=1"))
    assert peer.outcome(stream).messages == [b"hello"]


@pytest.mark.parametrize("value", [" " + PARENT, PARENT + " ", "\t"])
def test_a_value_with_space_at_an_end_ends_no_call(tracing, value):
    peer = tracing.connect()
    peer.call("/t/Hold", b"", ("traceparent", value))
    assert tracing.held().traceparent in (b"", value.encode())
