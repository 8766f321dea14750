"""A change of one model that has been prepared and isn't in force yet.

Prepared means: every version that should be served and isn't yet has been loaded, warmed up and
checked, beside the versions that serve. Committing swaps the routes in one step; abandoning
frees what was loaded. A version that failed is no reason to abandon: the others are independent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from dataclasses import replace

from tensorferry.engine.live import LiveModel, Means, ModelState
from tensorferry.engine.live_ensemble import live_model
from tensorferry.model import ModelSpec
from tensorferry.repository import RepositoryModel
from tensorferry.rollout.state import Rollout

__all__ = ["Transition", "wanted_specs"]


class Transition:
    """One model's next set of versions: those kept as they are, and those loaded for it."""

    def __init__(self, entry: RepositoryModel, rollout: Rollout, current: Mapping[int, LiveModel]) -> None:
        self.entry = entry
        self.rollout = rollout
        self.kept: dict[int, LiveModel] = {}
        self.loaded: dict[int, LiveModel] = {}
        for spec in wanted_specs(entry, rollout):
            live = current.get(spec.version)
            if live is not None and live.state is ModelState.READY and live.asked == spec:
                self.kept[spec.version] = live
            else:
                self.loaded[spec.version] = live_model(spec)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.entry.name

    async def load(self, means: Means) -> None:
        """Load what is new, all at the same time. Never raises: a failure is a version's state."""
        await asyncio.gather(*(live.load(means) for live in self.loaded.values()))

    @property
    def failures(self) -> dict[int, str]:
        """Why versions that should be served can't be; 0 stands for the model as a whole."""
        failures = {version: str(error) for version, error in self.entry.faults.items()}
        if self.entry.error is not None and not failures:
            failures[0] = str(self.entry.error)
        for version, live in self.loaded.items():
            if live.state is not ModelState.READY:
                failures[version] = live.reason
        return failures

    @property
    def ready(self) -> list[int]:
        """The versions that would serve, ascending."""
        loaded = [number for number, live in self.loaded.items() if live.state is ModelState.READY]
        return sorted([*self.kept, *loaded])

    def accepted(self, rejected: Container[int] = ()) -> list[LiveModel]:
        """Return the versions that will serve, without those rejected elsewhere."""
        loaded = [
            live
            for number, live in self.loaded.items()
            if live.state is ModelState.READY and number not in rejected
        ]
        return [*self.kept.values(), *loaded]

    async def abandon(self) -> None:
        """Free what was loaded."""
        await asyncio.gather(*(live.unload() for live in self.loaded.values()))


def wanted_specs(entry: RepositoryModel, rollout: Rollout) -> list[ModelSpec]:
    """Return the specifications to serve: a version that shadows, and isn't an arm, is in the background.

    Also where a label points at it: whoever asks for it by name waits a little longer, and nobody
    else does.
    """
    answering = {version for version, _ in rollout.arms}
    shadow = rollout.shadow_version
    return [
        replace(spec, background=spec.version == shadow and shadow not in answering)
        for spec in entry.versions
    ]
