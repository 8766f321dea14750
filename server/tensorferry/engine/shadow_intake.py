"""Gives a version that answers nobody a copy of a share of the live requests, and compares the scores.

The live request goes its way first: the copy is made when the caller has its answer, at the end of that
tick, and only if the live version has nothing waiting and few copies are under way. What can't be
copied then is dropped and counted. Nothing that the shadow does reaches a caller, or the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from tensorferry.batching.pending import Intake, Pending
from tensorferry.clock import Clock
from tensorferry.engine.scores import score_output_index, scores_of
from tensorferry.errors import Cancelled, Overloaded, RequestError, TensorferryError, Unavailable
from tensorferry.model import Bound, ModelSpec
from tensorferry.rollout.shadow_counts import ShadowRecorder
from tensorferry.tensors import Buffer, Tensor

__all__ = ["MAX_COPIES", "MAX_COPIES_BYTES", "ShadowIntake", "ShadowVersion", "Shadowing"]

#: Copies that wait or run at one time; more would only be older when they run.
MAX_COPIES: Final = 32
#: Tensor bytes that they hold together.
MAX_COPIES_BYTES: Final = 16 * 2**20

#: Multiples of the golden ratio, modulo 1, fall evenly over [0, 1): any run of requests has its share,
#: and no rhythm of the traffic meets a rhythm of ours. In 32-bit fractions.
_GOLDEN: Final = 2654435769
_WHOLE: Final = 2**32


class ShadowVersion(Protocol):
    """What gets the copies: a ``LiveModel``. ``intake`` is None while it isn't ready."""

    @property
    def spec(self) -> ModelSpec:
        """What it takes and returns."""
        ...

    @property
    def intake(self) -> Intake | None:
        """Where the copies go in."""
        ...


@dataclass(frozen=True, slots=True)
class Shadowing:
    """What is shadowed, by what, and who counts it.

    ``shadow`` returns the version that gets the copies, None while it isn't there. ``share`` of the
    requests are copied, above 0 and at most 1. ``is_busy`` says whether the live version has requests
    waiting. ``score_output`` is as in ``Guards``.
    """

    live: ModelSpec
    shadow: Callable[[], ShadowVersion | None]
    share: float
    is_busy: Callable[[], bool]
    recorder: ShadowRecorder = field(default_factory=ShadowRecorder)
    score_output: str = ""


class _Copy:
    """A request that was answered, for as long as the shadow takes: its data, and the live scores."""

    __slots__ = ("bound", "byte_size", "parts", "scores")

    def __init__(self, bound: Bound, parts: Sequence[Buffer], scores: list[float]) -> None:
        self.bound = bound
        self.parts = parts
        self.byte_size = sum([len(part) for part in parts])
        self.scores = scores


class ShadowIntake:
    """An ``Intake`` before another, that copies requests to a shadow. Used on the loop thread."""

    def __init__(self, inner: Intake, clock: Clock, shadowing: Shadowing) -> None:
        self._inner = inner
        self._clock = clock
        self._shadowing = shadowing
        self._recorder = shadowing.recorder
        self._live_index = _index_of(shadowing.live, shadowing.score_output)
        self._limit = round(shadowing.share * _WHOLE)
        self._turn = 0
        self._waiting: list[_Copy] = []
        self._copies = 0
        self._copies_bytes = 0
        #: The shadow that was last seen, the index of its scores, and whether it takes requests as they
        #: are bound for the live version.
        self._known: tuple[ShadowVersion, int, bool] | None = None

    @property
    def recorder(self) -> ShadowRecorder:
        """What it counts in."""
        return self._recorder

    @property
    def copies(self) -> int:
        """Copies that wait for the tick's end, wait at the shadow, or run."""
        return self._copies

    def submit(self, request: Pending) -> None:
        """Pass a request on; perhaps remember to copy it.

        Raises:
            TensorferryError: as the inner intake's ``submit``.
        """
        self._turn = (self._turn + _GOLDEN) % _WHOLE
        if self._turn >= self._limit:
            self._inner.submit(request)
            return
        on_done = request.on_done
        request.on_done = partial(self._answered, on_done)
        try:
            self._inner.submit(request)
        except BaseException:
            request.on_done = on_done
            raise

    def cancel(self, request: Pending) -> None:
        """Give a request up that was submitted here."""
        self._inner.cancel(request)

    def _answered(self, on_done: Callable[[Pending], None], request: Pending) -> None:
        on_done(request)
        if request.error is not None:
            return  # nothing to compare with
        size = sum([len(part) for part in request.parts])
        if self._copies >= MAX_COPIES or self._copies_bytes + size > MAX_COPIES_BYTES:
            self._recorder.dropped += 1
            return
        # The scores are copied, so that the batch's outputs go free.
        copy = _Copy(request.bound, request.parts, list(scores_of(request, self._live_index)))
        self._copies += 1
        self._copies_bytes += copy.byte_size
        self._waiting.append(copy)
        if len(self._waiting) == 1:
            self._clock.call_soon(self._send)

    # -- the shadow's side ----------------------------------------------------------------------

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for copy in waiting:
            live = None if self._shadowing.is_busy() else self._shadowing.shadow()
            intake = live.intake if live is not None else None
            if live is None or intake is None:
                self._recorder.dropped += 1
                self._let_go(copy)
                continue
            try:
                self._send_to(live, intake, copy)
            except Exception as error:
                self._count(error)
                self._let_go(copy)

    def _send_to(self, live: ShadowVersion, intake: Intake, copy: _Copy) -> None:
        index, is_alike = self._acquaint(live)
        bound = copy.bound
        if not is_alike:
            described = zip(bound.tensors, copy.parts, strict=True)
            bound = live.spec.bind(
                [Tensor(each.name, each.datatype, each.shape, part) for each, part in described]
            )
            # Its own order, which may be another.
            parts: Sequence[Buffer] = [tensor.data for tensor in bound.tensors]
        else:
            parts = copy.parts
        # 0 is the default level; the last is the lowest.
        priority = live.spec.batching.priority_levels
        done = partial(self._compared, copy, index)
        intake.submit(Pending(bound, done, parts=parts, priority=priority))

    def _acquaint(self, live: ShadowVersion) -> tuple[int, bool]:
        known = self._known
        if known is None or known[0] is not live:
            index = _index_of(live.spec, self._shadowing.score_output)
            known = self._known = (live, index, _is_alike(self._shadowing.live, live.spec))
        return known[1], known[2]

    def _compared(self, copy: _Copy, index: int, pending: Pending) -> None:
        if pending.error is not None:
            self._count(pending.error)
        else:
            self._recorder.compare(copy.scores, list(scores_of(pending, index)))
        self._let_go(copy)

    def _count(self, error: Exception) -> None:
        if isinstance(error, RequestError):
            self._recorder.incompatible += 1
        elif isinstance(error, Overloaded | Unavailable | Cancelled):
            self._recorder.dropped += 1
        else:
            self._recorder.errors += 1

    def _let_go(self, copy: _Copy) -> None:
        self._copies -= 1
        self._copies_bytes -= copy.byte_size

    def __repr__(self) -> str:
        return f"<ShadowIntake {self._copies} copies under way, {self._recorder!r}>"


def _index_of(spec: ModelSpec, name: str) -> int:
    try:
        return score_output_index(spec, name)
    except TensorferryError:
        return -1  # its scores are not as many as the other's then, which is counted


def _is_alike(live: ModelSpec, shadow: ModelSpec) -> bool:
    """Whether what is bound for one is bound for the other: the same checks and the same keys."""
    return (
        live.inputs == shadow.inputs
        and live.max_batch_size == shadow.max_batch_size
        and live.padding == shadow.padding
        and live.batching.split_oversized == shadow.batching.split_oversized
        and live.datatypes == shadow.datatypes
    )
