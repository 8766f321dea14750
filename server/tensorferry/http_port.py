"""The HTTP port: liveness, readiness and metrics, for probes and Prometheus. aiohttp serves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tensorferry import metrics
from tensorferry.engine import Engine
from tensorferry.errors import SettingsError
from tensorferry.transport import Transport

__all__ = ["HttpPort", "listen"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def listen(routes: Mapping[str, Handler], host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve GET on ``routes``; return what stops it (``cleanup``), and the port.

    Raises:
        SettingsError: the address can't be listened on.
    """
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_get(path, handler)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise SettingsError(f"can't listen on {host}:{port} for HTTP: {error.strerror}") from None
    return runner, int(runner.addresses[0][1])


class HttpPort:
    """``/healthz/live``, ``/healthz/ready`` and ``/metrics``."""

    def __init__(self, engine: Engine, transport: Transport) -> None:
        self._engine = engine
        self._registry = metrics.registry_of(engine, transport)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port (chosen, if ``port`` was 0).

        Raises:
            SettingsError: the address can't be listened on.
        """
        routes = {"/healthz/live": self._live, "/healthz/ready": self._ready, "/metrics": self._metrics}
        self._runner, bound = await listen(routes, host, port)
        return bound

    async def stop(self) -> None:
        """Close the port and its connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        ready = self._engine.is_ready
        body = {"ready": ready, "not_ready": self._engine.unready()}
        return web.json_response(body, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
