"""The HTTP port: liveness, readiness, metrics, and the live page. aiohttp serves it.

``/metrics`` is Prometheus' text, ``/snapshot`` the same as JSON, of finer buckets, for this server's own
tools: ``{"at": seconds since 1970, "families": [...]}``. How much time either may take is bounded: who asks
too soon after a costly answer gets that one again. ``Collected-At`` says how old an answer is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tensorferry.clock import Clock
from tensorferry.errors import SettingsError
from tensorferry.monitoring.exposition import render
from tensorferry.monitoring.families import to_json
from tensorferry.monitoring.feed import Feed
from tensorferry.monitoring.pacing import Made, Paced, Turns
from tensorferry.monitoring.page import LivePage
from tensorferry.monitoring.sources import Source

__all__ = ["COLLECTED_AT", "HttpPort", "Readiness"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Whether all is ready, and why what isn't is not.
Readiness = Callable[[], Awaitable[tuple[bool, Mapping[str, object]]]]

#: A header: since when the numbers hold, in seconds since 1970. What was counted before is in them.
COLLECTED_AT: Final = "Collected-At"

#: Tools ask for a snapshot once a second and must not get the same twice, so it may cost more.
_SNAPSHOT_PAUSES: Final = 4.0


class HttpPort:
    """``/healthz/live``, ``/healthz/ready``, ``/metrics``, ``/snapshot``; with a ``feed`` also the live page.

    It starts and stops the feed.
    """

    def __init__(self, source: Source, readiness: Readiness, clock: Clock, feed: Feed | None = None) -> None:
        self._source = source
        self._readiness = readiness
        self._text = Paced(self._render, clock)
        self._snapshot = Paced(self._encode, clock, _SNAPSHOT_PAUSES)
        self._routes: dict[str, Handler] = {
            "/healthz/live": self._live,
            "/healthz/ready": self._ready,
            "/metrics": self._metrics,
            "/snapshot": self._snap,
        }
        self._feed = feed
        self._page = LivePage(feed) if feed is not None else None
        if self._page is not None:
            self._routes.update(self._page.routes())
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port (chosen, if ``port`` was 0).

        Raises:
            SettingsError: the address can't be listened on.
        """
        application = web.Application()
        for path, handler in self._routes.items():
            application.router.add_get(path, handler)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(f"can't listen on {host}:{port} for HTTP: {error.strerror}") from None
        self._runner = runner
        if self._feed is not None:
            self._feed.start()
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and its connections."""
        if self._page is not None:
            await self._page.stop()
        if self._feed is not None:
            await self._feed.stop()
        await self._text.close()
        await self._snapshot.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        ready, not_ready = await self._readiness()
        body = {"ready": ready, "not_ready": not_ready}
        return web.json_response(body, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return _answer(await self._text.get(), CONTENT_TYPE_LATEST)

    async def _snap(self, request: web.Request) -> web.Response:
        return _answer(await self._snapshot.get(), "application/json")

    async def _render(self, turns: Turns) -> bytes:
        families = await self._source.families()
        turns.begin()
        text = await render(families, turns)
        turns.end()
        return text

    async def _encode(self, turns: Turns) -> bytes:
        families = await self._source.families()
        at = time.time_ns() / 1e9
        turns.begin()
        told = []
        for name, family in families.items():  # one at a time: the loop has other work as well
            told.append(json.dumps(to_json({name: family})[0], separators=(",", ":")))
            await turns.next()
        turns.end()
        return f'{{"at":{at},"families":[{",".join(told)}]}}'.encode()


def _answer(made: Made[bytes], content_type: str) -> web.Response:
    at = time.time_ns() / 1e9 - made.age_s
    return web.Response(body=made.value, headers={"Content-Type": content_type, COLLECTED_AT: f"{at:.6f}"})
