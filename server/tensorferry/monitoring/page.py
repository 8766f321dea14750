"""The live page and its events, over HTTP.

The page is one response: style, script and chart library are in it, and its Content-Security-Policy names
them by their hashes, so that nothing else runs in it and nothing is asked of another host. The events are
server-sent events (WHATWG HTML, section 9.2): first ``history``, an array of frames, then a frame at a time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Final

from aiohttp import web

from tensorferry.monitoring.feed import Feed, Viewer

__all__ = ["LivePage", "page_html"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_STYLES: Final = ("uPlot.min.css", "page.css")
_SCRIPTS: Final = ("uPlot.iife.min.js", "data.js", "charts.js", "detail.js", "page.js")

#: A viewer that takes nothing for so long is let go.
_WRITE_S: Final = 10.0

#: What the kernel may hold for a viewer that doesn't read; its default on a loopback is megabytes.
_SEND_BUFFER_BYTES: Final = 64 * 1024

#: After so long without a frame a comment is sent: it shows whether the viewer is still there.
_SILENCE_S: Final = 15.0
_NOTHING: Final = b": no frame\n\n"

#: What of the history is written at a stretch.
_CHUNK_BYTES: Final = 32 * 1024

_COMMON: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class LivePage:
    """Serves the page at ``/`` and a feed's frames at ``/live/events``.

    ``write_s`` is how long a viewer may take to read what it was sent, in seconds.
    """

    def __init__(self, feed: Feed, write_s: float = _WRITE_S) -> None:
        self._feed = feed
        self._write_s = write_s
        self._streams: set[asyncio.Task[object]] = set()

    def routes(self) -> Mapping[str, _Handler]:
        """Return the handlers by path, all for GET."""
        return {"/": self._page, "/live/events": self._events}

    async def stop(self) -> None:
        """End all streams, so that the HTTP port can close without waiting for viewers."""
        streams = tuple(self._streams)
        for stream in streams:
            stream.cancel()
        if streams:
            await asyncio.wait(streams)

    async def _page(self, request: web.Request) -> web.Response:
        html, policy = _served()
        headers = {
            **_COMMON,
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
        }
        return web.Response(body=html, content_type="text/html", charset="utf-8", headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        viewer = self._feed.watch()
        if viewer is None:
            text = f"{self._feed.viewers} viewers watch this server, and it serves no more: close a page\n"
            return web.Response(status=503, text=text, headers={**_COMMON, "Retry-After": "10"})
        response = web.StreamResponse(headers={**_COMMON, "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        stream = asyncio.current_task()
        assert stream is not None
        self._streams.add(stream)
        try:
            await self._send(request, response, viewer)
        except (TimeoutError, ConnectionError, asyncio.CancelledError) as error:
            # Too slow, gone, or the server stops: what isn't sent yet is of no use to anybody.
            if request.transport is not None:
                request.transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._streams.discard(stream)
            self._feed.leave(viewer)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, viewer: Viewer) -> None:
        """Write events for as long as they are read."""
        _bound_what_the_kernel_holds(request)
        await response.prepare(request)
        for chunk in _history_event(self._feed.history()):
            await self._write(response, chunk)
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    event = b"data: " + await viewer.next() + b"\n\n"
            except TimeoutError:
                event = _NOTHING
            await self._write(response, event)

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        async with asyncio.timeout(self._write_s):
            await response.write(data)


def _history_event(frames: list[bytes]) -> Iterator[bytes]:
    """Yield one event, in pieces: an array with a frame to a line."""
    piece = bytearray(b"retry: 1000\nevent: history\ndata: [\n")
    for index, frame in enumerate(frames):
        piece += b"data: " + frame + (b",\n" if index + 1 < len(frames) else b"\n")
        if len(piece) >= _CHUNK_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece + b"data: ]\n\n")


def _bound_what_the_kernel_holds(request: web.Request) -> None:
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


@cache
def _served() -> tuple[bytes, str]:
    """Return the page, and the policy that permits what is in it."""
    return page_html().encode(), "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(_script())}'",
            f"style-src '{_hash(_style())}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def page_html() -> str:
    """Return the whole page."""
    return _text("page.html").replace("{{style}}", _style()).replace("{{script}}", _script())


def _style() -> str:
    return "\n".join(_text(name) for name in _STYLES)


def _script() -> str:
    return "\n".join(_text(name) for name in _SCRIPTS)


def _text(name: str) -> str:
    return resources.files("tensorferry.monitoring").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
