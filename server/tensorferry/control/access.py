"""What the service may ask of the coordinator, wherever that is: in this process, or in the parent.

``LocalControl`` asks it directly, ``RemoteControl`` over a channel. The calls about rollouts take and
return serialised messages of ``protos/rollout.proto``, which both ways can pass on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tensorferry.control.adjusting import NONE, Adjustables, adjusted
from tensorferry.control.book import check_mode
from tensorferry.control.channel import Channel, Handler
from tensorferry.control.coordinator import Coordinator
from tensorferry.control.fleet import VersionState
from tensorferry.control.rollout_calls import RolloutCalls
from tensorferry.control.statistics import VersionStatistics
from tensorferry.repository.overrides import write_files

__all__ = ["Adjust", "Control", "LocalControl", "RemoteControl", "handlers_of"]

#: ``FleetAdjusting.adjust``.
Adjust = Callable[[str, str, Mapping[str, Any]], Awaitable[dict[str, Any]]]


class Control(Protocol):
    """The way to change what is served."""

    async def load(self, name: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """See ``Coordinator.load``."""
        ...

    async def unload(self, name: str, dependents: bool) -> None:
        """See ``Coordinator.unload``."""
        ...

    async def index(self) -> Mapping[str, Sequence[VersionState]]:
        """See ``Coordinator.index``."""
        ...

    async def rollout(self, method: str, body: bytes) -> bytes:
        """Answer a call of the service ModelRollout; see ``RolloutCalls``."""
        ...

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """Return the counts of all processes together; see ``Fleet.statistics``."""
        ...

    async def adjust(self, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings in every process of this server; see ``FleetAdjusting.adjust``."""
        ...


class LocalControl:
    """The coordinator is in this process."""

    def __init__(
        self, coordinator: Coordinator, calls: RolloutCalls, adjustables: Adjustables = NONE
    ) -> None:
        self._coordinator = coordinator
        self._calls = calls
        self._adjustables = adjustables

    async def load(self, name: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """See ``Control``."""
        check_mode(self._coordinator.mode, "load a model")
        await self._coordinator.load(name, config, await _written(name, config, files))

    async def unload(self, name: str, dependents: bool) -> None:
        """See ``Control``."""
        await self._coordinator.unload(name, dependents)

    async def index(self) -> Mapping[str, Sequence[VersionState]]:
        """See ``Control``."""
        return await self._coordinator.index()

    async def rollout(self, method: str, body: bytes) -> bytes:
        """See ``Control``."""
        return await self._calls.call(method, body)

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """See ``Control``."""
        return await self._coordinator.statistics(name, version)

    async def adjust(self, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Control``."""
        return adjusted(self._adjustables, group, scope, change)


class RemoteControl:
    """The coordinator is in the parent process."""

    def __init__(self, channel: Channel, mode: str) -> None:
        self._channel = channel
        self._mode = mode

    async def load(self, name: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """See ``Control``."""
        check_mode(self._mode, "load a model")
        given = await _written(name, config, files)
        await self._channel.call("load", name=name, config=config, given=str(given) if given else None)

    async def unload(self, name: str, dependents: bool) -> None:
        """See ``Control``."""
        await self._channel.call("unload", name=name, dependents=dependents)

    async def index(self) -> Mapping[str, Sequence[VersionState]]:
        """See ``Control``."""
        answer = await self._channel.call("index")
        return {name: [VersionState(*line) for line in lines] for name, lines in answer.items()}

    async def rollout(self, method: str, body: bytes) -> bytes:
        """See ``Control``."""
        return bytes.fromhex(await self._channel.call("rollout", method=method, body=body.hex()))

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """See ``Control``."""
        answer = await self._channel.call("statistics", name=name, version=version)
        return [VersionStatistics.from_json(line) for line in answer]

    async def adjust(self, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Control``."""
        answer: dict[str, Any] = await self._channel.call(
            "adjust", group=group, scope=scope, change=dict(change)
        )
        return answer


def handlers_of(coordinator: Coordinator, calls: RolloutCalls, adjust: Adjust) -> dict[str, Handler]:
    """Return the parent's handlers of what ``RemoteControl`` calls."""

    async def load(name: str, config: str | None, given: str | None) -> None:
        await coordinator.load(name, config, Path(given) if given else None)

    async def unload(name: str, dependents: bool) -> None:
        await coordinator.unload(name, dependents)

    async def index() -> dict[str, list[list[Any]]]:
        lines = await coordinator.index()
        return {
            name: [[each.version, each.state, each.reason] for each in own] for name, own in lines.items()
        }

    async def rollout(method: str, body: str) -> str:
        return (await calls.call(method, bytes.fromhex(body))).hex()

    async def statistics(name: str, version: str) -> list[list[object]]:
        return [line.to_json() for line in await coordinator.statistics(name, version)]

    return {
        "load": load,
        "unload": unload,
        "index": index,
        "rollout": rollout,
        "statistics": statistics,
        "adjust": adjust,
    }


async def _written(name: str, config: str | None, files: Mapping[str, bytes]) -> Path | None:
    """Write the files that came with a request into a directory of the model's shape; None for no files."""
    if not files:
        return None
    writing = asyncio.to_thread(write_files, name, files, config)
    directory: Path = await writing
    return directory
