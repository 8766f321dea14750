"""Counts add up whatever happens: parts to totals, batches to rows, outcomes to requests. None ever falls."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.batching.ledger import OTHER, SUBMIT, Ledger
from tests.unit.batching.test_batcher_properties import specs
from tests.unit.batching.test_splitting import MAX_ROWS, Line, rows_of_bytes
from tests.unit.support import POISON, Station, bytes_spec, picky

from tensorferry.batching.statistics import BatcherStatistics
from tensorferry.errors import Cancelled, Draining, ModelFailed, QueueFull, TensorferryError

#: What isn't a count that only grows.
NOW = {"waiting", "running", "histograms"}


def assert_consistent(counts: BatcherStatistics) -> None:
    parts_ns = counts.queue_ns + counts.compute_input_ns + counts.compute_infer_ns + counts.compute_output_ns
    assert counts.success_ns == parts_ns
    assert counts.inference_count == sum(rows * size.count for rows, size in counts.batch_sizes.items())
    assert counts.execution_count == sum(size.count for size in counts.batch_sizes.values())
    assert counts.failure_count == sum(counts.failures.values())
    assert all(count >= 0 for count in numbers(counts).values())


def numbers(counts: BatcherStatistics) -> dict[object, int]:
    """Every count that may only grow, by name."""
    found: dict[object, int] = {}
    for field in fields(counts):
        value = getattr(counts, field.name)
        if field.name in NOW:
            continue
        if field.name == "batch_sizes":
            for rows, size in value.items():
                found |= {(rows, part.name): getattr(size, part.name) for part in fields(size)}
        elif isinstance(value, dict):
            found |= {(field.name, key): count for key, count in value.items()}
        else:
            found[field.name] = value
    return found


def assert_not_fallen(before: BatcherStatistics, after: BatcherStatistics) -> None:
    new = numbers(after)
    for name, count in numbers(before).items():
        assert new[name] >= count, name


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
@settings(max_examples=150, deadline=None)
@given(
    spec=specs(),
    streams=st.integers(1, 2),
    max_queue_size=st.sampled_from([3, 1000]),
    actions=st.lists(SUBMIT | OTHER, max_size=30),
)
def test_a_batchers_counts_are_consistent_after_every_step(inline, spec, streams, max_queue_size, actions):
    station = Station(spec, max_queue_size=max_queue_size, streams=streams, inline=inline, behaviour=picky)
    ledger = Ledger(station)
    before = station.batcher.statistics()
    for action in [*actions, ("stop",), ("finish",)]:
        ledger.act(action)
        counts = station.batcher.statistics()
        assert_consistent(counts)
        assert_not_fallen(before, counts)
        ended = counts.success_count + counts.failure_count
        assert ended + station.batcher.in_flight >= len(ledger.requests) + sum(ledger.refused.values())
        before = counts
    ledger.end()
    counts = station.batcher.statistics()
    assert_consistent(counts)
    assert counts.success_count + counts.failure_count == len(ledger.requests) + sum(ledger.refused.values())


class Split(Line):
    """A line that counts what it has submitted, and what was refused."""

    def __init__(self, *, has_order: bool, **station) -> None:
        super().__init__(
            bytes_spec(MAX_ROWS, split_oversized=True, preserve_ordering=has_order),
            behaviour=picky,
            **station,
        )
        self.requests = []
        self.refused = 0

    @property
    def counts(self) -> BatcherStatistics:
        return self.splitter.statistics(self.station.batcher.statistics())

    def act(self, action, number) -> None:
        station = self.station
        if action in ("submit", "poison"):
            request = self.request(rows_of_bytes(number) if action == "submit" else _poisoned(number), number)
            try:
                self.splitter.submit(request)
            except TensorferryError:
                self.refused += 1
            else:
                self.requests.append(request)
        elif action == "finish" and station.executor.running:
            station.executor.finish()
        elif action == "advance":
            station.clock.advance(0.5)
        elif action == "cancel" and self.requests:
            self.splitter.cancel(self.requests[number % len(self.requests)])
        elif action == "stop":
            station.batcher.fail_waiting(Draining("over"))


def _poisoned(rows: int) -> bytes:
    data = bytearray(rows_of_bytes(rows))
    data[rows // 2] = POISON
    return bytes(data)


@pytest.mark.parametrize("has_order", [False, True], ids=["any_order", "in_order"])
@settings(max_examples=200, deadline=None)
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(
                ["submit", "submit", "poison", "finish", "finish", "advance", "advance", "cancel", "stop"]
            ),
            st.integers(1, 3 * MAX_ROWS),
        ),
        max_size=25,
    ),
    max_queue_size=st.sampled_from([2, 4, 1000]),
)
def test_a_split_request_counts_once(has_order, actions, max_queue_size):
    line = Split(has_order=has_order, max_queue_size=max_queue_size, streams=2)
    before = line.counts
    for action, number in actions:
        line.act(action, number)
        counts = line.counts
        assert_consistent(counts)
        assert_not_fallen(before, counts)
        answered = [each for each in line.requests if each in line.outcomes and each.error is None]
        assert counts.success_count >= len([each for each in answered if each.rows > MAX_ROWS])
        before = counts
    line.station.finish_all()
    counts = line.counts
    assert_consistent(counts)
    assert_not_fallen(before, counts)
    answered = [request for request in line.requests if request.error is None]
    assert counts.success_count == len(answered)
    assert counts.failure_count == len(line.requests) - len(answered) + line.refused
    kinds = {"BACKEND": ModelFailed, "CANCELED": Cancelled}
    for reason, kind in kinds.items():
        assert counts.failures[reason] == sum(isinstance(each.error, kind) for each in line.requests)


def test_a_split_requests_time_is_that_of_its_last_piece():
    line = Line()
    line.submit(rows_of_bytes(10), 10)
    line.station.clock.advance(1.0)
    for _ in range(3):
        line.station.clock.sleep(2.0)
        line.station.executor.finish()
        line.station.clock.tick()
    counts = line.splitter.statistics(line.station.batcher.statistics())
    assert (counts.success_count, counts.inference_count, counts.execution_count) == (1, 10, 3)
    assert counts.success_ns == pytest.approx(7e9, abs=2e9)
    assert_consistent(counts)


def test_a_split_request_that_is_refused_halfway_is_one_failure():
    line = Line(max_queue_size=2)
    with pytest.raises(QueueFull):
        line.submit(rows_of_bytes(12), 12)
    counts = line.splitter.statistics(line.station.batcher.statistics())
    assert counts.failures == {"REJECTED": 1, "EXPIRED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
