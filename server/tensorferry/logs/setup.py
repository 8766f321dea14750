"""Sets up the logging of a process, whose one pipeline this module holds."""

from __future__ import annotations

import atexit
import sys
from typing import Final

import structlog

from tensorferry.logs.bridge import Bridge
from tensorferry.logs.levels import LogSettings
from tensorferry.logs.logger import Logger, Pipeline, Sink

__all__ = ["adjustable", "configure", "dropped", "flush"]

#: How long the end of the process waits for lines to be written.
_FLUSH_S: Final = 1.0

_DEFAULT_LINES_PER_S: Final = 20.0


class _Process:
    """The process's one pipeline: structlog's own configuration is the process's, too."""

    pipeline = Pipeline(None, _DEFAULT_LINES_PER_S)


def configure(level: str, log_format: str, max_lines_per_s: float = _DEFAULT_LINES_PER_S) -> None:
    """Set up logging for the process, to standard error. Loggers that were used before go on as they were.

    ``level`` is the least severe to write, ``log_format`` is ``console`` or ``json``, and
    ``max_lines_per_s`` limits the lines of each kind.
    """
    fd, is_terminal = _standard_error()
    pipeline = Pipeline(fd, max_lines_per_s, is_terminal)
    pipeline.levels.start_at(level)
    pipeline.levels.form = log_format
    _Process.pipeline = pipeline
    structlog.configure(
        processors=pipeline.processors,
        wrapper_class=Logger,
        logger_factory=lambda *names: Sink(pipeline, *names),
        cache_logger_on_first_use=True,
    )
    Bridge(pipeline).install()
    atexit.register(flush)


def adjustable() -> LogSettings:
    """Return what changes the logging while the process runs."""
    return LogSettings(_Process.pipeline.levels)


def dropped() -> int:
    """Return how many lines this process has left out or lost so far."""
    return _Process.pipeline.dropped


def flush(timeout_s: float = _FLUSH_S) -> bool:
    """Wait until all lines are written, or ``timeout_s`` at most; return whether they are.

    Called when the interpreter ends in its own way; to be called before ``os._exit``.
    """
    return _Process.pipeline.writer.flush(timeout_s)


def _standard_error() -> tuple[int | None, bool]:
    """Return standard error's descriptor, and whether it is a terminal.

    None where it was closed when the process began: the number may be another file's by now.
    """
    try:
        return sys.stderr.fileno(), sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):
        return None, False
