"""gRPC transports: bytes, calls, deadlines and metadata. They know no models.

``choose`` picks one by name; every transport serves the same method table behind ``Transport``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import structlog

from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.service.methods import MethodTable

__all__ = ["Transport", "available", "choose"]

_log = structlog.get_logger("tensorferry.transport")


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


def available() -> tuple[str, ...]:
    """Return the names of the transports that this installation has, the fastest first."""
    return ("http2", "grpcio") if find_spec("tensorferry.transport._http2") else ("grpcio",)


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
            f"--transport {name} isn't built in this installation (its C extension needs libnghttp2-dev);"
            " use auto or grpcio"
        )
    if name == "http2":
        from tensorferry.transport.http2 import Http2Transport

        return Http2Transport(config, reuse_port)
    from tensorferry.transport.grpcio import GrpcioTransport

    return GrpcioTransport(config, reuse_port)
