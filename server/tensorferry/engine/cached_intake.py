"""Stands before a model's batcher: answers what was answered before, and runs equal requests once.

A request is one of three:

* a **hit**: its answer is in the cache. It never reaches the batcher and gets its answer on the
  next tick of the loop.
* a **lead**: nobody has asked this yet. A request of the intake's own, the run's ``pending``, goes to
  the batcher in its place, with its deadline, timeout and priority.
* a **follower**: an equal request waits or runs. It joins that run and gets the same outcome.

Each keeps its own deadline and may be cancelled; the run goes on while anybody wants it. Where the
batcher gives up a run because the lead's time is up, the followers that have time go back to the batcher
at the end of the tick, led by the oldest of them. A request that is more urgent than a run that still
waits (a higher priority, or a nearer deadline) doesn't follow it: it leads a run of its own.

The model must be deterministic: the same input always has the same answer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from tensorferry.batching.admission import late_after_s
from tensorferry.batching.batcher import Admission
from tensorferry.batching.expiry import Expiry
from tensorferry.batching.pending import DONE, NEVER, RUNNING, Intake, Pending
from tensorferry.batching.statistics import BatcherStatistics, Counters, Histograms, failure_reason
from tensorferry.clock import Clock
from tensorferry.engine.response_cache import (
    Answer,
    CacheCounters,
    CacheStatistics,
    Key,
    ResponseCache,
    key_of,
)
from tensorferry.engine.shared_run import Run, delays, expires_at_of, level_of
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    PredictedLate,
    QueueFull,
    RequestError,
    TensorferryError,
)
from tensorferry.model import ModelSpec

__all__ = ["FOLLOWER_BYTES", "CachedIntake"]

#: What a follower counts for among the server's bytes in flight, beside its tensors: they may be
#: empty, and followers are not counted in the model's queue.
FOLLOWER_BYTES: Final = 1024


class CachedIntake:
    """An ``Intake`` before another, for one loaded version. Owned by its ``LiveModel``.

    ``submit`` raises what the inner intake raises. Followers are bounded by ``admission``: each
    counts for its tensors and FOLLOWER_BYTES. Without ``has_histograms`` response times aren't distributed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        cache: ResponseCache,
        inner: Intake,
        clock: Clock,
        admission: Admission,
        has_histograms: bool = True,
    ) -> None:
        self._spec = spec
        self._cache = cache
        self._owner = cache.new_owner()
        self._inner = inner
        self._clock = clock
        self._admission = admission
        self._runs: dict[Key, Run] = {}
        self._members: dict[Pending, Run] = {}
        self._hits: list[tuple[Pending, Answer, float]] = []
        self._expiry = Expiry(clock, self._expired)
        # What waits here may be moved behind all others; a new request would wait in front of it.
        self._follows_running_only = delays(spec.batching)
        self._late_s = late_after_s(spec.batching) or NEVER
        self._closed: TensorferryError | None = None
        self._counters = Counters(has_histograms)
        self._cache_counters = CacheCounters()
        #: Nanoseconds that answered requests spent here: neither looking up nor in the inner intake.
        self._waited_ns = 0

    # -- requests -------------------------------------------------------------------------------

    def submit(self, request: Pending) -> None:
        """Take a request. ``on_done`` is called on a later tick.

        Raises:
            QueueFull: the server's bytes in flight are at their bound.
            TensorferryError: as the inner intake's ``submit``.
        """
        if self._closed is not None:
            raise self._closed.with_traceback(None)
        now = request.enqueued_at = self._clock.now()
        key = key_of(self._owner, request.bound, request.parts)
        # A priority that the model doesn't have is the inner intake's to refuse, hit or not.
        batching = self._spec.batching
        is_plain = not batching.priority_levels or request.priority <= batching.priority_levels
        answer = self._cache.get(key)
        if answer is not None and is_plain:
            self._answer_soon(request, answer, self._clock.now() - now)
            return
        level = level_of(request, batching)
        expires_at = expires_at_of(request, level, batching)
        run = self._runs.get(key)
        lookup_s = self._clock.now() - now
        if run is not None and is_plain and expires_at > now and self._may_follow(run, level, expires_at):
            self._follow(run, request, expires_at, lookup_s)
        else:
            self._lead(Run(key, request, level, expires_at, lookup_s))

    def cancel(self, request: Pending) -> None:
        """Give a request up that was submitted here. The run ends with the last who wants it."""
        self._end(request, Cancelled("the caller cancelled the request"))

    def close(self, error: TensorferryError) -> None:
        """Refuse everything from now on with ``error``, and drop the version's answers.

        What the inner intake holds is left to it.
        """
        self._closed = error
        self._cache.forget(self._owner)

    def _answer_soon(self, request: Pending, answer: Answer, lookup_s: float) -> None:
        self._hits.append((request, answer, lookup_s))
        if len(self._hits) == 1:
            self._clock.call_soon(self._answer_hits)

    def _answer_hits(self) -> None:
        hits, self._hits = self._hits, []
        for request, answer, lookup_s in hits:
            if request.state != DONE:
                self._cache_counters.hit(1, lookup_s)
                self._waited_ns += int(max(0.0, self._succeed(request) - lookup_s) * 1e9)
                request.finish(answer[0], 0, answer[1])

    # -- runs -----------------------------------------------------------------------------------

    def _lead(self, run: Run) -> None:
        request = run.lead
        before = self._runs.get(run.key)
        self._runs[run.key] = run
        self._members[request] = run
        try:
            self._submit(run, request.deadline)
        except BaseException as error:
            self._dissolve(run)
            if before is not None:
                self._runs[run.key] = before
            request.state = DONE
            if isinstance(error, TensorferryError) and not isinstance(error, RequestError):
                self._counters.failed(failure_reason(error), 0.0)
            raise

    def _may_follow(self, run: Run, level: int, expires_at: float) -> bool:
        """Whether a run is as good as one of the request's own: it runs already, or is no less urgent."""
        if run.pending.state == RUNNING:
            return True
        return not self._follows_running_only and level >= run.level and expires_at >= run.expires_at

    def _follow(self, run: Run, request: Pending, expires_at: float, lookup_s: float) -> None:
        held_bytes = request.byte_size + FOLLOWER_BYTES
        if self._admission.byte_size + held_bytes > self._admission.max_bytes:
            error = QueueFull(
                f"model {self._spec.name!r}: {self._admission.byte_size} bytes are in flight, and the"
                f" server's max_inflight_bytes is {self._admission.max_bytes}; retry after a pause"
            )
            request.state = DONE
            self._counters.refused("max_inflight_bytes")
            self._counters.failed(failure_reason(error), 0.0)
            raise error
        self._admission.byte_size += held_bytes
        run.members[request] = held_bytes
        run.follow_s += lookup_s
        self._members[request] = run
        if expires_at != NEVER:
            request.deadline = expires_at
            self._expiry.watch(request, len(self._members))

    def _submit(self, run: Run, deadline: float) -> None:
        lead = run.lead
        done = partial(self._finished, run)
        pending = Pending(lead.bound, done, deadline, lead.parts, lead.timeout_s, lead.priority)
        run.pending = pending
        pending.enqueued_at = self._clock.now()
        self._inner.submit(pending)

    def _finished(self, run: Run, pending: Pending) -> None:
        error = pending.error
        if error is not None and self._is_the_leads_own(error) and run.members:
            self._give_up_lead(run, error)
            return
        members = self._dissolve(run)
        if error is not None:
            for request in members:
                self._fail(request, error)
            return
        answered, follow_s = self._deliver(pending, members)
        started = self._clock.now()
        if self._closed is None:
            self._cache.keep(run.key, pending)
        if answered:
            self._cache_counters.miss(run.lookup_s + self._clock.now() - started)
        if answered > 1:
            self._cache_counters.hit(answered - 1, run.follow_s)
            self._waited_ns += int(max(0.0, follow_s - run.follow_s) * 1e9)

    def _deliver(self, pending: Pending, members: list[Pending]) -> tuple[int, float]:
        """Answer them; return how many, and the seconds since they came of all but the first."""
        answered = 0
        follow_s = 0.0
        for request in members:
            if request.state != DONE:  # else the callback of one before has cancelled it
                answered += 1
                age_s = self._succeed(request)
                if answered > 1:
                    follow_s += age_s
                else:  # the inner intake counts it, from the submission on
                    self._waited_ns += int(max(0.0, pending.enqueued_at - request.enqueued_at) * 1e9)
                request.record = pending.record
                request.finish(pending.batch_outputs, pending.first_row, pending.batch_rows)
        return answered, follow_s

    def _is_the_leads_own(self, error: TensorferryError) -> bool:
        """Whether the run ended for the lead's deadline, which is not the followers'.

        A refusal for the model's objective holds for all: running it for one after the other would
        keep a queue full of what is too late already.
        """
        return isinstance(error, DeadlineExceeded) or (
            isinstance(error, PredictedLate) and not self._spec.batching.latency_objective_ms
        )

    def _give_up_lead(self, run: Run, error: TensorferryError) -> None:
        """End the lead, whose time is up, and have the others' run submitted anew."""
        lead = run.lead
        if lead in run.members:
            self._leave(run, lead)
            self._fail(lead, error)
        if run.members:
            self._clock.call_soon(partial(self._submit_again, run))
        else:
            self._dissolve(run)

    def _submit_again(self, run: Run) -> None:
        while run.members:
            lead = next(iter(run.members))
            # The priority stays that of the first lead: no follower's was higher.
            lead.priority = run.lead.priority
            run.lead, run.expires_at = lead, lead.deadline
            try:
                if self._closed is not None:
                    raise self._closed.with_traceback(None)
                self._submit(run, lead.deadline)
            except DeadlineExceeded as error:
                self._leave(run, lead)
                self._fail(lead, error)
            except TensorferryError as error:
                for request in self._dissolve(run):
                    self._fail(request, error)
            else:
                return
        self._dissolve(run)

    def _dissolve(self, run: Run) -> list[Pending]:
        """Let a run go; return those who were in it."""
        if self._runs.get(run.key) is run:
            del self._runs[run.key]
        # ``pending`` knows the run as well. Left so, both would wait for the garbage collector, and
        # with them the batch's buffers.
        run.pending = run.lead
        members = list(run.members)
        for request in members:
            self._leave(run, request)
        return members

    def _leave(self, run: Run, request: Pending) -> None:
        del self._members[request]
        self._admission.byte_size -= run.members.pop(request)

    # -- ends -----------------------------------------------------------------------------------

    def _expired(self, request: Pending) -> None:
        waited_ms = (self._clock.now() - request.enqueued_at) * 1e3
        self._end(
            request,
            DeadlineExceeded(
                f"model {self._spec.name!r}: the deadline came after {waited_ms:.1f} ms, while an"
                " equal request waited or ran; this one was not run"
            ),
        )

    def _end(self, request: Pending, error: TensorferryError) -> None:
        run = self._members.get(request)
        if run is not None:
            self._leave(run, request)
        self._fail(request, error)
        if run is not None and not run.members:
            pending = run.pending
            self._dissolve(run)
            self._inner.cancel(pending)

    def _fail(self, request: Pending, error: TensorferryError) -> None:
        if request.state != DONE:
            self._counters.failed(failure_reason(error), self._clock.now() - request.enqueued_at)
            request.fail(error)

    def _succeed(self, request: Pending) -> float:
        """Count a request as answered; return the seconds since it came."""
        now = self._clock.now()
        age_s = now - request.enqueued_at
        self._counters.answered_alone(age_s, request.limit < now or age_s > self._late_s)
        return age_s

    # -- how things are -------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that have no outcome yet."""
        return len(self._members) + len(self._hits)

    def statistics(self, inner: BatcherStatistics) -> BatcherStatistics:
        """Return the inner intake's counts with those of requests put right.

        It knows of runs; how many requests each answered or failed is counted here. A run's time is that
        of the first request that it answered. The others' is their look-up, in ``cache_statistics``, and
        else waiting: the total is queue, compute and ``CacheStatistics.hit_ns`` together.
        """
        mine = self._counters
        return replace(
            inner,
            success_count=mine.success_count,
            success_ns=inner.success_ns + self._waited_ns + self._cache_counters.snapshot().hit_ns,
            queue_ns=inner.queue_ns + self._waited_ns,
            late_count=mine.late_count,
            histograms=_of_requests(inner.histograms, mine.histograms),
            failure_count=mine.failure_count,
            failure_ns=mine.failure_ns,
            failures=dict(mine.failures),
            refusals={
                reason: count + mine.refusals.get(reason, 0) for reason, count in inner.refusals.items()
            },
        )

    def cache_statistics(self) -> CacheStatistics:
        """Return a snapshot of the look-ups."""
        return self._cache_counters.snapshot()

    def __repr__(self) -> str:
        name = f"{self._spec.name}/{self._spec.version}"
        return f"<CachedIntake {name}: {len(self._members)} requests in {len(self._runs)} runs>"


def _of_requests(inner: Histograms | None, mine: Histograms | None) -> Histograms | None:
    """Return the inner intake's distributions, with the response times of requests instead of runs."""
    if inner is not None and mine is not None:
        inner.response = mine.response.copy()
    return inner
