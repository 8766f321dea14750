"""Trace headers: what counts, and that nothing else does any harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import TraceState

from tensorferry.tracing.context import MAX_STATE_BYTES, Parent, headers_of, read, trace_id_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()


def test_a_valid_header_gives_ids_and_the_callers_decision():
    assert read(GOOD) == Parent(int(TRACE, 16), int(SPAN, 16), True)
    assert read(GOOD[:-2] + b"00") == Parent(int(TRACE, 16), int(SPAN, 16), False)


def test_only_the_lowest_flag_says_sampled():
    assert read(GOOD[:-2] + b"fe").is_sampled is False
    assert read(GOOD[:-2] + b"ff").is_sampled is True


def test_a_later_version_is_read_as_far_as_it_is_known():
    assert read(b"01" + GOOD[2:] + b"-what-comes-then").is_sampled
    assert read(b"cc" + GOOD[2:]).trace_id == int(TRACE, 16)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-00",
        b"01" + GOOD[2:] + b"x",
        b"ff" + GOOD[2:],
        GOOD.upper(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        GOOD.replace(b"-", b"_"),
        GOOD.replace(b"a", b"g"),
        b" " + GOOD,
        GOOD + b"\n",
        b"\xff" * 55,
        GOOD * 100,
    ],
)
def test_anything_else_is_no_header(garbage):
    assert read(garbage, b"a=1") is None
    assert trace_id_of(garbage) == ""


@given(st.binary(max_size=600), st.none() | st.binary(max_size=600))
def test_no_bytes_raise(parent, state):
    read(parent, state)
    found = read(GOOD, state)
    assert found is not None
    assert found[:3] == read(GOOD)[:3]


members = st.from_regex(r"[a-z][a-z0-9_*/-]{0,10}=[!-+\--<>-~]{1,10}", fullmatch=True)


@given(st.lists(members, max_size=6, unique_by=lambda member: member.partition("=")[0]))
def test_a_valid_state_is_kept_in_its_order(parts):
    found = read(GOOD, ",".join(parts).encode())
    assert [f"{key}={value}" for key, value in found.state] == parts


@given(st.text(alphabet="ab@*/-_=, \t1", max_size=60))
def test_what_is_kept_of_a_state_is_what_the_sdk_takes_without_a_word(text):
    state = read(GOOD, text.encode()).state
    assert list(TraceState(state).items()) == list(state)


@pytest.mark.parametrize(
    "state",
    [
        b"a=1,a=2",
        b"A=1",
        b"a",
        b"=1",
        b"a=1=2",
        b"a=\xc3\xa4",
        b"a=" + b"x" * 300,
        b"a=1," + b"x" * MAX_STATE_BYTES,
        b"a=" + b"1" * 4096,
        ",".join(f"k{number}=1" for number in range(33)).encode(),
    ],
)
def test_a_state_that_is_not_allowed_is_dropped_and_the_context_kept(state):
    assert read(GOOD, state) == read(GOOD)


def test_headers_are_found_in_metadata():
    metadata = [
        ("user-agent", "x"),
        ("traceparent", GOOD.decode()),
        ("tracestate", "a=1"),
        ("tracestate", "b=2"),
    ]
    assert headers_of(metadata) == (GOOD, b"a=1,b=2")
    assert headers_of(None) == headers_of(()) == (None, None)
    assert headers_of([("traceparent", GOOD)]) == (GOOD, None)


def test_two_contexts_contradict_each_other():
    twice = headers_of([("traceparent", GOOD.decode())] * 2)
    assert read(*twice) is None
    assert read(*headers_of([("traceparent", GOOD.decode())] * 3)) is None


def test_the_trace_id_is_told_sampled_or_not():
    assert trace_id_of(GOOD) == TRACE
    assert trace_id_of(GOOD[:-2] + b"00") == TRACE
    assert trace_id_of(None) == ""
