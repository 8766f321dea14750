"""Whether a model fits into memory, asked before it is loaded.

Linux kills the process that takes more memory than there is, and every model goes with it; so a load
that would not fit is refused. What a load takes is estimated from the size of the model's files,
what there is is measured: the machine's, the container's, and each GPU's.

Ownership: a load's memory is taken bit by bit while it runs, so that two loads at once would both
count the same free bytes. ``LOADS`` therefore holds what is promised to the loads under way. It
belongs to the loop thread; only the measuring runs elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Final

import structlog

from tensorferry.errors import ModelLoadError
from tensorferry.execution.host_memory import available_host_bytes
from tensorferry.execution.memory_needs import HOST, mib, needed_bytes, remedy, what_for
from tensorferry.model import ModelSpec

__all__ = [
    "LOADS",
    "Loads",
    "available_bytes",
    "available_device_bytes",
    "check_memory",
]

_log = structlog.get_logger("tensorferry.execution")

#: device -> free bytes there, or None where that isn't known.
DeviceMeter = Callable[[str], int | None]


def available_device_bytes(device: str) -> int | None:
    """Return the free memory of a GPU in bytes; None if there is no such device, or no torch to ask."""
    try:
        from tensorferry.execution.backends.torch_memory import free_device_bytes
    except ImportError:
        return None
    return free_device_bytes(device)


def available_bytes(place: str, device_meter: DeviceMeter = available_device_bytes) -> int | None:
    """Return what can be taken in one place without anybody being killed; None if that isn't known."""
    return available_host_bytes() if place == HOST else device_meter(place)


def check_memory(
    spec: ModelSpec,
    reserve_bytes: int,
    available: Mapping[str, int | None] | None = None,
    promised: Mapping[str, int] | None = None,
) -> None:
    """Make sure that ``spec`` fits, with ``reserve_bytes`` left free in each place.

    ``available`` has the free bytes by place, and is measured if it isn't given; ``promised`` those
    that loads under way are still going to take.

    Raises:
        ModelLoadError: it doesn't; says what is needed, what there is, and what can be done.
    """
    for place, needed in needed_bytes(spec).items():
        free = available_bytes(place) if available is None else available.get(place)
        taken = (promised or {}).get(place, 0)
        if free is None or needed + reserve_bytes + taken <= free:
            continue
        where = "memory" if place == HOST else f"memory of {place}"
        others = f", {mib(taken)} are promised to models that are loading" if taken else ""
        raise ModelLoadError(
            f"model {spec.name!r} version {spec.version} would not fit: it needs about {mib(needed)} of"
            f" {where} for {what_for(spec, place)}; {mib(free)} are available{others}, and"
            f" {mib(reserve_bytes)} are to stay free (memory_reserve_bytes). {remedy(spec, place)}"
        )


class Loads:
    """The loads under way and what they have been promised. Used on one loop thread only.

    ``measure`` says what is free in a place; it is called off the loop.
    """

    def __init__(self, measure: Callable[[str], int | None] = available_bytes) -> None:
        self._measure = measure
        self._promised: Counter[str] = Counter()
        self._ended = 0
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def promised(self) -> dict[str, int]:
        """Bytes by place that loads under way may take."""
        return dict(+self._promised)

    @property
    def waiting(self) -> int:
        """Loads that would fit but for those under way."""
        return len(self._waiters)

    @contextlib.asynccontextmanager
    async def admitted(self, spec: ModelSpec, reserve_bytes: int = 0) -> AsyncIterator[None]:
        """Hold ``spec``'s memory for the length of the block, in which it is loaded.

        A load that fits but for those under way waits for one of them to end: what they have
        really taken is known then. One that would not fit in any case is refused at once.

        Raises:
            ModelLoadError: it doesn't fit.
        """
        needed = await asyncio.to_thread(needed_bytes, spec)
        await self._wait_for_room(spec, needed, reserve_bytes)
        with self._holding(needed):
            yield

    async def _wait_for_room(self, spec: ModelSpec, needed: Mapping[str, int], reserve_bytes: int) -> None:
        while needed:
            ended = self._ended
            available = {place: await asyncio.to_thread(self._measure, place) for place in needed}
            if ended != self._ended:
                continue  # what that load took may not be in the measurement
            check_memory(spec, reserve_bytes, available)
            try:
                check_memory(spec, reserve_bytes, available, self._promised)
            except ModelLoadError:
                _log.info("model waits for memory", model=spec.name, version=spec.version)
                await self._wait_for_an_end()
                continue
            return

    async def _wait_for_an_end(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    @contextlib.contextmanager
    def _holding(self, needed: Mapping[str, int]) -> Iterator[None]:
        self._promised.update(needed)
        try:
            yield
        finally:
            self._promised.subtract(needed)
            self._ended += 1
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)


#: This process's loads: its memory is one, however many engines it has.
LOADS: Final = Loads()
