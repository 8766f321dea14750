"""A shadow gets copies after the caller has its answer, and changes nothing for anybody."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.unit.support import Station, model_spec, tensor_spec

from tensorferry.batching.pending import DONE, Intake, Pending
from tensorferry.engine.shadow_intake import MAX_COPIES, MAX_COPIES_BYTES, Shadowing, ShadowIntake
from tensorferry.errors import Cancelled, InvalidRequest, ModelFailed, ModelNotReady, QueueFull
from tensorferry.model import BatchingSpec, ModelSpec
from tensorferry.rollout.report import shadow_report
from tensorferry.tensors import array_of, tensor_of


@dataclass
class Shadow:
    """A version that takes copies."""

    spec: ModelSpec
    intake: Intake | None


class Inbox:
    """Takes, and leaves it to the test what becomes of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.taken: list[Pending] = []
        self.error = error

    def submit(self, request: Pending) -> None:
        self.taken.append(request)
        if self.error is not None:
            raise self.error

    def cancel(self, request: Pending) -> None:
        raise AssertionError("a copy was cancelled")


def offset_by(amount):
    """A model that adds ``amount`` to its input."""

    def behaviour(inputs):
        data = b"".join(bytes(part) for part in inputs[0].parts)
        return [tensor_of("y", np.frombuffer(data, np.float32).reshape(inputs[0].shape) + np.float32(amount))]

    return behaviour


class Shadowed(Station):
    """A station that echoes floats, before which copies of all requests go to ``shadow``."""

    def __init__(self, intake, share=1.0, shadow_spec=None, spec=None) -> None:
        super().__init__(spec or model_spec())
        self.shadow: Shadow | None = Shadow(shadow_spec or self.spec, intake)
        self.is_busy = False
        self.intake = ShadowIntake(
            self.batcher,
            self.clock,
            Shadowing(self.spec, lambda: self.shadow, share, lambda: self.is_busy),
        )
        self.recorder = self.intake.recorder

    def ask(self, *scores: float, on_done=None) -> Pending:
        tensor = tensor_of("x", np.array(scores, np.float32).reshape(-1, 1))
        request = Pending(self.spec.bind([tensor]), on_done or self.done.append)
        self.intake.submit(request)
        return request

    def answer(self, *scores: float) -> Pending:
        request = self.ask(*scores)
        self.finish_all()
        return request

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Compared, errors, dropped, incompatible."""
        mine = self.recorder
        return mine.compared, mine.errors, mine.dropped, mine.incompatible


def scores_in(request: Pending) -> list[float]:
    assert request.error is None, request.error
    return [float(each) for each in array_of(request.outputs[0]).ravel()]


def test_a_copy_is_made_only_after_the_caller_has_its_answer_and_the_tick_is_over():
    inbox = Inbox()
    station = Shadowed(inbox)
    heard = []
    requests = [station.ask(0.5, on_done=lambda request: heard.append(len(inbox.taken))) for _ in range(3)]
    station.tick()
    station.executor.finish()
    assert heard == [0, 0, 0]
    assert all(request.state == DONE for request in requests)
    assert inbox.taken == []
    station.tick()
    assert len(inbox.taken) == 3


def test_a_copy_has_the_requests_data_no_deadline_and_the_lowest_priority():
    inbox = Inbox()
    spec = model_spec(batching=BatchingSpec(priority_levels=3, default_priority_level=2))
    station = Shadowed(inbox, shadow_spec=spec)
    request = station.answer(0.25, 0.5)
    (copy,) = inbox.taken
    assert copy is not request
    assert [bytes(part) for part in copy.parts] == [bytes(part) for part in request.parts]
    assert (copy.rows, copy.priority, copy.deadline) == (2, 3, float("inf"))


def test_differences_of_scores_are_counted_by_row():
    shadow = Station(model_spec(), behaviour=offset_by(0.25))
    station = Shadowed(shadow.batcher)
    request = station.answer(0.5, 0.125)
    shadow.finish_all()
    assert scores_in(request) == [0.5, 0.125]
    assert station.counts == (1, 0, 0, 0)
    bars = shadow_report(station.recorder.snapshot()).differences
    assert bars.counts[bars.bounds.index(0.5)] == 2
    assert sum(bars.counts) == 2


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.73, 1.0])
def test_the_share_of_requests_is_copied_whatever_their_number(share):
    inbox = Inbox(QueueFull("not now"))
    station = Shadowed(inbox, share)
    for number in range(1, 301):
        station.answer(0.5)
        assert abs(len(inbox.taken) - share * number) <= 2


class TestNothingChangesForCallers:
    def outcomes(self, intake, share=1.0):
        """Submit, cancel and finish in a fixed order; return what the callers heard, in order."""
        station = Shadowed(intake, share)
        requests = [station.ask(number / 8) for number in range(8)]
        station.intake.cancel(requests[2])
        station.finish_all()
        requests += [station.ask(number / 8) for number in range(8, 40)]
        station.tick()
        station.executor.finish(ModelFailed("raised"))
        station.finish_all()
        heard = [
            (requests.index(each), type(each.error) if each.error else scores_in(each))
            for each in station.done
        ]
        return heard, station

    @pytest.mark.parametrize(
        "intake",
        [
            Inbox(),
            Inbox(QueueFull("full")),
            Inbox(ModelNotReady("unloading")),
            Inbox(InvalidRequest("no")),
            Inbox(RuntimeError("a bug")),
            None,
        ],
        ids=["never answers", "full", "unloading", "refuses", "breaks", "not ready"],
    )
    def test_whatever_the_shadow_does(self, intake):
        alone, _ = self.outcomes(None, share=1e-9)
        shadowed, station = self.outcomes(intake)
        assert shadowed == alone
        assert station.batcher.in_flight == 0
        assert station.admission.byte_size == 0

    def test_when_the_shadow_fails_every_batch(self):
        shadow = Station(model_spec())
        alone, _ = self.outcomes(None, share=1e-9)
        shadowed, station = self.outcomes(shadow.batcher)
        assert shadowed == alone
        shadow.tick()
        while shadow.executor.running:
            shadow.executor.finish(ModelFailed("raised"))
            shadow.tick()
        answered = sum(request.error is None for request in station.done)
        compared, errors, dropped, _ = station.counts
        assert compared == 0
        assert errors + dropped == answered
        assert errors > 0

    def test_a_refusal_of_the_live_version_is_raised_and_copied_to_nobody(self):
        inbox = Inbox()
        station = Shadowed(inbox)
        full = Inbox(QueueFull("full"))
        station.intake = ShadowIntake(
            full, station.clock, Shadowing(station.spec, lambda: station.shadow, 1.0, lambda: False)
        )
        with pytest.raises(QueueFull):
            station.ask(0.5)
        station.tick()
        assert inbox.taken == []

    def test_a_cancelled_or_failed_request_is_not_copied(self):
        inbox = Inbox()
        station = Shadowed(inbox)
        cancelled = station.ask(0.5)
        station.intake.cancel(cancelled)
        failed = station.ask(0.5)
        station.tick()
        station.executor.finish(ModelFailed("raised"))
        station.tick()
        assert isinstance(cancelled.error, Cancelled)
        assert isinstance(failed.error, ModelFailed)
        assert inbox.taken == []
        assert station.counts == (0, 0, 0, 0)


class TestDrops:
    def test_copies_beyond_the_bound_are_dropped_and_counted(self):
        inbox = Inbox()
        station = Shadowed(inbox)
        for _ in range(MAX_COPIES + 5):
            station.answer(0.5)
        assert len(inbox.taken) == station.intake.copies == MAX_COPIES
        assert station.counts == (0, 0, 5, 0)

    def test_there_is_room_again_when_copies_have_ended(self):
        inbox = Inbox()
        station = Shadowed(inbox)
        for _ in range(MAX_COPIES):
            station.answer(0.5)
        for copy in inbox.taken:
            copy.finish([tensor_of("y", np.array([[0.5]], np.float32))], 0, 1)
        assert station.intake.copies == 0
        station.answer(0.5)
        assert len(inbox.taken) == MAX_COPIES + 1
        assert station.counts == (MAX_COPIES, 0, 0, 0)

    def test_copies_of_too_many_bytes_are_dropped(self):
        inbox = Inbox()
        wide = MAX_COPIES_BYTES // 4 // 2 - 1
        station = Shadowed(inbox, spec=model_spec([tensor_spec("x", "FP32", [wide])]))
        for _ in range(3):
            request = Pending(
                station.spec.bind([tensor_of("x", np.zeros((1, wide), np.float32))]), station.done.append
            )
            station.intake.submit(request)
            station.finish_all()
        assert len(inbox.taken) == 2
        assert station.counts == (0, 0, 1, 0)

    def test_nothing_is_copied_while_the_live_version_has_requests_waiting(self):
        inbox = Inbox()
        station = Shadowed(inbox)
        station.is_busy = True
        station.answer(0.5)
        assert inbox.taken == []
        assert (station.counts, station.intake.copies) == ((0, 0, 1, 0), 0)

    def test_nothing_is_copied_to_a_shadow_that_is_not_there(self):
        station = Shadowed(None)
        station.answer(0.5)
        station.shadow = None
        station.answer(0.5)
        assert (station.counts, station.intake.copies) == ((0, 0, 2, 0), 0)

    @pytest.mark.parametrize(
        ("error", "counts"),
        [
            (QueueFull("full"), (0, 0, 1, 0)),
            (ModelNotReady("unloading"), (0, 0, 1, 0)),
            (ModelFailed("raised"), (0, 1, 0, 0)),
            (InvalidRequest("no"), (0, 0, 0, 1)),
        ],
    )
    def test_what_becomes_of_a_copy_is_counted_by_its_error(self, error, counts):
        station = Shadowed(Inbox(error))
        station.answer(0.5)
        assert (station.counts, station.intake.copies) == (counts, 0)
        inbox = Inbox()
        station = Shadowed(inbox)
        station.answer(0.5)
        inbox.taken[0].fail(error)
        assert (station.counts, station.intake.copies) == (counts, 0)


class TestOtherShadows:
    def test_a_shadow_with_its_inputs_in_another_order_gets_them_in_its_own(self):
        live = model_spec([tensor_spec("a"), tensor_spec("b")])
        inbox = Inbox()
        station = Shadowed(inbox, spec=live, shadow_spec=replace(live, inputs=live.inputs[::-1]))
        tensors = [tensor_of("a", np.array([[1]], np.float32)), tensor_of("b", np.array([[2]], np.float32))]
        station.intake.submit(Pending(live.bind(tensors), station.done.append))
        station.finish_all()
        (copy,) = inbox.taken
        assert [each.name for each in copy.bound.tensors] == ["b", "a"]
        assert [np.frombuffer(part, np.float32)[0] for part in copy.parts] == [2, 1]

    def test_data_that_was_bound_without_its_bytes_is_bound_again_with_them(self):
        # As requests that look alike are: their common ``bound`` has no data.
        inbox = Inbox()
        shadow = model_spec(max_batch_size=4)
        station = Shadowed(inbox, shadow_spec=shadow)
        bound = station.spec.bind([tensor_of("x", np.array([[0.5]], np.float32))])
        parts = [tensor.data for tensor in bound.tensors]
        bound.forget_data()
        station.intake.submit(Pending(bound, station.done.append, parts=parts))
        station.finish_all()
        assert np.frombuffer(inbox.taken[0].parts[0], np.float32)[0] == 0.5

    @pytest.mark.parametrize(
        "shadow",
        [
            model_spec([tensor_spec("x", "FP64")]),
            model_spec([tensor_spec("z")]),
            model_spec(max_batch_size=1),
        ],
        ids=["datatype", "name", "rows"],
    )
    def test_a_shadow_that_cant_take_the_request_is_counted(self, shadow):
        inbox = Inbox()
        station = Shadowed(inbox, shadow_spec=shadow)
        request = station.answer(0.5, 0.5)
        assert scores_in(request) == [0.5, 0.5]
        assert inbox.taken == []
        assert (station.counts, station.intake.copies) == ((0, 0, 0, 1), 0)

    def test_a_shadow_that_answers_nan_or_without_scores_is_an_error_of_its(self):
        inbox = Inbox()
        station = Shadowed(inbox)
        station.answer(0.5)
        station.answer(0.5)
        inbox.taken[0].finish([tensor_of("y", np.array([[np.nan]], np.float32))], 0, 1)
        inbox.taken[1].finish([tensor_of("y", np.array([[1]], np.int64))], 0, 1)
        assert station.counts == (0, 2, 0, 0)

    def test_another_version_may_become_the_shadow(self):
        first, second = Inbox(), Inbox()
        station = Shadowed(first)
        station.answer(0.5)
        station.shadow = Shadow(model_spec([tensor_spec("z")]), second)
        station.answer(0.5)
        station.shadow = Shadow(model_spec(), second)
        station.answer(0.5)
        assert (len(first.taken), len(second.taken)) == (1, 1)
        assert station.counts == (0, 0, 0, 1)


def test_the_batchs_outputs_go_free_while_a_copy_is_under_way():
    inbox = Inbox()
    station = Shadowed(inbox)
    output = tensor_of("y", np.array([[0.5]], np.float32))
    taken = Inbox()
    station.intake = ShadowIntake(
        taken, station.clock, Shadowing(station.spec, lambda: station.shadow, 1.0, lambda: False)
    )
    station.ask(0.5)
    buffer = bytearray(output.data)
    output.data = memoryview(buffer)
    taken.taken.pop().finish([output], 0, 1)
    station.tick()
    station.done.clear()
    output.data.release()
    buffer.clear()  # raises BufferError while anybody views it
    assert len(inbox.taken) == 1
