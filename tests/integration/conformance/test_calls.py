"""What a caller learns of a call, for each client on each transport: status, text, metadata and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from grpc import StatusCode
from tests.integration.conformance.calls import Call, Client, Outcome, bidi, server_stream, unary
from tests.integration.conformance.clients import GrpcioClient, GrpclibClient
from tests.integration.conformance.peer import MAX_MESSAGE_BYTES, PREFIX, Peer

Caller = Callable[[Call], Outcome]

#: 0, 1, around nghttp2's frame size, and more than any window at first.
SIZES = (0, 1, 16383, 16384, 16385, 2**20)
TEXTS = (
    "plain",
    "100 % sure, 50%25",
    "two\nlines\r\n\ttab",
    "Fähre, 渡し船, ⛴",
    "control \x7f\x01 characters",
    "long, " * 250 + "enough",
)


def body_of(size: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(256)) * (size // 256) + bytes(range(size % 256))


# -- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["Echo", "EchoTask"])
def test_a_message_comes_back_as_it_was(outcome_of: Caller, method: str, size: int):
    assert outcome_of(unary(method, body_of(size))) == Outcome(StatusCode.OK, "", (body_of(size),))


def test_the_largest_message_passes(outcome_of: Caller):
    body = body_of(MAX_MESSAGE_BYTES)
    assert outcome_of(unary("Echo", body)) == Outcome(StatusCode.OK, "", (body,))


@pytest.mark.parametrize(
    "call", [unary("Echo"), unary("EchoTask"), bidi("EchoEach", b"")], ids=lambda call: call.path
)
def test_a_larger_request_is_refused(outcome_of: Caller, call: Call):
    large = Call(call.path, (bytes(MAX_MESSAGE_BYTES + 1),), call.request_streaming, call.response_streaming)
    outcome = outcome_of(large)
    assert outcome.code is StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES + 1) in outcome.details
    assert outcome.messages == ()


def test_a_larger_reply_is_refused(outcome_of: Caller):
    outcome = outcome_of(unary("Sized", b"%d" % (MAX_MESSAGE_BYTES + 1)))
    assert (outcome.code, outcome.messages) == (StatusCode.RESOURCE_EXHAUSTED, ())


def test_a_larger_reply_of_a_stream_ends_it(outcome_of: Caller):
    outcome = outcome_of(server_stream("Count", b"3 %d" % (MAX_MESSAGE_BYTES + 1)))
    assert outcome.code is StatusCode.RESOURCE_EXHAUSTED
    assert outcome.messages == ()


@pytest.mark.parametrize(
    "messages", [(), (b"",), (b"a", b"", b"c"), (b"x" * 70_000,) * 5], ids=["0", "1", "3", "5"]
)
def test_a_client_stream_is_read_to_its_end(outcome_of: Caller, messages: tuple[bytes, ...]):
    outcome = outcome_of(Call(PREFIX + "Join", messages, request_streaming=True))
    assert outcome == Outcome(StatusCode.OK, "", (b"+".join(messages),))


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (300, 10), (20, 100_000)])
def test_a_server_stream_arrives_in_full_and_in_order(outcome_of: Caller, count: int, size: int):
    outcome = outcome_of(server_stream("Count", b"%d %d" % (count, size)))
    assert outcome.code is StatusCode.OK
    assert outcome.messages == tuple(bytes([number % 256]) * size for number in range(count))
    assert outcome.trailing == (("x-counted", str(count)),)


@pytest.mark.parametrize("method", ["EchoEach", "ReadAndWrite"])
@pytest.mark.parametrize(
    "messages", [(), (b"",), (b"a", b"", b"c"), (b"y" * 50_000,) * 4], ids=["0", "1", "3", "4"]
)
def test_both_ways_each_message_is_answered(outcome_of: Caller, method: str, messages: tuple[bytes, ...]):
    assert outcome_of(bidi(method, *messages)) == Outcome(StatusCode.OK, "", messages)


# -- statuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("method", "code"), [("Fail", "FAILED_PRECONDITION"), ("Abort", "ABORTED")])
def test_a_status_text_arrives_as_it_was_written(outcome_of: Caller, method: str, code: str, text: str):
    outcome = outcome_of(unary(method, text.encode()))
    assert (outcome.code, outcome.details, outcome.messages) == (StatusCode[code], text, ())


def test_spaces_around_a_status_text_are_kept(client: Client, peer: Peer):
    if peer.transport == "grpcio" and not isinstance(client, GrpcioClient):
        pytest.skip("grpcio sends them as they are, which HTTP/2 forbids; others drop the text")
    assert client.start(unary("Abort", b" text ")).outcome().details == " text "


def test_an_abort_brings_its_trailing_metadata(outcome_of: Caller):
    outcome = outcome_of(unary("Abort", b"text"))
    assert outcome.trailing == (("x-why", "because"), ("x-b-bin", b"\xff\0"))
    assert outcome.initial == ()


def test_what_was_set_before_an_abort_goes_with_it(outcome_of: Caller):
    expected = Outcome(StatusCode.ABORTED, "set before", trailing=(("x-set", "before"),))
    assert outcome_of(unary("AbortWithTrailersSet")) == expected


def test_an_abort_that_the_handler_swallows_holds(outcome_of: Caller):
    assert outcome_of(unary("AbortSwallowed")) == Outcome(StatusCode.ABORTED, "swallowed")


def test_a_second_abort_is_a_mistake_of_the_handler(outcome_of: Caller, peer: Peer):
    assert outcome_of(unary("AbortTwice")) == Outcome(StatusCode.ABORTED, "first")
    assert peer.note() == "refused"


def test_a_status_that_a_handler_sets_replaces_its_reply(outcome_of: Caller):
    outcome = outcome_of(unary("SetCode", b"reply"))
    assert (outcome.code, outcome.details) == (StatusCode.NOT_FOUND, "set by the handler")
    assert outcome.trailing == (("x-set", "too"),)
    assert outcome.messages in ((), (b"",))  # grpcio sends an empty message, which most clients drop


def test_an_exception_in_a_handler_is_unknown_and_says_what(outcome_of: Caller):
    outcome = outcome_of(unary("Raise", b"reason"))
    assert outcome == Outcome(
        StatusCode.UNKNOWN, "Unexpected <class 'ValueError'>: reason", trailing=(("x-set", "before"),)
    )


def test_an_exception_keeps_a_status_that_was_set(outcome_of: Caller):
    assert outcome_of(unary("RaiseAfterSetCode", b"reason")).code is StatusCode.DATA_LOSS


def test_an_exception_in_a_callback_is_unknown_and_says_nothing(outcome_of: Caller):
    assert outcome_of(unary("Break")) == Outcome(StatusCode.UNKNOWN, "the handler raised; see the log")


def test_an_abort_comes_after_the_messages_before_it(outcome_of: Caller):
    outcome = outcome_of(server_stream("CountThenAbort", b"3"))
    assert outcome == Outcome(
        StatusCode.OUT_OF_RANGE, "no more", (b"0", b"1", b"2"), trailing=(("x-at", "the end"),)
    )


def test_an_abort_in_place_of_the_first_message(outcome_of: Caller):
    outcome = outcome_of(server_stream("CountThenAbort", b"0"))
    assert outcome == Outcome(StatusCode.OUT_OF_RANGE, "no more", trailing=(("x-at", "the end"),))


def test_an_exception_comes_after_the_messages_before_it(outcome_of: Caller):
    outcome = outcome_of(server_stream("CountThenRaise", b"2"))
    assert outcome == Outcome(StatusCode.UNKNOWN, "Unexpected <class 'ValueError'>: no more", (b"0", b"1"))


def test_a_coroutine_that_writes_and_sets_a_status(outcome_of: Caller):
    outcome = outcome_of(server_stream("Write", b"ab"))
    assert outcome == Outcome(
        StatusCode.CANCELLED, "by the handler", (b"ab", b"ba"), initial=(("x-first", "1"),)
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_method_is_named(outcome_of: Caller, streaming: bool):
    outcome = outcome_of(Call("/conformance.Peer/Absent", (b"x",), streaming, streaming))
    assert outcome == Outcome(StatusCode.UNIMPLEMENTED, "no such method: /conformance.Peer/Absent")


def test_a_done_callback_sees_the_outcome(outcome_of: Caller, peer: Peer):
    assert outcome_of(unary("DoneCallback")).details == "for the callback"
    assert peer.note() == "done True for the callback"


# -- deadlines and cancellation -----------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [0.9, 30.0, 86_400.0, 4e6])
@pytest.mark.parametrize("method", ["Remaining", "RemainingTask"])
def test_a_deadline_arrives_whatever_unit_it_is_written_in(outcome_of: Caller, method: str, timeout_s: float):
    outcome = outcome_of(unary(method, timeout_s=timeout_s))
    # Clients round up by a few percent; the way here takes a moment.
    assert 0.9 * timeout_s - 0.5 < float(outcome.messages[0]) < 1.1 * timeout_s


@pytest.mark.parametrize("method", ["Remaining", "RemainingTask"])
def test_without_a_deadline_there_is_none(outcome_of: Caller, method: str):
    assert outcome_of(unary(method)).messages == (b"inf",)


#: Calls that wait for ever, and what their methods note in the end.
WAITING = ((unary("Hold"), ["cancelled"]), (server_stream("Wait"), ["cancelled", "done"]))


@pytest.mark.parametrize(("call", "notes"), WAITING, ids=["callback", "task"])
def test_a_deadline_ends_the_call_on_both_sides(outcome_of: Caller, peer: Peer, call: Call, notes: list[str]):
    assert outcome_of(replace(call, timeout_s=0.05)).code is StatusCode.DEADLINE_EXCEEDED
    assert [peer.note() for _ in ["held", *notes]] == ["held", *notes]


@pytest.mark.parametrize(("call", "notes"), WAITING, ids=["callback", "task"])
def test_a_cancellation_reaches_the_handler(client: Client, peer: Peer, call: Call, notes: list[str]):
    running = client.start(call)
    assert peer.note() == "held"
    running.cancel()
    assert [peer.note() for _ in notes] == notes
    assert running.outcome().code is StatusCode.CANCELLED


def test_the_connection_serves_on_after_cancellations(client: Client, peer: Peer):
    for _ in range(5):
        running = client.start(server_stream("Wait"))
        assert peer.note() == "held"
        running.cancel()
        assert [peer.note(), peer.note()] == ["cancelled", "done"]
    assert client.start(unary("Echo", b"still here")).outcome().messages == (b"still here",)


def test_an_answer_before_the_request_is_complete(client: Client):
    if isinstance(client, GrpclibClient):
        pytest.skip("grpclib sends on into a stream that has ended")
    outcome = client.start(bidi("AnswerEarly", *[b"z" * 1000] * 50)).outcome()
    assert outcome.code is StatusCode.OK
    assert outcome.messages == (b"z" * 1000,)


def test_calls_side_by_side_do_not_mix(client: Client):
    running = [client.start(unary("Echo", b"%d" % number * number)) for number in range(100)]
    assert [each.outcome().messages[0] for each in running] == [b"%d" % n * n for n in range(100)]
