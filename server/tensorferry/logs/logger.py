"""The logger that structlog hands out, and the way of a line: level, limit, redaction, rendering, writing.

A line that isn't wanted is dropped before anything is made of it: first by its level, then by its kind's
limit (``limits``). What is left is made fit to be shown (``redaction``) and queued (``writer``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Final

import structlog

from tensorferry.logs.levels import Levels
from tensorferry.logs.limits import REFUSED, SAY_EVERY_S, Kind, Limiter
from tensorferry.logs.redaction import redact, text_of
from tensorferry.logs.writer import Writer

__all__ = ["Logger", "Pipeline", "Sink"]

#: Events whose own code limits them, by another rate.
_LIMITED_ELSEWHERE: Final = frozenset({"model printed", "model prints too much"})

_LONGEST_LINE: Final = 65_536

#: Of each kind of line, lastingly.
_TRACEBACKS_PER_S: Final = 1.0


class Pipeline:
    """What all loggers of the process share. ``fd`` is where lines go, None for nowhere."""

    def __init__(self, fd: int | None, lines_per_s: float, is_terminal: bool = False) -> None:
        self.levels = Levels()
        self.writer = Writer(fd, self._say_what_is_owed)
        self.limiter = Limiter(lines_per_s, on_left_out=self.writer.poke)
        self._tracebacks = Limiter(min(lines_per_s, _TRACEBACKS_PER_S))
        self._json = structlog.processors.JSONRenderer()
        self._console = structlog.dev.ConsoleRenderer(colors=is_terminal)
        self._lost_told = 0
        self._failed = 0
        self.processors: list[structlog.typing.Processor] = [
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_name,
            redact,
            self._render,
        ]
        self._own = Logger(Sink(self, "tensorferry.logs"), self.processors, {})

    @property
    def dropped(self) -> int:
        """How many lines were left out, lost, or couldn't be made."""
        return self.limiter.left_out + self.writer.dropped + self._failed

    def failed(self) -> None:
        """Count a line that couldn't be made; say so, once in a while."""
        self._failed += 1
        if self.limiter.admit("failed") != REFUSED:
            reason = getattr(sys.exc_info()[0], "__name__", "")
            line = {"event": "log line could not be made", "level": "error", "reason": reason}
            self.writer.write(str(self._render(None, "error", line)), True)

    def shorten(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Leave out a line's traceback where its kind has had enough: it is as long as forty lines."""
        if self._tracebacks.admit(kind) != REFUSED:
            return
        given = fields.pop("exc_info")
        error = given if isinstance(given, BaseException) else sys.exc_info()[1]
        fields["raised"] = type(error).__name__

    def say_left_out(self, kind: Kind, count: int) -> None:
        """Write how many lines of a kind were left out."""
        if self.levels.warning:
            parts = kind if isinstance(kind, tuple) else (kind,)
            told = " ".join(str(part) for part in parts if part)
            self._own.write_unlimited("warning", "log lines left out", {"of": told, "lines": count})

    def _say_what_is_owed(self) -> float | None:
        try:
            for kind, count in self.limiter.overdue():
                self.say_left_out(kind, count)
            self._say_lost()
        except Exception:  # the thread must go on
            self.failed()
        return SAY_EVERY_S / 5 if self.limiter.is_owing else None

    def _say_lost(self) -> None:
        lost = self.writer.dropped - self._lost_told
        if lost and self.writer.is_well and self.levels.warning:
            self._lost_told += lost
            why = "standard error couldn't take them"
            self._own.write_unlimited("warning", "log lines lost", {"lines": lost, "reason": why})

    def _render(
        self, logger: object, method: str, event_dict: MutableMapping[str, Any]
    ) -> str | bytes | MutableMapping[str, Any]:
        renderer = self._json if self.levels.form == "json" else self._console
        return renderer(logger, method, event_dict)


class Sink:
    """The end of a logger: its name, and its lines' kind where that is one for all of them."""

    __slots__ = ("kind", "levels", "limiter", "name", "pipeline", "writer")

    def __init__(self, pipeline: Pipeline, name: str = "", *kind: str) -> None:
        self.pipeline = pipeline
        self.levels = pipeline.levels
        self.limiter = pipeline.limiter
        self.writer = pipeline.writer
        self.name = name
        self.kind = (name, *kind) if kind else None

    def info(self, line: str) -> None:
        """Write a rendered line."""
        self.writer.write(line[:_LONGEST_LINE])

    debug = warning = info

    def error(self, line: str) -> None:
        """Write a rendered line that has a place in the queue when others have none left."""
        self.writer.write(line[:_LONGEST_LINE], True)

    critical = exception = error


class Logger(structlog.BoundLoggerBase):
    """``structlog.get_logger(name, *kind)``. No call of it waits or raises.

    Lines of one logger, event and ``model`` are one kind and share a limit; a logger with a ``kind`` of its
    own has one limit for all of its lines.
    """

    _logger: Sink

    def debug(self, event: str, *args: object, **fields: Any) -> None:  # noqa: ANN401 - any value is fine
        """Log what only a developer wants to know."""
        if self._logger.levels.debug:
            self._write("debug", event, args, fields)

    def info(self, event: str, *args: object, **fields: Any) -> None:  # noqa: ANN401
        """Log what happened."""
        if self._logger.levels.info:
            self._write("info", event, args, fields)

    def warning(self, event: str, *args: object, **fields: Any) -> None:  # noqa: ANN401
        """Log what somebody should look at some time."""
        if self._logger.levels.warning:
            self._write("warning", event, args, fields)

    def error(self, event: str, *args: object, **fields: Any) -> None:  # noqa: ANN401
        """Log what is broken."""
        if self._logger.levels.error:
            self._write("error", event, args, fields)

    def exception(self, event: str, *args: object, **fields: Any) -> None:  # noqa: ANN401
        """Log what is broken, with the traceback of the exception that is being handled."""
        fields.setdefault("exc_info", True)
        self.error(event, *args, **fields)

    warn = warning
    critical = fatal = error

    def flood_check(self) -> Callable[[], bool]:
        """Return what tells whether a line of this logger's own kind would be left out just now.

        If so it has been counted, and needn't be written; see ``Limiter.refuses``.
        """
        return partial(self._logger.limiter.refuses, self._logger.kind)

    def write_unlimited(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Write a line whatever level and limit say."""
        try:
            self._proxy_to_logger(level, event, **fields)
        except Exception:
            self._logger.pipeline.failed()

    def _write(self, level: str, event: str, args: tuple[object, ...], fields: dict[str, Any]) -> None:
        sink = self._logger
        try:
            kind = sink.kind
            if kind is None:
                model = fields.get("model") or self._context.get("model")
                kind = (sink.name, event, model if isinstance(model, str) else "")
            left_out = 0 if event in _LIMITED_ELSEWHERE else sink.limiter.admit(kind)
            if left_out == REFUSED:
                return
            if left_out:
                sink.pipeline.say_left_out(kind, left_out)
            if fields.get("exc_info"):
                sink.pipeline.shorten(kind, fields)
            self._proxy_to_logger(level, event % args if args else event, **fields)
        except Exception:  # whoever logs has something else to do
            sink.pipeline.failed()


def _add_name(logger: Sink, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if logger.name:
        event_dict["logger"] = text_of(logger.name, 128)
    return event_dict
