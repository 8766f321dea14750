"""A request of more rows than a batch may have: run in pieces, answered as one, exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import POISON, Station, answer, bytes_spec, content, model_spec, picky, tensor_spec

from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.batching.splitting import Splitter
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    ModelFailed,
    PredictedLate,
    QueueFull,
    TensorferryError,
)
from tensorferry.model import BatchingSpec, PaddingSpec
from tensorferry.tensors import Tensor, array_of, tensor_of

MAX_ROWS = 4


class Line:
    """A station with a splitter before its batcher, and how often each request has had an outcome."""

    def __init__(self, spec=None, **station) -> None:
        self.spec = spec or bytes_spec(MAX_ROWS, split_oversized=True)
        self.station = Station(self.spec, **station)
        self.splitter = Splitter(self.station.batcher, self.spec)
        self.outcomes: dict[Pending, int] = {}

    def request(self, data: bytes, rows: int, deadline=NEVER, **more) -> Pending:
        """``data`` as ``rows`` rows."""
        tensor = Tensor("x", "UINT8", (rows, len(data) // rows), data)
        return Pending(self.spec.bind([tensor]), self._done, deadline, **more)

    def submit(self, data: bytes, rows: int, deadline=NEVER) -> Pending:
        request = self.request(data, rows, deadline)
        self.splitter.submit(request)
        return request

    def _done(self, request: Pending) -> None:
        assert request.state == DONE
        self.outcomes[request] = self.outcomes.get(request, 0) + 1

    def check_at_rest(self) -> None:
        assert self.station.batcher.in_flight == 0
        assert self.station.admission.byte_size == 0
        assert self.splitter._splits == {}
        assert all(batch.rows <= self.spec.max_batch_size for batch in self.station.executor.started)


def rows_of_bytes(count: int, first: int = 0) -> bytes:
    return bytes((first + number) % 250 for number in range(count))


@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS, 3 * MAX_ROWS + 1])
def test_a_request_of_any_size_is_answered_whole_and_in_order(rows):
    line = Line()
    request = line.submit(rows_of_bytes(2 * rows), rows)
    line.station.finish_all()
    assert answer(request) == rows_of_bytes(2 * rows)
    assert request.outputs[0].shape == (rows, 2)
    assert line.outcomes == {request: 1}
    line.check_at_rest()


def test_pieces_finishing_in_another_order_are_joined_in_the_requests():
    line = Line(streams=3)
    request = line.submit(rows_of_bytes(3 * MAX_ROWS), 3 * MAX_ROWS)
    line.station.tick()
    line.station.tick()
    running = line.station.executor._running
    assert len(running) == 3
    running.reverse()
    line.station.finish_all()
    assert answer(request) == rows_of_bytes(3 * MAX_ROWS)


def test_pieces_are_views_of_the_callers_data_and_have_its_deadline_timeout_and_priority():
    taken: list[Pending] = []

    class Inner:
        def submit(self, request):
            taken.append(request)

        def cancel(self, request):
            raise AssertionError("nothing is to be cancelled")

    line = Line()
    data = rows_of_bytes(9)
    request = line.request(data, 9, 5.0, timeout_s=0.25, priority=2)
    Splitter(Inner(), line.spec).submit(request)
    assert [piece.rows for piece in taken] == [4, 4, 1]
    assert [piece.parts[0].obj is data for piece in taken] == [True] * 3
    assert b"".join(piece.parts[0] for piece in taken) == data
    assert {(piece.deadline, piece.timeout_s, piece.priority) for piece in taken} == {(5.0, 0.25, 2)}
    assert sum(piece.byte_size for piece in taken) == request.byte_size


def test_a_request_that_fits_is_passed_on_itself():
    line = Line()
    request = line.submit(b"abcd", MAX_ROWS)
    line.station.tick()
    line.station.tick()
    assert line.station.executor.started[0].requests == [request]
    line.splitter.cancel(request)
    assert isinstance(request.error, Cancelled)


def test_cancelling_the_whole_cancels_every_piece():
    line = Line()
    request = line.submit(rows_of_bytes(10), 10)
    line.station.tick()
    line.station.tick()  # the first piece runs, two wait
    line.splitter.cancel(request)
    line.splitter.cancel(request)
    assert isinstance(request.error, Cancelled)
    assert line.outcomes == {request: 1}
    assert line.station.batcher.statistics().waiting == 0
    line.station.finish_all()
    assert len(line.station.executor.started) == 1
    line.check_at_rest()


def test_the_first_piece_to_fail_fails_the_whole_and_the_rest_never_runs():
    line = Line(behaviour=picky)
    request = line.submit(bytes([POISON]) + rows_of_bytes(11), 12)
    line.station.finish_all()
    assert isinstance(request.error, ModelFailed)
    assert line.outcomes == {request: 1}
    assert len(line.station.executor.started) <= 2  # refilled before the failure is told
    line.check_at_rest()


def test_when_a_piece_is_refused_none_is_left_and_nobody_is_called():
    line = Line(max_queue_size=2)
    request = line.request(rows_of_bytes(12), 12)
    with pytest.raises(QueueFull):
        line.splitter.submit(request)
    assert request.state == DONE
    line.check_at_rest()
    line.splitter.cancel(request)
    line.station.finish_all()
    assert line.outcomes == {}
    assert line.station.executor.started == []


def test_an_expired_request_ends_once():
    line = Line()
    blocking = line.submit(b"b", 1)
    line.station.tick()
    line.station.tick()
    request = line.submit(rows_of_bytes(12), 12, deadline=1.0)
    line.station.clock.advance(2.0)
    assert isinstance(request.error, DeadlineExceeded)
    line.station.finish_all()
    assert line.outcomes == {blocking: 1, request: 1}
    line.check_at_rest()


class AtOnce:
    """An intake that gives each request its outcome before ``submit`` returns."""

    def __init__(self, fail_at: int | None = None, refuse_at: int | None = None) -> None:
        self.fail_at, self.refuse_at = fail_at, refuse_at
        self.count = 0

    def submit(self, request):
        self.count += 1
        if self.count == self.refuse_at:
            raise QueueFull("full")
        if self.count == self.fail_at:
            request.fail(ModelFailed("no"))
        else:
            request.finish(request.bound.tensors)

    def cancel(self, request):
        assert request.state != DONE, "an ended request was cancelled"


def test_outcomes_that_come_during_submission_count_once():
    line = Line()
    request = line.request(rows_of_bytes(12), 12)
    Splitter(AtOnce(), line.spec).submit(request)
    assert answer(request) == rows_of_bytes(12)
    failed = line.request(rows_of_bytes(12), 12)
    inner = AtOnce(fail_at=2)
    Splitter(inner, line.spec).submit(failed)
    assert isinstance(failed.error, ModelFailed)
    assert inner.count == 2
    assert line.outcomes == {request: 1, failed: 1}
    with pytest.raises(QueueFull):
        Splitter(AtOnce(refuse_at=3), line.spec).submit(line.request(rows_of_bytes(12), 12))
    assert len(line.outcomes) == 2


def test_a_piece_that_is_queued_while_the_whole_fails_is_cancelled():
    # The second submission ends the first piece, as an intake may that makes room.
    taken: list[Pending] = []
    cancelled: list[Pending] = []

    class Inner:
        def submit(self, request):
            taken.append(request)
            if len(taken) == 2:
                taken[0].fail(QueueFull("made room"))

        def cancel(self, request):
            cancelled.append(request)
            request.fail(Cancelled("cancelled"))

    line = Line()
    request = line.request(rows_of_bytes(12), 12)
    Splitter(Inner(), line.spec).submit(request)
    assert isinstance(request.error, QueueFull)
    assert cancelled == [taken[1]]
    assert line.outcomes == {request: 1}


def test_a_refusal_after_the_whole_has_failed_is_not_told_again():
    taken: list[Pending] = []

    class Inner:
        def submit(self, request):
            if taken:
                taken[0].fail(DeadlineExceeded("late"))
                raise QueueFull("full")
            taken.append(request)

        def cancel(self, request):
            raise AssertionError("nothing is left to cancel")

    line = Line()
    request = line.request(rows_of_bytes(12), 12)
    Splitter(Inner(), line.spec).submit(request)
    assert isinstance(request.error, DeadlineExceeded)
    assert line.outcomes == {request: 1}


def test_pieces_whose_outputs_do_not_match_fail_the_whole():
    def uneven(inputs):
        (x,) = inputs
        return [Tensor("y", "UINT8", (x.shape[0], x.shape[0]), bytes(x.shape[0] ** 2))]

    line = Line(behaviour=uneven)
    request = line.submit(rows_of_bytes(5), 5)
    line.station.finish_all()
    assert isinstance(request.error, ModelFailed)
    assert "model 'm': output 'y' is UINT8 of row shape [4]" in str(request.error)
    line.check_at_rest()


SUBMIT = st.tuples(
    st.just("submit"),
    st.integers(1, 4 * MAX_ROWS + 1),  # rows
    st.sampled_from([NEVER, NEVER, 0.0, 0.5, 1.0, 2.5]),  # seconds to the deadline
    st.sampled_from([None, None, None, 0, 7]),  # the poisoned row
)
OTHER = st.one_of(
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("fail"), st.just(0)),
    st.tuples(st.just("stop"), st.just(0)),
)


class Ledger:
    """Drives a line by a list of actions."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.requests: list[Pending] = []
        self.refused: list[Pending] = []

    def act(self, action) -> None:
        getattr(self, f"_{action[0]}")(*action[1:])

    def _submit(self, rows, after, poisoned) -> None:
        data = bytearray(rows_of_bytes(rows, len(self.requests)))
        if poisoned is not None and poisoned < rows:
            data[poisoned] = POISON
        request = self.line.request(bytes(data), rows, self.line.station.clock.now() + after)
        before = self.line.station.batcher.in_flight
        try:
            self.line.splitter.submit(request)
        except (QueueFull, PredictedLate, DeadlineExceeded):
            assert self.line.station.batcher.in_flight == before
            self.refused.append(request)
        else:
            self.requests.append(request)

    def _cancel(self, number) -> None:
        if self.requests:
            self.line.splitter.cancel(self.requests[number % len(self.requests)])

    def _advance(self, seconds) -> None:
        self.line.station.clock.advance(seconds)

    def _finish(self, _) -> None:
        if self.line.station.executor.running:
            self.line.station.executor.finish()

    def _fail(self, _) -> None:
        if self.line.station.executor.running:
            self.line.station.executor.finish(ModelFailed("the test says so"))

    def _stop(self, _) -> None:
        self.line.station.batcher.fail_waiting(Draining("over"))


@settings(max_examples=300, deadline=None)
@given(
    streams=st.integers(1, 3),
    inline=st.booleans(),
    enabled=st.booleans(),
    max_queue_size=st.sampled_from([3, 1000]),
    max_bytes=st.sampled_from([15, 10_000]),
    actions=st.lists(SUBMIT | OTHER, max_size=40),
)
def test_whatever_happens_each_request_has_one_outcome_and_the_right_one(
    streams, inline, enabled, max_queue_size, max_bytes, actions
):
    line = Line(
        bytes_spec(MAX_ROWS, split_oversized=True, enabled=enabled),
        max_queue_size=max_queue_size,
        max_bytes=max_bytes,
        streams=streams,
        inline=inline,
        behaviour=picky,
    )
    ledger = Ledger(line)
    for action in actions:
        ledger.act(action)
        assert 0 <= line.station.admission.byte_size <= max_bytes
    line.station.finish_all()
    assert line.outcomes == dict.fromkeys(ledger.requests, 1)
    for request in ledger.requests:
        if request.error is None:
            assert answer(request) == content(request)
            assert request.outputs[0].shape == request.bound.tensors[0].shape
            assert POISON not in content(request)
        else:
            assert isinstance(request.error, TensorferryError)
    line.check_at_rest()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 3 * MAX_ROWS + 1)), min_size=1, max_size=8),
    st.integers(1, 3),
)
def test_split_requests_of_any_length_are_padded_and_answered_as_if_alone(shapes, streams):
    tensors = [tensor_spec("x", "INT16", (2, -1))]
    spec = model_spec(
        tensors,
        tensors,
        max_batch_size=MAX_ROWS,
        batching=BatchingSpec(split_oversized=True),
        padding=PaddingSpec(("x",), ("x",), (3, 8), 7),
    )
    line = Line(spec, streams=streams)
    sent = []
    for number, (length, rows) in enumerate(shapes):
        x = np.arange(number, number + 2 * rows * length, dtype=np.int16).reshape(rows, 2, length)
        request = Pending(spec.bind([tensor_of("x", x)]), line._done)
        line.splitter.submit(request)
        sent.append((request, x))
    line.station.finish_all()
    for request, x in sent:
        (output,) = request.outputs
        assert output.shape == x.shape
        assert array_of(output).tolist() == x.tolist()
    assert line.outcomes == {request: 1 for request, _ in sent}
    line.check_at_rest()


def test_the_whole_came_when_its_pieces_came():
    line = Line()
    line.station.clock.advance(7.0)
    whole = line.submit(rows_of_bytes(10), 10)
    assert whole.enqueued_at == 7.0
    line.station.tick()
    line.station.clock.advance(1.0)
    line.station.finish_all()
    assert whole.record is not None
    assert whole.enqueued_at <= whole.record.started_at
