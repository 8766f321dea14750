"""Stands before all else that a version has, and counts what becomes of its requests during a rollout.

It is the outermost intake, before the response cache and the splitter: what is counted is what callers
get, whole requests and with their keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tensorferry.batching.pending import NEVER, Intake, Pending
from tensorferry.clock import Clock
from tensorferry.engine.scores import scores_of
from tensorferry.errors import Cancelled
from tensorferry.rollout.counts import ArmRecorder, is_fault, is_late

__all__ = ["PROGRESS_REQUESTS", "ObservedIntake"]

#: How often progress is told: after so many requests, and after one in a hundred of all when that is more.
PROGRESS_REQUESTS: Final = 10
_PROGRESS_SHARE: Final = 100

#: A caller whose own deadline comes cancels a little before ours, which began when the request was read.
_NEARLY: Final = 0.9


class ObservedIntake:
    """An ``Intake`` before another, that counts in ``recorder``. Used on the loop thread.

    ``score_output_index`` is the output whose values are scores; -1 for none. ``on_progress`` is called
    at the end of a tick: after every error or NaN, and else after every PROGRESS_REQUESTS requests. It is
    never called from within a delivery, so that it may change where requests go.
    """

    def __init__(
        self,
        inner: Intake,
        clock: Clock,
        recorder: ArmRecorder,
        score_output_index: int,
        on_progress: Callable[[], None] | None = None,
    ) -> None:
        self._inner = inner
        self._now = clock.now
        self._clock = clock
        self._recorder = recorder
        self._index = score_output_index
        self._on_progress = on_progress
        self._next_progress = recorder.requests + PROGRESS_REQUESTS
        self._is_telling = False

    @property
    def recorder(self) -> ArmRecorder:
        """What it counts in."""
        return self._recorder

    def submit(self, request: Pending) -> None:
        """Pass a request on, and count its outcome before the caller gets it.

        Raises:
            TensorferryError: as the inner intake's ``submit``.
        """
        on_done = request.on_done
        request.on_done = partial(self._done, on_done, self._now())
        try:
            self._inner.submit(request)
        except Exception as error:
            request.on_done = on_done
            if is_late(error):
                self._recorder.record_late()
                self._progressed()
            elif is_fault(error):
                self._failed()
            raise

    def cancel(self, request: Pending) -> None:
        """Give a request up that was submitted here."""
        self._inner.cancel(request)

    def _done(self, on_done: Callable[[Pending], None], started: float, request: Pending) -> None:
        recorder = self._recorder
        if request.error is None:
            now = self._now()
            if not recorder.record(now - started, scores_of(request, self._index), request.split_key):
                self._tell_soon()
            elif recorder.requests >= self._next_progress:
                self._progressed()
        else:
            self._ended(request, request.error, started)
        on_done(request)

    def _ended(self, request: Pending, error: Exception, started: float) -> None:
        if is_late(error) or (isinstance(error, Cancelled) and self._is_past_deadline(request, started)):
            self._recorder.record_late()
            self._progressed()
        elif is_fault(error):
            self._failed()

    def _is_past_deadline(self, request: Pending, started: float) -> bool:
        """Whether a caller gave up because its time was over: its cancellation comes before our deadline."""
        deadline = request.call_deadline
        return deadline != NEVER and self._now() - started >= _NEARLY * (deadline - started)

    def _failed(self) -> None:
        self._recorder.record_error()
        self._tell_soon()

    def _progressed(self) -> None:
        requests = self._recorder.requests
        if requests >= self._next_progress:
            self._next_progress = requests + max(PROGRESS_REQUESTS, requests // _PROGRESS_SHARE)
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._on_progress is not None and not self._is_telling:
            self._is_telling = True
            self._clock.call_soon(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        if self._on_progress is not None:
            self._on_progress()

    def __repr__(self) -> str:
        return f"<ObservedIntake {self._recorder!r}>"
