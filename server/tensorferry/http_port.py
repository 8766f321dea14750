"""The HTTP port: liveness, readiness, metrics, and the live page. aiohttp serves it.

``/metrics`` is Prometheus' text, ``/snapshot`` the same as JSON, of finer buckets, for this server's own
tools: ``{"at": seconds since 1970, "not_ready": {name: reason}, "families": [...]}``. How much time either
may take is bounded: who asks too soon after a costly answer gets that one again. ``Collected-At`` says how
old an answer is.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tensorferry.clock import Clock
from tensorferry.errors import SettingsError
from tensorferry.monitoring.exposition import render
from tensorferry.monitoring.families import parts_of, to_json
from tensorferry.monitoring.feed import Feed
from tensorferry.monitoring.pacing import Made, Paced, Turns
from tensorferry.monitoring.page import LivePage
from tensorferry.monitoring.sources import Source
from tensorferry.transport.listening import reason_of

__all__ = ["COLLECTED_AT", "NO_MONITORING", "HttpPort", "NotLive", "NotReady", "Readiness"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Whether all is ready, and why what isn't is not.
Readiness = Callable[[], Awaitable[tuple[bool, Mapping[str, str]]]]

#: Why the process has to be started anew; "" while it needn't.
NotLive = Callable[[], str]

#: Why what isn't ready isn't, by its name.
NotReady = Callable[[], Mapping[str, str]]

#: A header: since when the numbers hold, in seconds since 1970. What was counted before is in them.
COLLECTED_AT: Final = "Collected-At"

#: Tools ask for a snapshot once a second and must not get the same twice, so it may cost more.
_SNAPSHOT_PAUSES: Final = 4.0


#: Why there is no page where there could be one.
NO_MONITORING: Final = (
    "monitoring is off; start the server with --monitoring on, or without the flag, to have it"
    " (/metrics has the counters all the same)"
)

_COMPACT: Final = (",", ":")

#: Who takes nothing of an answer for so long is let go.
_WRITE_S: Final = 30.0

#: How long answers that are on their way may take to leave once the port is to close. Who reads slowly,
#: or not at all, doesn't hold up the end of the server.
_LINGER_S: Final = 1.0


class HttpPort:
    """``/healthz/live``, ``/healthz/ready``, ``/metrics``, ``/snapshot``, and the live page at ``/``.

    ``feed`` is the page's, which is started and stopped here; a text says why there is no page.
    ``not_ready`` tells at once why what isn't ready isn't, ``not_live`` why only a new process helps.
    """

    def __init__(
        self,
        source: Source,
        readiness: Readiness,
        not_ready: NotReady,
        clock: Clock,
        feed: Feed | str,
        not_live: NotLive = str,
    ) -> None:
        self._source = source
        self._readiness = readiness
        self._not_ready = not_ready
        self._not_live = not_live
        self._clock = clock
        self._write_s = _WRITE_S
        self._text = Paced(self._render, clock)
        self._snapshot = Paced(self._encode, clock, _SNAPSHOT_PAUSES)
        self._routes: dict[str, Handler] = {
            "/healthz/live": self._live,
            "/healthz/ready": self._ready,
            "/metrics": self._metrics,
            "/snapshot": self._snap,
        }
        self._feed = feed if isinstance(feed, Feed) else None
        self._page = LivePage(feed) if isinstance(feed, Feed) else None
        self._routes |= self._page.routes() if self._page is not None else _no_page(str(feed))
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port (chosen, if ``port`` was 0).

        Raises:
            SettingsError: the address can't be listened on.
        """
        application = web.Application()
        for path, handler in self._routes.items():
            application.router.add_get(path, handler)
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=_LINGER_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(f"can't listen on {host}:{port} for HTTP: {reason_of(error)}") from None
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

    async def warm_up(self) -> None:
        """Make both answers once: the first time takes far longer, and calls would wait for it."""
        await self._render(Turns(self._clock))
        await self._encode(Turns(self._clock))

    async def _live(self, request: web.Request) -> web.Response:
        reason = self._not_live()
        if reason:
            return web.json_response({"live": False, "reason": reason}, status=503)
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        ready, not_ready = await self._readiness()
        body = {"ready": ready, "not_ready": not_ready}
        return web.json_response(body, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, await self._text.get(), CONTENT_TYPE_LATEST)

    async def _snap(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, await self._snapshot.get(), "application/json")

    async def _send(
        self, request: web.Request, made: Made[list[bytes]], content_type: str
    ) -> web.StreamResponse:
        """Write an answer piece by piece, for as long as it is read."""
        at = time.time_ns() / 1e9 - made.age_s
        response = web.StreamResponse(headers={"Content-Type": content_type, COLLECTED_AT: f"{at:.6f}"})
        response.content_length = sum(map(len, made.value))
        try:
            await response.prepare(request)
            for piece in made.value if request.method != "HEAD" else ():
                async with asyncio.timeout(self._write_s):
                    await response.write(piece)
                await asyncio.sleep(0)
        except (TimeoutError, ConnectionError):  # too slow: it would keep the answer in memory; or gone
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _render(self, turns: Turns) -> list[bytes]:
        families = await self._source.families()
        turns.begin()
        text = await render(families, turns)
        turns.end()
        return text

    async def _encode(self, turns: Turns) -> list[bytes]:
        families = await self._source.families()
        at = time.time_ns() / 1e9
        turns.begin()
        not_ready = json.dumps(dict(self._not_ready()))
        told = [f'{{"at":{at},"not_ready":{not_ready},"families":['.encode()]
        for family in families.values():
            for part in parts_of(family):  # one at a time: the loop has other work as well
                comma = "," if len(told) > 1 else ""
                told.append((comma + json.dumps(to_json({part.name: part})[0], separators=_COMPACT)).encode())
                await turns.next()
        turns.end()
        return [*told, b"]}"]


def _no_page(why: str) -> dict[str, Handler]:
    async def explain(request: web.Request) -> web.Response:
        return web.Response(status=404, text=f"There is no live page here: {why}.\n")

    return {"/": explain, "/live/events": explain}
