"""Connections that are made ahead of the calls, and made again when they are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import cycle

from tensorferry_client._async import AsyncClient
from tensorferry_client._options import ClientOptions

__all__ = ["WarmConnections"]


class WarmConnections:
    """``count`` clients of one server, each with a task that keeps it connected. Made on a running loop."""

    def __init__(self, options: ClientOptions, count: int, clock: Callable[[], float]) -> None:
        self.clients = tuple(AsyncClient(options, clock=clock) for _ in range(count))
        self._turn = cycle(self.clients)
        self._keepers = [asyncio.create_task(client.keep_connected()) for client in self.clients]

    def next(self) -> AsyncClient:
        """Return the client whose turn it is."""
        return next(self._turn)

    async def close(self) -> None:
        """Close them all."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self.clients))
