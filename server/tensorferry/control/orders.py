"""What one model is to be served from: an order, and the look into the repository that fills it.

An order is plain data, so that it can be sent to the other processes of a server; each of them
looks into the repository by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tensorferry.errors import ModelConfigError
from tensorferry.repository import Pinned, RepositoryModel, read_model
from tensorferry.repository.overrides import override_source
from tensorferry.repository.source import ConfigSource
from tensorferry.rollout import messages
from tensorferry.rollout.state import EMPTY, Rollout
from tensorferry.rollout.store import RolloutStore

__all__ = ["Order", "read_order", "read_rollout"]


@dataclass(frozen=True, slots=True)
class Order:
    """Serve the model called ``name`` from ``directory``.

    ``config`` is the text of a configuration (JSON) that stands in for the directory's own; None if
    there is none. ``rollout`` is as the state file has it, or is to have it. ``versions`` are those that
    were accepted when the directory was last looked at, beside which only those are served that the
    rollout names; None: whatever the directory holds. ``fault`` is why the model is not to be served.
    """

    name: str
    directory: Path
    config: str | None = None
    rollout: Rollout = EMPTY
    versions: frozenset[int] | None = None
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the order as JSON has it."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "config": self.config,
            "rollout": messages.to_hex(self.rollout),
            "versions": None if self.versions is None else sorted(self.versions),
            "fault": self.fault,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Order:
        """Return the order that ``to_json`` made the values from."""
        return Order(
            values["name"],
            Path(values["directory"]),
            values["config"],
            messages.from_hex(values["rollout"]),
            None if values["versions"] is None else frozenset(values["versions"]),
            values["fault"],
        )


def read_order(order: Order) -> RepositoryModel:
    """Read what the order is about from the disk; what is wrong ends in the entry."""
    rollout = order.rollout
    versions = rollout.needed
    if rollout.previous_stable and (order.directory / str(rollout.previous_stable)).is_dir():
        # Kept warm, so that a rollback takes effect on the next request.
        versions |= {rollout.previous_stable}
    pinned = Pinned(versions, is_exclusive=bool(rollout.stable), accepted=order.versions)
    try:
        if order.fault:
            raise ModelConfigError(order.fault)
        source = _override(order)
    except ModelConfigError as error:
        entry = read_model(order.directory, pinned)
        return RepositoryModel(order.name, entry.config, (), error, entry.available, {}, order.directory)
    return read_model(order.directory, pinned, source)


def _override(order: Order) -> ConfigSource | None:
    if order.config is None:
        return None
    source = override_source(order.name, order.config, order.directory)
    if source.config.input or source.config.output:
        return source
    # Triton fills in what such a configuration leaves out; so does the model's signature.
    return replace(source, path=order.directory, is_file=False)


def read_rollout(directory: Path) -> Rollout:
    """Return the rollout that a model's directory holds.

    Raises:
        ModelConfigError: the state file is there and can't be read.
    """
    return RolloutStore(directory).read()
