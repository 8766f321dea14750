"""Traces of calls: which are traced, what their spans tell, and the way to a collector.

``open_tracer`` makes it all; the SDK of OpenTelemetry is loaded only where there is a collector.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from tensorferry import __version__
from tensorferry.clock import LoopClock
from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.tracing.settings import Untraced
from tensorferry.tracing.tracer import Tracer

__all__ = ["Tracer", "Untraced", "open_tracer"]


def open_tracer(config: ServerConfig) -> Tracer | None:
    """Return what samples calls and sends their spans; None without a ``trace_endpoint``.

    Called on the loop's thread. Instants are told in Unix time by one offset, taken now: spans never
    overlap or go backwards because somebody sets the machine's clock.

    Raises:
        SettingsError: the endpoint is no URL of a collector, or the SDK isn't installed.
    """
    if not config.trace_endpoint:
        return None
    _check(config.trace_endpoint)
    try:
        from tensorferry.tracing.export import open_sink
    except ImportError as error:
        raise SettingsError(
            f"--trace-endpoint needs OpenTelemetry's SDK and its OTLP/HTTP exporter ({error}):"
            " pip install 'tensorferry[otlp]'"
        ) from None
    clock = LoopClock()
    offset_ns = time.time_ns() - round(clock.now() * 1e9)
    sink = open_sink(config.trace_endpoint, __version__, offset_ns)
    return Tracer(sink, clock, config.trace_rate, config.trace_max_per_s)


def _check(endpoint: str) -> None:
    try:
        address = urlsplit(endpoint)
        fault = "" if address.port != 0 else "its port is 0"
    except ValueError as error:
        raise SettingsError(f"--trace-endpoint {endpoint!r} is no URL: {error}") from None
    if address.scheme not in ("http", "https"):
        fault = "it must begin with http:// or https://"
    elif not address.hostname:
        fault = "it names no host"
    elif address.query or address.fragment:
        fault = "it must have neither a query nor a fragment"
    elif not endpoint.isascii() or any(character.isspace() for character in endpoint):
        fault = "it must be ASCII without spaces"
    if fault:
        raise SettingsError(
            f"--trace-endpoint {endpoint!r}: {fault}; give the OTLP/HTTP address of a collector, such as"
            " http://localhost:4318"
        )
