"""Settings that change while the server runs, in all of its processes: how it logs, what it traces.

A change is checked where it is first carried out, and refused before anything has changed; what one process
takes, all take, as they are of one version. The parent remembers what was changed, so that a process that
starts later, or again, is told of it before it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import structlog

from tensorferry.control.channel import Channel
from tensorferry.errors import NotFound, TensorferryError, Unavailable

__all__ = ["NONE", "Adjustable", "Adjustables", "FleetAdjusting", "ProcessAdjusting", "adjusted"]

_log = structlog.get_logger("tensorferry.control")


class Adjustable(Protocol):
    """A group of settings in a process. ``scope`` is a model's name, or "" for the whole server.

    Settings and values are what JSON can hold; None takes a setting away. What ``apply`` does depends on
    the settings alone, and doing it twice is the same as doing it once.
    """

    def describe(self, scope: str) -> dict[str, Any]:
        """Return all settings as they are."""
        ...

    def apply(self, scope: str, change: Mapping[str, Any]) -> None:
        """Change some settings: all of those named, or none.

        Raises:
            InvalidRequest: what is wrong with the change.
        """
        ...


#: How long a process may take to answer. One that hangs is when somebody wants to change the log's level.
_ANSWER_S: Final = 5.0

#: By group: "log", "trace".
Adjustables = Mapping[str, Adjustable]

NONE: Final[Adjustables] = MappingProxyType({})


def adjusted(own: Adjustables, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a change in this process and return the group's settings; an empty one only asks.

    Raises:
        InvalidRequest: what is wrong with the change.
        NotFound: there is no such group.
    """
    if group not in own:
        raise NotFound(f"no settings {group!r} can be changed here; there are {sorted(own) or 'none'}")
    if change:
        own[group].apply(scope, change)
        _log.info("settings changed", group=group, scope=scope, change=dict(change))
    return own[group].describe(scope)


class ProcessAdjusting:
    """The end of a process that has a parent: what comes before it can be applied waits."""

    def __init__(self) -> None:
        self._own: Adjustables | None = None
        self._waiting: list[tuple[str, str, dict[str, Any]]] = []

    def connect(self, own: Adjustables) -> None:
        """Apply what has come, and from now on what comes."""
        self._own = own
        for group, scope, change in self._waiting:
            try:
                adjusted(own, group, scope, change)
            except TensorferryError as error:  # the others have taken it; this one serves all the same
                _log.error("settings not taken over", group=group, scope=scope, reason=str(error))
        self._waiting.clear()

    async def adjust(self, group: str, scope: str, change: dict[str, Any]) -> dict[str, Any] | None:
        """The parent's call: see ``adjusted``. None where it is noted for later."""
        if self._own is None:
            self._waiting.append((group, scope, change))
            return None
        return adjusted(self._own, group, scope, change)


class FleetAdjusting:
    """The parent's end. ``members`` are the processes as they come and go, ``own`` are its own groups."""

    def __init__(self, members: Mapping[int, Channel], own: Adjustables = NONE) -> None:
        self._members = members
        self._own = own
        self._changes: list[tuple[str, str, dict[str, Any]]] = []
        self._lock = asyncio.Lock()

    def tell_all(self, channel: Channel) -> None:
        """Tell a process that joins all that was changed, in that order."""
        for group, scope, change in self._changes:
            channel.tell("adjust", group=group, scope=scope, change=change)

    async def adjust(self, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a change in every process and return the group's settings; an empty one only asks.

        Raises:
            InvalidRequest: what is wrong with the change; it is in force nowhere.
            NotFound: there is no such group.
            Unavailable: no process is there to try it.
        """
        async with self._lock:
            if not change:
                return await self._asked(group, scope)
            first, answer = await self._tried(group, scope, change)
            self._note(group, scope, change)
            await asyncio.gather(
                *(self._one(n, group, scope, change) for n in list(self._members) if n != first)
            )
            return answer

    async def _asked(self, group: str, scope: str) -> dict[str, Any]:
        if group in self._own:
            return self._own[group].describe(scope)
        return (await self._tried(group, scope, {}))[1]

    async def _tried(
        self, group: str, scope: str, change: Mapping[str, Any]
    ) -> tuple[int | None, dict[str, Any]]:
        """Carry a change out in one place, which finds its faults; return the process, None for this one."""
        if group in self._own:
            return None, adjusted(self._own, group, scope, change)
        for number, channel in list(self._members.items()):
            try:
                answer = await _told(channel, group, scope, change)
            except (Unavailable, TimeoutError):
                continue  # it has just died, or is busy; it isn't the one to wait for
            if answer is not None:
                return number, answer
        raise Unavailable("no process of this server is ready to be asked just now; try again")

    async def _one(self, number: int, group: str, scope: str, change: Mapping[str, Any]) -> None:
        channel = self._members.get(number)
        if channel is None:
            return
        try:
            await _told(channel, group, scope, change)
        except (TensorferryError, TimeoutError) as error:
            reason = str(error) or f"no answer in {_ANSWER_S:.0f} s; it was told and may follow later"
            _log.error("process doesn't follow", process=number, call="adjust", reason=reason)

    def _note(self, group: str, scope: str, change: Mapping[str, Any]) -> None:
        """Remember a change; what it overrides is forgotten, so the memory holds each setting once.

        What was taken away is forgotten altogether: a process that starts later doesn't have it.
        """
        kept = []
        for own_group, own_scope, own in self._changes:
            if (own_group, own_scope) == (group, scope):
                own = {name: value for name, value in own.items() if name not in change}
            if own:
                kept.append((own_group, own_scope, own))
        given = {name: value for name, value in change.items() if value is not None}
        self._changes = [*kept, (group, scope, given)] if given else kept


async def _told(channel: Channel, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any] | None:
    async with asyncio.timeout(_ANSWER_S):
        answer: dict[str, Any] | None = await channel.call(
            "adjust", group=group, scope=scope, change=dict(change)
        )
    return answer
