"""Logging set-up: structlog, to standard error, as readable lines or as JSON. Nothing else.

Standard output is kept for the few lines that scripts read (where the server listens, ``ready``).
"""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["configure"]


def configure(level: str, log_format: str) -> None:
    """Set up logging for the process. ``log_format`` is ``console`` or ``json``."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
        errors: list[structlog.typing.Processor] = [structlog.processors.dict_tracebacks]
    else:
        # Plain tracebacks: the prettier ones take 0.3 s each, on the thread that serves, and show
        # local variables, which hold the callers' data.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        errors = []
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *errors,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
