"""Logging: structlog, to standard error, as readable lines or as JSON. Nothing else.

Standard output is kept for the few lines that scripts read (where the server listens, ``ready``).
Rules for the package: nothing that logs may wait for standard error, and nothing may raise into it.
"""

from tensorferry.logs.setup import adjustable, configure, dropped, flush

__all__ = ["adjustable", "configure", "dropped", "flush"]
