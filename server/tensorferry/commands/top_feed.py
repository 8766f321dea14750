"""Where ``tensorferry top`` has its frames from: the server-sent events of /live/events.

A thread reads them, and connects again when they end; the one that draws takes what came. Frames are
as ``monitoring/frames.py`` makes them.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from tensorferry.errors import ConfigurationError

__all__ = ["DEFAULT_PORT", "Feed", "Frame", "Refused", "Watch", "events_of", "first_frame", "parse_address"]

DEFAULT_PORT: Final = 8002

#: Frames that are kept: five minutes of them.
_KEPT_FRAMES: Final = 300

#: A frame comes each second; a server that sends nothing for this long is asked anew.
_SILENCE_S: Final = 10.0

#: How long to wait before connecting again.
_PAUSE_S: Final = 1.0

_PATH: Final = "/live/events"

Frame = dict[str, Any]


class Refused(Exception):
    """There are no frames to be had; the message says where they were looked for, and how to mend it."""


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port``, ``[v6]:port`` or an http URL.

    Raises:
        ConfigurationError: it is none of these.
    """
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme != "http" or parts.path not in ("", "/"):
        raise ConfigurationError(f"--http: {text!r} isn't HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}")
    return host, DEFAULT_PORT if port is None else port


def events_of(lines: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    """Yield name ("message" where it has none) and data of each event, as the HTML standard parses them."""
    name = ""
    data: list[str] = []
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            if data:
                yield name or "message", "\n".join(data)
            name, data = "", []
            continue
        field, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


class Watch:
    """What is known of the server: the last minutes' frames, and whether they still come.

    ``trouble`` says why none come; empty while they do.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.frames: deque[Frame] = deque(maxlen=_KEPT_FRAMES)
        self.trouble = ""
        self._heard_at = time.monotonic()

    def restart(self, frames: Sequence[Frame]) -> None:
        """Take in the server's own history in place of what is known."""
        self.frames.clear()
        self.frames.extend(frames)
        self._heard()

    def add(self, frame: Frame) -> None:
        """Take in the next frame."""
        self.frames.append(frame)
        self._heard()

    def lose(self, trouble: str) -> None:
        """Note that no frames come, and why."""
        self.trouble = trouble

    def _heard(self) -> None:
        self.trouble = ""
        self._heard_at = time.monotonic()

    @property
    def stale_s(self) -> float:
        """Seconds since the last word from the server."""
        return time.monotonic() - self._heard_at


class Feed:
    """Reads the frames on a thread of its own, while entered."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._news: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._ended = threading.Event()
        # A daemon: a read that waits for a silent server doesn't hold up the end.
        self._thread = threading.Thread(target=self._read, name="top-feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def take(self, watch: Watch, timeout_s: float) -> None:
        """Wait for news, ``timeout_s`` at most, and tell ``watch`` all there is."""
        try:
            what, news = self._news.get(timeout=timeout_s)
            while True:
                getattr(watch, what)(news)
                what, news = self._news.get_nowait()
        except queue.Empty:
            return

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                for what, news in _frames(self._host, self._port):
                    self._news.put((what, news))
                    if self._ended.is_set():
                        return
            except Refused as error:
                self._news.put(("lose", str(error)))
            self._ended.wait(_PAUSE_S)


def first_frame(host: str, port: int) -> list[Frame]:
    """Return the next frame, last, after those of the minutes before.

    Raises:
        Refused: there is none to be had.
    """
    known: list[Frame] = []
    for what, news in _frames(host, port):
        if what == "add":
            return [*known, news]
        known = news
    raise AssertionError("frames end with an error")


def _frames(host: str, port: int) -> Iterator[tuple[str, Any]]:
    """Yield the names of ``Watch``'s methods and what they take, until the server goes away.

    Raises:
        Refused: always, in the end.
    """
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}{_PATH}"
    connection = http.client.HTTPConnection(host, port, timeout=_SILENCE_S)
    try:
        connection.request("GET", _PATH, headers={"Accept": "text/event-stream"})
        response = connection.getresponse()
        if response.status != 200:
            raise Refused(_refusal(where, response))
        for name, data in events_of(iter(response.readline, b"")):
            told = json.loads(data)
            if name == "history":
                yield "restart", [each for each in told if "server" in each]
            elif name == "message" and "server" in told:
                yield "add", told
        raise Refused(f"{where}: the server has closed the connection; has it been stopped?")
    except TimeoutError:
        raise Refused(
            f"{where}: no word for {_SILENCE_S:g} s; is the machine there, and the port right?"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
            # Its text is what came: of a gRPC port, bytes that no terminal should get.
            why = "what answers there isn't HTTP"
        raise Refused(
            f"{where}: {why}; is the server running, and is this its HTTP port?"
            " --http HOST:PORT names another"
        ) from None
    except (ValueError, TypeError):
        raise Refused(f"{where}: what came isn't a frame; is this a tensorferry of this version?") from None
    finally:
        connection.close()


def _refusal(where: str, response: http.client.HTTPResponse) -> str:
    body = response.read(300).decode("utf-8", "replace").strip()
    said = f"{response.status} {response.reason}" + (f" ({' '.join(body.split())})" if body else "")
    if response.status == 404:
        return (
            f"{where}: {said}; is this the HTTP port of a tensorferry server with monitoring on?"
            " It shows nothing with --monitoring off"
        )
    return f"{where}: {said}"
