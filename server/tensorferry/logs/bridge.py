"""Lines of libraries, which use the standard library's ``logging``, go the way of our own.

Left alone they would be written to standard error at once: on the event loop, without a limit.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from tensorferry.logs.logger import Logger, Pipeline, Sink
from tensorferry.logs.redaction import without_data

__all__ = ["Bridge"]

_LONGEST_KIND: Final = 100


class Bridge(logging.Handler):
    """Takes the records of the root logger; those below warning aren't wanted from libraries."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(logging.WARNING)
        self._pipeline = pipeline

    def install(self) -> None:
        """Be the only handler of the root logger."""
        root = logging.getLogger()
        for handler in [each for each in root.handlers if isinstance(each, Bridge)]:
            root.removeHandler(handler)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; see ``logging.Handler``."""
        try:
            # The kind is the message without its arguments, which differ from line to line.
            sink = Sink(self._pipeline, record.name, str(record.msg)[:_LONGEST_KIND])
            logger = Logger(sink, self._pipeline.processors, {})
            fields: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
            write = logger.error if record.levelno >= logging.ERROR else logger.warning
            write(without_data(record.getMessage()), **fields)
        except Exception:
            self._pipeline.failed()
