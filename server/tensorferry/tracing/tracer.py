"""Decides which calls are traced, and hands those that have ended to whoever makes spans of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final, Protocol

from tensorferry.clock import Clock
from tensorferry.errors import InvalidRequest
from tensorferry.tracing import context
from tensorferry.tracing.request import RequestTrace
from tensorferry.tracing.sampling import UNLIMITED, Bucket, Budget, Rule
from tensorferry.tracing.settings import FIXED, Choice, Described, parse

__all__ = ["Sink", "Tracer"]

#: Models that may have settings of their own; names that no model has count too.
_MAX_SCOPES: Final = 1024


#: In place of a countdown: each call is to be asked about. Never drawn.
_ASK: Final = Rule(False, 0, Budget(0), Random())
_ASK.skip = 0


class Sink(Protocol):
    """Takes the traces of calls that have ended. Never blocks, never raises."""

    @property
    def dropped(self) -> int:
        """Traces that were given to it and will never arrive."""
        ...

    def send(self, traces: Sequence[RequestTrace]) -> None:
        """Take traces; those of one batch come together."""
        ...

    async def close(self) -> None:
        """Send what is left, for a bounded time."""
        ...


class Tracer:
    """Samples calls and keeps count. Used on the loop thread.

    ``rate`` is one in so many, for calls whose caller has decided nothing; ``max_per_s`` bounds all.
    ``apply`` and ``describe`` are the settings that may change, for all models ("") or for one.
    """

    def __init__(
        self, sink: Sink, clock: Clock, rate: int, max_per_s: float, random: Random | None = None
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._rate = rate
        self._bucket = Bucket(max_per_s, clock.now())
        # Its own: a model that seeds Python's would make ids come twice.
        self._random = random or Random()
        #: What was chosen for all models ("") and for some, and the budgets of those that have their own.
        self._choices: dict[str, Choice] = {"": Choice()}
        self._budgets: dict[str, Budget] = {"": Budget()}
        self._all = self._rule("")
        self._rules: dict[str, Rule] = {}
        #: Whether a model has settings of its own, so that ``sample`` needs its name.
        self.has_scopes = False
        #: What ``sample`` would go by for a call that carries no context, where the model doesn't matter.
        #: While its ``skip`` isn't 0, counting that down is all that there is to do: the way of every call.
        self.countdown = self._all
        self._ended: list[RequestTrace] = []
        self.now = clock.now
        self.sampled = 0
        self.over_limit = 0

    # -- calls ----------------------------------------------------------------------------------

    def sample(
        self, traceparent: bytes | None, tracestate: bytes | None, model: str = ""
    ) -> RequestTrace | None:
        """Decide on a call that has just come; return its trace, or None where it isn't traced.

        A valid ``traceparent`` decides by its sampled flag. ``model`` is asked for where ``has_scopes``.
        """
        rule = self._rules.get(model, self._all) if self.has_scopes else self._all
        is_sampled = context.decision(traceparent) if traceparent is not None else None
        if is_sampled is None:
            if rule.skip:
                rule.skip -= 1
                return None
            rule.draw()
        elif not is_sampled:
            return None
        return self._begin(rule, traceparent, tracestate)

    def _begin(self, rule: Rule, traceparent: bytes | None, tracestate: bytes | None) -> RequestTrace | None:
        budget = rule.budget
        if not rule.is_on or not budget.left:
            return None
        now = self._clock.now()
        if not self._bucket.take(now):
            self.over_limit += 1
            return None
        if budget.left > 0:
            budget.left -= 1
        self.sampled += 1
        # Read when it is known to be needed: callers may sample far more than they are allowed.
        parent = context.read(traceparent, tracestate)
        trace_id = parent.trace_id if parent is not None else self._random.getrandbits(128) or 1
        return RequestTrace(trace_id, self._random.getrandbits(64) or 1, parent, now)

    def ended(self, trace: RequestTrace) -> None:
        """Take a call's trace at its end, when its outcome is with the transport."""
        trace.ended_at = self._clock.now()
        # At the end of the tick: the others of its batch get their answers first, and spans are
        # made when nobody waits for them.
        if not self._ended:
            self._clock.call_soon(self._send)
        self._ended.append(trace)

    def _send(self) -> None:
        traces, self._ended = self._ended, []
        self._sink.send(traces)

    def counts(self) -> dict[str, int]:
        """Return how many calls were sampled, how many of them were dropped, and how many left out.

        ``over_limit`` are those that ``max_per_s`` left out, ``dropped`` those that never arrived.
        """
        return {"sampled": self.sampled, "over_limit": self.over_limit, "dropped": self._sink.dropped}

    async def close(self) -> None:
        """Send what is left; takes two seconds at most."""
        if self._ended:
            self._send()
        await self._sink.close()

    # -- settings -------------------------------------------------------------------------------

    def describe(self, scope: str) -> Described:
        """Return the settings that hold for a model, or for all (""); ``trace_count`` is what is left."""
        rule = self._rules.get(scope, self._all)
        changing = {
            "trace_level": ["TIMESTAMPS" if rule.is_on else "OFF"],
            "trace_rate": [str(rule.rate)],
            "trace_count": [str(rule.budget.left)],
        }
        return changing | {name: [value] for name, value in FIXED.items()}

    def apply(self, scope: str, change: Mapping[str, Any]) -> None:
        """Change the settings of a model, or of all (""); all of the change or nothing of it.

        A setting without values goes back to what holds for all models, or to what the server was started
        with. What a model has chosen for itself, a change for all doesn't touch.

        Raises:
            InvalidRequest: what is wrong with the change.
        """
        parts = parse(change)
        if not parts:
            return
        if scope not in self._choices and len(self._choices) > _MAX_SCOPES:
            raise InvalidRequest(
                f"{_MAX_SCOPES} models have trace settings of their own already: take some back (no values)"
            )
        choice = self._choices.get(scope, Choice())._replace(**parts)
        self._choices[scope] = choice
        if "budget" in parts:
            self._budgets.pop(scope, None)
            if choice.budget is not None or not scope:
                self._budgets[scope] = Budget(UNLIMITED if choice.budget is None else choice.budget)
        if scope and choice == Choice():
            del self._choices[scope]
        self._all = self._rule("")
        self._rules = {name: self._rule(name) for name in self._choices if name}
        self.has_scopes = bool(self._rules)
        self.countdown = _ASK if self.has_scopes else self._all

    def _rule(self, scope: str) -> Rule:
        own, general = self._choices[scope], self._choices[""]
        is_on = general.is_on if own.is_on is None else own.is_on
        rate = general.rate if own.rate is None else own.rate
        budget = self._budgets.get(scope, self._budgets[""])
        return Rule(is_on is not False, self._rate if rate is None else rate, budget, self._random)
