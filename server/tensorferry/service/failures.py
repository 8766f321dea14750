"""Calls that failed: counted by their code, and told of in the log, each in one line that can be found again.

The line has the client's own request id, the trace's id, and the error id where the caller was given one.
Nothing is made of a line that isn't written: a flood of refusals costs the look at a level and at a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog

from tensorferry.service.status import error_id_of

__all__ = ["Failures"]

#: Our side's fault.
_FAULTS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})

_EVENT: Final = "call failed"


class _Kind:
    """What is the same for all failures of one code. Each code has a limit of its own in the log."""

    __slots__ = ("is_fault", "is_flood", "name", "write")

    def __init__(self, code: grpc.StatusCode) -> None:
        self.name = code.name
        self.is_fault = code in _FAULTS
        log = structlog.get_logger("tensorferry.calls", code.name).bind()
        # Our logger's own; others, such as a test's, have no limits.
        flood_check = getattr(log, "flood_check", None)
        self.is_flood: Callable[[], bool] = flood_check() if flood_check else _never
        self.write: Callable[..., Any]
        if self.is_fault:
            self.write = log.error
        elif code is grpc.StatusCode.CANCELLED:
            self.write = log.debug  # the caller's own wish
        else:
            self.write = log.info


class Failures:
    """Counts and logs calls that ended with another code than OK. Used on the loop thread.

    Made after logging is configured.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        #: How many calls ended with each code, by the code's name.
        self.counts: dict[str, int] = {}

    def count(self, code: grpc.StatusCode) -> bool:
        """Count a failed call. Whether its line is wanted: if so, ``tell`` what it was known by."""
        name = code._name_  # as name is, without a call; and its hash is known, unlike the code's
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(code)
            self.counts[name] = 0
        self.counts[name] += 1
        return not kind.is_flood()

    def tell(
        self, code: grpc.StatusCode, error: BaseException, model: str, request_id: str, trace_id: str = ""
    ) -> None:
        """Write the line of a call that was just counted: at level error if the fault is ours, else at info.

        ``model`` and ``request_id`` are as the caller sent them: they are cut and escaped on their way.
        """
        kind = self._kinds[code._name_]
        if kind.is_fault:
            kind.write(
                _EVENT,
                code=kind.name,
                model=model,
                request_id=request_id,
                trace_id=trace_id,
                error_id=error_id_of(error),
                reason=error,
            )
        else:
            kind.write(
                _EVENT, code=kind.name, model=model, request_id=request_id, trace_id=trace_id, reason=error
            )


def _never() -> bool:
    return False
