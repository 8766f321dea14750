"""gRPC transports: bytes, calls, deadlines and metadata. They know no models.

``choose`` picks one by name; every transport serves the same method table behind ``Transport``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import structlog

from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.service.methods import MethodTable

__all__ = ["Transport", "TransportStatistics", "available", "choose"]

_log = structlog.get_logger("tensorferry.transport")


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """What a transport holds now; zeros where it doesn't know.

    ``unsent_bytes`` are reply bytes that wait for callers to read them, ``receiving_bytes`` those of
    requests that are partly here or wait for their handler.
    """

    connections: int = 0
    streams: int = 0
    unsent_bytes: int = 0
    receiving_bytes: int = 0


class Transport(Protocol):
    """A gRPC server on one port."""

    name: str

    async def start(self, methods: MethodTable, host: str, port: int) -> int:
        """Listen and serve; return the port (chosen, if ``port`` was 0).

        Raises:
            SettingsError: the address can't be listened on.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no new call, let accepted ones finish for up to ``grace_s``, then end the rest."""
        ...

    def statistics(self) -> TransportStatistics:
        """Return what it holds now."""
        ...


def available() -> tuple[str, ...]:
    """Return the names of the transports that this installation has, the fastest first."""
    try:
        # It may be there and still not load: built for another Python, or libnghttp2 is gone.
        import_module("tensorferry.transport._http2")
    except ImportError:
        return ("grpcio",)
    return ("http2", "grpcio")


def choose(config: ServerConfig, reuse_port: bool = False) -> Transport:
    """Make the transport that ``config`` names; ``auto`` is the fastest there is.

    ``reuse_port`` lets several processes share the port.

    Raises:
        SettingsError: it isn't there.
    """
    name = config.transport
    if name == "auto":
        name = available()[0]
        if name != "http2":
            _log.warning("serving on grpcio: the http2 transport isn't built here; see docs/transports.md")
    elif name not in available():
        raise SettingsError(
            f"--transport {name} isn't built in this installation (its C extension needs libnghttp2-dev),"
            " or doesn't load (tensorferry info says why); use auto or grpcio"
        )
    if name == "http2":
        from tensorferry.transport.http2 import Http2Transport

        return Http2Transport(config, reuse_port)
    from tensorferry.transport.grpcio import GrpcioTransport

    return GrpcioTransport(config, reuse_port)
