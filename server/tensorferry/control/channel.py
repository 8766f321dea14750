"""Calls between a server's parent and its processes: JSON lines over a socket pair, both ways.

Either side may call; answers may come in any order. An error of ours travels by its class's name and
comes out as the same error. A message that can't be understood ends the channel: both ends are ours,
and of the same version.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from tensorferry import errors

__all__ = ["Channel", "Handler"]

_log = structlog.get_logger("tensorferry.control")

#: A call's handler: gets the arguments, returns what JSON can hold.
Handler = Callable[..., Awaitable[Any]]

#: Counts of a model with many arms, or many labels, are some hundred KiB.
_LONGEST_LINE_BYTES: Final = 64 * 2**20


class Channel:
    """One end. Used on the loop thread. ``on_end`` is called when it is closed, on either end."""

    def __init__(self, handlers: Mapping[str, Handler], on_end: Callable[[], None] = lambda: None) -> None:
        self._handlers = handlers
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._handling: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, end: socket.socket) -> None:
        """Begin to talk over one end of a socket pair; it is closed with the channel."""
        end.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=end, limit=_LONGEST_LINE_BYTES)
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def is_open(self) -> bool:
        """Whether the other end is there, as far as is known."""
        return self._writer is not None and not self._writer.is_closing()

    async def call(self, method: str, /, **arguments: object) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Call the other side and wait for the answer.

        Raises:
            Unavailable: the other side is gone.
            TensorferryError: what the other side raised.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"call": method, "number": number, "arguments": arguments})
            return await answer
        finally:
            self._waiting.pop(number, None)

    def tell(self, method: str, /, **arguments: object) -> None:
        """Call the other side and don't wait; nothing happens if it is gone."""
        with contextlib.suppress(errors.Unavailable):
            self._send({"call": method, "number": 0, "arguments": arguments})

    async def close(self) -> None:
        """End the channel; calls that wait fail."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._end()

    def _send(self, message: Mapping[str, object]) -> None:
        if self._writer is None or self._writer.is_closing():
            raise errors.Unavailable("another process of this server is gone; try again")
        line = json.dumps(message).encode() + b"\n"
        if len(line) > _LONGEST_LINE_BYTES:
            # The other end couldn't read it, and would take the channel for broken.
            raise errors.InvalidRequest(
                f"the request is too large to be passed on: {len(line)} bytes of {_LONGEST_LINE_BYTES};"
                " send it in parts"
            )
        self._writer.write(line)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._heard(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("control channel ended", reason=repr(error))
        finally:
            self._end()
            self._on_end()

    def _heard(self, message: dict[str, Any]) -> None:
        if "call" in message:
            work = self._handle(message["call"], message["number"], message["arguments"])
            task = asyncio.create_task(work)
            self._handling.add(task)
            task.add_done_callback(self._handling.discard)
            return
        answer = self._waiting.get(message["number"])
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(_error_of(*message["error"]))
        else:
            answer.set_result(message["result"])

    async def _handle(self, method: str, number: int, arguments: Mapping[str, Any]) -> None:
        answer: dict[str, object]
        try:
            answer = {"number": number, "result": await self._handlers[method](**arguments)}
            json.dumps(answer["result"])  # a mistake here would leave the caller waiting
        except errors.TensorferryError as error:
            answer = {"number": number, "error": [type(error).__name__, str(error)]}
        except Exception as error:
            _log.error("unexpected error in a control call", call=method, exc_info=error)
            answer = {"number": number, "error": ["TensorferryError", f"internal error: {error}"]}
        if number:
            self._answer(number, answer)

    def _answer(self, number: int, answer: dict[str, object]) -> None:
        try:
            self._send(answer)
        except errors.Unavailable:
            pass  # nobody is there to hear it
        except errors.InvalidRequest as error:
            self._send({"number": number, "error": [type(error).__name__, str(error)]})

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(errors.Unavailable("another process of this server is gone; try again"))


def _error_of(name: str, text: str) -> errors.TensorferryError:
    kind = getattr(errors, name, errors.TensorferryError)
    if kind is errors.ModelConfigError:
        return errors.ModelConfigError(text)
    error: errors.TensorferryError = kind(text)
    return error
