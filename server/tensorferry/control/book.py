"""The orders that are in force, model by model, and how one is carried out.

The base of the coordinator: it keeps the books, and knows nothing of who may ask for what.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from tensorferry.control.fleet import Fleet, Prepared
from tensorferry.control.orders import Order, read_rollout
from tensorferry.control.rollbacks import Rollbacks
from tensorferry.errors import (
    ConfigurationError,
    ControlDisabled,
    InvalidRequest,
    ModelLoadError,
    NotFound,
    Unavailable,
)
from tensorferry.rollout.state import Rollout
from tensorferry.rollout.store import RolloutStore

__all__ = ["Book", "Change", "Settings", "check_mode", "remove_given"]

_log = structlog.get_logger("tensorferry.control")

#: How long changes may take to be written down when the server stops.
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the models are, and who may change what is served: ``none``, ``poll`` or ``explicit``."""

    root: Path
    mode: str = "none"
    load_model: tuple[str, ...] = ()


#: Makes a rollout of another, or raises InvalidRequest.
Change = Callable[[Rollout], Rollout]

_T = TypeVar("_T")


class Book:
    """What is served, by model: the orders in force, and the changes that are under way."""

    def __init__(self, settings: Settings, fleet: Fleet) -> None:
        self._settings = settings
        self._fleet = fleet
        self._orders: dict[str, Order] = {}
        self._temporary: dict[str, Path] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Models whose rollout is another than their state file's, which couldn't be written.
        self._unwritten: set[str] = set()
        # Changes that are in force and not yet written down, by model: a change that was under way
        # before them must not undo them.
        self._diverting: dict[str, list[Change]] = {}
        self._working: set[asyncio.Task[Any]] = set()
        #: What was taken back since this server started.
        self.rollbacks = Rollbacks()
        #: Called with a model's name when its rollout has changed.
        self.on_rollout: Callable[[str], None] = lambda name: None

    @property
    def is_changing(self) -> bool:
        """Whether a change is under way, or one that is in force isn't written down yet."""
        return bool(self._working)

    @property
    def mode(self) -> str:
        """Who may change what is served; see ``Settings``."""
        return self._settings.mode

    @property
    def orders(self) -> Sequence[Order]:
        """What is served now: what a process that starts has to load."""
        return list(self._orders.values())

    def rollout(self, name: str) -> Rollout:
        """Return a model's rollout.

        Raises:
            NotFound: no such model is served.
        """
        return self._order(name).rollout

    async def close(self) -> None:
        """Let changes be written down, give up what takes longer, and remove what load requests brought."""
        if self._working:
            await asyncio.wait(self._working, timeout=_CLOSE_S)
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        for given in self._temporary.values():
            await remove_given(given)
        self._temporary.clear()

    # -- one order ------------------------------------------------------------------------------

    async def _rollout_in(self, name: str, directory: Path) -> Rollout:
        """Return the rollout that a model's directory holds; the one in force, if that can't be told.

        Without it, a version that nobody has rolled out would be the highest, and would answer.
        """
        try:
            await self._write_held(name)
            return await asyncio.to_thread(read_rollout, directory)
        except (Unavailable, ConfigurationError) as error:
            _log.error("rollout not read", model=name, reason=str(error))
            if name in self._orders and not self._orders[name].fault:
                return self._orders[name].rollout
            raise

    async def _write_held(self, name: str) -> None:
        """Write down a rollout that holds and couldn't be written when it was made.

        Raises:
            Unavailable: it still can't.
            ConfigurationError: the state file is there and can't be read.
        """
        if name in self._unwritten:
            order = self._order(name)
            await asyncio.to_thread(RolloutStore(order.directory).update, lambda before: order.rollout)
            self._unwritten.discard(name)

    async def _apply(self, order: Order, must_be_whole: bool = False) -> None:
        """Carry an order out; the model's lock is held.

        With ``must_be_whole`` nothing changes unless all of its versions can be served.
        """
        prepared = await self._fleet.prepare(order)
        failures = prepared.failures
        if failures and must_be_whole:
            # Committed all the same, with nothing accepted: so the index says why.
            unwanted = "not put in force, as another version was refused"
            refused = {version: failures.get(version, unwanted) for version in {*prepared.ready, *failures}}
            held = self._orders.setdefault(order.name, order)
            await self._fleet.commit(prepared.ticket, held, refused)
            raise ModelLoadError(_told(order.name, failures))
        await self._commit(prepared, order)

    async def _commit(self, prepared: Prepared, order: Order) -> None:
        """Put an order in force that was prepared, with the versions that are ready."""
        rollout = order.rollout
        for change in self._diverting.get(order.name, ()):
            with contextlib.suppress(InvalidRequest):  # void by now
                rollout = change(rollout)
        before = self._orders.get(order.name)
        accepted = frozenset(prepared.ready)
        if prepared.failures and before is not None and before.versions is not None:
            accepted |= before.versions  # while one is refused, none that serves is withdrawn
        order = self._orders[order.name] = replace(order, rollout=rollout, versions=accepted)
        await self._fleet.commit(prepared.ticket, order, {})

    async def _whole(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do a change to its end, also if who asked for it goes away: half of one is nobody's wish."""
        return await asyncio.shield(self._start(work))

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("change refused", reason=str(error))

    def _order(self, name: str) -> Order:
        order = self._orders.get(name)
        if order is None:
            raise NotFound(f"no model {name!r} is served; there are {sorted(self._orders) or 'none'}")
        return order

    def _directory(self, name: str, must_exist: bool) -> Path:
        if "/" in name or name.startswith(".") or not name or not name.isprintable():
            raise InvalidRequest(f"{name!r} is not a model's name")
        directory = self._settings.root / name
        if must_exist and not directory.is_dir():
            raise NotFound(
                f"the repository {self._settings.root} has no model {name!r}; push it, or correct the name"
            )
        return directory


_MODES: Final = {
    "load a model": ("explicit",),
    "unload a model": ("explicit",),
    "change a rollout": ("poll", "explicit"),
}


def check_mode(mode: str, what: str) -> None:
    """Raise ControlDisabled unless a server of this mode does ``what`` by request."""
    if mode not in _MODES[what]:
        raise ControlDisabled(
            f"this server doesn't {what} by request; start it with --model-control-mode"
            f" {' or '.join(_MODES[what])}"
        )


def _told(name: str, failures: Mapping[int, str]) -> str:
    told = "; ".join(
        f"version {version}: {why}" if version else why for version, why in sorted(failures.items())
    )
    return f"model {name!r} was not loaded: {told}"


async def remove_given(given: Path | None) -> None:
    """Remove a model's temporary directory, with the fresh one that ``write_files`` made it in."""
    if given is not None:
        await asyncio.to_thread(shutil.rmtree, given.parent, ignore_errors=True)
