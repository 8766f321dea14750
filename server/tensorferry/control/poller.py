"""``--model-control-mode poll``: follows what the repository holds.

A version that ``tensorferry push`` made is whole when it appears, and is taken at the first look. What
was copied in by other means is taken when two looks in a row have seen the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from tensorferry.control.coordinator import Coordinator
from tensorferry.control.orders import Order, read_order, read_rollout
from tensorferry.errors import ConfigurationError, TensorferryError
from tensorferry.repository import RepositoryModel, model_directories
from tensorferry.repository.manifest import FILENAME

__all__ = ["Poller"]

_log = structlog.get_logger("tensorferry.control")


@dataclass(frozen=True, slots=True)
class _Look:
    """A model as one look has seen it. Two equal looks mean that nothing has changed between them."""

    content: str
    is_published: bool


class Poller:
    """What the repository held at the last look, and what has been taken of it."""

    def __init__(self, root: Path, coordinator: Coordinator) -> None:
        self._root = root
        self._coordinator = coordinator
        self._seen: dict[str, _Look] = {}
        self._taken: dict[str, str] = {}

    def start(self) -> None:
        """Note what is served from the start."""
        for order in self._coordinator.orders:
            self._taken[order.name] = _look(order.directory).content

    async def run(self, every_s: float) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.poll()
            except Exception as error:  # the next look may do better; nobody would notice that there is none
                _log.error("repository not polled", exc_info=error)

    async def poll(self) -> None:
        """Look once, and take what has changed and stands still. Never raises: what fails is logged."""
        try:
            looks = await asyncio.to_thread(self._look_at_all)
        except ConfigurationError as error:
            _log.error("repository not read; serving as before", reason=str(error))
            return
        for name in [name for name in self._taken if name not in looks]:
            del self._taken[name]
            await self._coordinator.withdraw(name)
        changed = []
        for name, (directory, look) in looks.items():
            if look.content != self._taken.get(name) and (look.is_published or look == self._seen.get(name)):
                # Once for each content: what fails to load isn't tried again until somebody changes it.
                self._taken[name] = look.content
                changed.append(self._refresh(name, directory))
        self._seen = {name: look for name, (_, look) in looks.items()}
        await asyncio.gather(*changed)

    async def _refresh(self, name: str, directory: Path) -> None:
        try:
            await self._coordinator.refresh(name, directory)
        except TensorferryError as error:
            _log.error("model not refreshed", model=name, reason=str(error))

    def _look_at_all(self) -> dict[str, tuple[Path, _Look]]:
        directories = model_directories(self._root, may_be_empty=True)
        return {directory.name: (directory, _look(directory)) for directory in directories}


def _look(directory: Path) -> _Look:
    try:
        rollout = read_rollout(directory)
    except ConfigurationError as error:
        return _Look(str(error), is_published=False)
    entry = read_order(Order(directory.name, directory, None, rollout))
    # The generation is left out: a canary's steps are written by the coordinator itself.
    named = (sorted(rollout.labels.items()), rollout.split, rollout.shadow)
    content = f"{entry.config} {entry.versions} {entry.error} {sorted(entry.faults.items())} {named}"
    return _Look(content, _is_published(entry))


def _is_published(entry: RepositoryModel) -> bool:
    directories = (entry.directory / str(spec.version) for spec in entry.versions)
    return (
        entry.error is None and not entry.faults and all((each / FILENAME).exists() for each in directories)
    )
