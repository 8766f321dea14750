"""A batcher on a pool of streams that take several batches each: whatever happens, in whatever order."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.execution.launching_support import HandStream, LaunchingPuppet
from tests.unit.support import PythonModel, answer, bytes_spec, content, run

from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.device import DeviceRun
from tensorferry.errors import DeviceLost, Draining, ModelFailed, OutOfDeviceMemory, TensorferryError
from tensorferry.execution.lines import Lines
from tensorferry.execution.pool import Pool
from tensorferry.execution.warmup import WarmupReport
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor
from tensorferry.testing.clock import VirtualClock
from tensorferry.testing.puppet import echo

MAX_ROWS = 4

#: Sums of these are exact, so that what is due at an instant is due then.
QUARTER_S = 0.25

#: Places of each stream; 0 is a stream on the CPU.
PLACES = st.sampled_from([[2], [3], [3], [1], [2, 3], [3, 3], [1, 2], [0, 3], [2, 0, 2]])
SPECS = st.builds(
    bytes_spec,
    st.just(MAX_ROWS),
    max_queue_delay_us=st.sampled_from([0, 0, 500_000]),
    preferred_batch_sizes=st.sampled_from([(), (), (2,)]),
    preserve_ordering=st.booleans(),
    latency_objective_ms=st.sampled_from([0.0, 0.0, 3000.0]),
)
LEVELS = bytes_spec(MAX_ROWS, priority_levels=3, default_priority_level=2)
ERRORS = st.sampled_from([ModelFailed("no"), OutOfDeviceMemory("full")])


class FollowingPool(RuleBasedStateMachine):
    """Submits, cancels, lets time pass, and ends batches; looks at everything in between."""

    @initialize(
        spec=SPECS | st.just(LEVELS),
        places=PLACES,
        run_s=st.sampled_from([{}, {1: 0.5, MAX_ROWS: 1.0}, {1: 2.0}]),
        lead_s=st.sampled_from([0.0, QUARTER_S]),
    )
    def begin(self, spec, places, run_s, lead_s) -> None:
        self.spec, self.places = spec, [max(1, each) for each in places]
        self.clock = VirtualClock()
        self.streams = [HandStream() for _ in places]
        models = [LaunchingPuppet(slots=each) if each else PythonModel(spec) for each in places]
        self.on_gpu = [each > 0 for each in places]
        self.lines = Lines(self.streams, models, self.clock.now)
        self.pool = Pool(list(self.streams), spec, WarmupReport({}), lines=self.lines)
        self.batcher = Batcher(spec, self.pool, self.clock, Admission(2**20), 1000, run_s)
        self.lead_ns = int(lead_s * 1e9)
        self.lost: set[int] = set()
        self.requests: list[Pending] = []
        self.outcomes: dict[int, int] = {}
        self.told_lost: list[str] = []
        self.pool.when_lost(self.told_lost.append)

    # -- what happens ---------------------------------------------------------------------------

    @rule(
        rows=st.integers(1, MAX_ROWS),
        width=st.sampled_from([1, 1, 2]),
        after=st.sampled_from([NEVER, NEVER, 0.5, 2.0, 5.0]),
        timeout_s=st.sampled_from([0.0, 0.0, 1.0]),
        priority=st.integers(0, 3),
    )
    def submit(self, rows, width, after, timeout_s, priority) -> None:
        index = len(self.requests)
        data = bytes([index % 250] * width) * rows
        levels = self.spec.batching.priority_levels

        def on_done(request: Pending) -> None:
            assert request.state == DONE
            self.outcomes[id(request)] = self.outcomes.get(id(request), 0) + 1

        request = Pending(
            self.spec.bind([Tensor("x", "UINT8", (rows, width), data)]),
            on_done,
            self.clock.now() + after,
            timeout_s=timeout_s,
            priority=priority if levels else 0,
        )
        try:
            self.batcher.submit(request)
        except TensorferryError:
            return
        self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0, 99), is_last=st.booleans())
    def cancel(self, number, is_last) -> None:
        self.batcher.cancel(self.requests[-1 if is_last else number % len(self.requests)])

    @rule(seconds=st.sampled_from([0.0, QUARTER_S, 0.5, 1.0]))
    def advance(self, seconds) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([QUARTER_S, 1.0]))
    def be_late(self, seconds) -> None:
        """Time passes and the end of the tick comes before any timer has its turn."""
        self.clock.sleep(seconds)
        self.clock.tick()

    @rule(number=st.integers(0, 2), row_limit=st.sampled_from([0, 0, 0, 1, 3]))
    def end(self, number, row_limit) -> None:
        stream = self.stream(number)
        if stream is not None:
            self.end_first(stream, row_limit)

    @rule(number=st.integers(0, 2), error=ERRORS)
    def fail(self, number, error) -> None:
        stream = self.stream(number)
        if stream is not None and stream not in self.lost:
            self.streams[stream].end(error=error)

    @rule(number=st.integers(0, 2))
    def lose(self, number) -> None:
        stream = self.stream(number)
        if stream is not None and self.on_gpu[stream]:
            self.lost.add(stream)
            self.end_first(stream)

    @rule()
    def stop(self) -> None:
        self.batcher.fail_waiting(Draining("over"))

    def stream(self, number: int) -> int | None:
        """Return the number of a stream with something in flight; None if there is none."""
        busy = [index for index, stream in enumerate(self.streams) if stream.flying]
        return busy[number % len(busy)] if busy else None

    def end_first(self, index: int, row_limit: int = 0) -> None:
        stream = self.streams[index]
        batch, _ = stream.flying[0]
        if index in self.lost:
            requests = batch.requests
            stream.end(error=DeviceLost("gone"))
            assert all(request.state == DONE for request in requests), "tried again in vain"
            return
        device = None
        if self.on_gpu[index]:
            device = DeviceRun(0, 1, self.lead_ns, row_limit=row_limit)
        stream.end(RunResult(echo(batch.inputs()), 1, 2, 3, device))

    # -- what holds -----------------------------------------------------------------------------

    @invariant()
    def places_add_up(self) -> None:
        flying = [len(stream.flying) for stream in self.streams]
        assert all(count <= most for count, most in zip(flying, self.places, strict=True))
        assert self.pool.idle == flying.count(0)
        assert self.pool.spare == sum(
            most - count for count, most in zip(flying, self.places, strict=True) if count
        )
        assert self.pool.is_lost == bool(self.told_lost) == bool(self.lost)

    @invariant()
    def batches_know_whom_they_follow(self) -> None:
        followers = 0
        for stream in self.streams:
            before = None
            for batch, _ in stream.flying:
                assert batch.behind is before
                followers += before is not None
                before = batch
        forecast = self.batcher._forecast
        assert len(forecast.followers) == followers
        assert len(forecast.runs) == sum(len(stream.flying) for stream in self.streams)
        ends = sorted(forecast._ends(self.clock.now()))
        assert len(ends) == sum(bool(stream.flying) for stream in self.streams)

    @invariant()
    def requests_are_somewhere(self) -> None:
        flying = [r for stream in self.streams for batch, _ in stream.flying for r in batch.requests]
        assert len(flying) == self.batcher._running == len(set(map(id, flying)))
        for request in self.requests:
            assert self.outcomes.get(id(request), 0) <= 1

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """With a place free, whoever waits leaves now or at an instant that is set."""
        self.clock.advance(0.0)
        batcher, now = self.batcher, self.clock.now()
        if not batcher.waiting or not (self.pool.idle or self.pool.spare):
            return
        assert batcher._hold_handle is not None or batcher._hold_end == NEVER
        batching = self.spec.batching
        is_greedy = not batching.max_queue_delay_us and not batching.preferred_batch_sizes
        delay_s = (batching.max_queue_delay_us or 0) / 1e6
        if self.pool.idle:
            assert not is_greedy
            assert now < batcher._hold_end <= now + delay_s
            return
        expected = batcher._forecast.expected
        follow_at = self.pool.follow_at(expected) if expected.is_known else math.inf
        if follow_at == math.inf:
            return  # until whoever runs is back
        assert now < batcher._hold_end <= max(follow_at, now + delay_s)

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        for turn in range(10_000):
            self.clock.advance(10.0)
            stream = self.stream(turn)
            if stream is None:
                break
            self.end_first(stream)
        batcher = self.batcher
        assert batcher.in_flight == 0
        assert batcher._share.byte_size == 0
        run(batcher.wait_idle())
        batcher.close()
        assert self.clock.next_timer() is None
        run(self.pool.close())
        assert set(self.outcomes.values()) <= {1}
        assert len(self.outcomes) == len(self.requests)
        for request in self.requests:
            if request.error is None:
                assert answer(request) == content(request)
            elif isinstance(request.error, DeviceLost):
                assert self.lost
        counts = batcher.statistics()
        assert counts.success_count == sum(request.error is None for request in self.requests)
        assert (counts.waiting, counts.running) == (0, 0)


FollowingPool.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_whatever_happens_each_request_has_one_outcome = FollowingPool.TestCase
