"""Decides what is served: the one place that changes it while the server runs.

One for each server, however many processes that has. A change of a model is prepared everywhere,
then written down (the rollout's state file), then put in force everywhere; so that a kill at any
moment leaves a state that the next start can serve. Changes of one model wait for each other;
models don't.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from tensorferry.control.book import Book, Change, Settings, check_mode, remove_given
from tensorferry.control.fleet import VersionState
from tensorferry.control.orders import Order, read_order, read_rollout
from tensorferry.control.rollbacks import ASKED
from tensorferry.control.statistics import VersionStatistics
from tensorferry.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelLoadError,
    Unavailable,
)
from tensorferry.repository import model_directories
from tensorferry.repository.overrides import override_source
from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY, Rollout
from tensorferry.rollout.store import RolloutStore

__all__ = ["ALL_MODELS", "Change", "Coordinator", "Settings", "check_mode"]

_log = structlog.get_logger("tensorferry.control")

#: ``--load-model`` for every model that the repository holds.
ALL_MODELS: Final = "*"


class Coordinator(Book):
    """What should be served, by model, and the way from one such state to the next."""

    # -- the start ------------------------------------------------------------------------------

    def first_orders(self) -> list[Order]:
        """Return what is served from the start, and note it as ordered. Reads the repository.

        Raises:
            ConfigurationError: the repository isn't one, or hasn't a model that was asked for by name.
        """
        mode, wanted = self._settings.mode, self._settings.load_model
        directories = {each.name: each for each in model_directories(self._settings.root, mode != "none")}
        if mode == "explicit" and ALL_MODELS not in wanted:
            missing = [name for name in wanted if name not in directories]
            if missing:
                raise ConfigurationError(
                    f"--load-model {missing[0]}: {self._settings.root} has no such model;"
                    f" it has {sorted(directories) or 'none'}"
                )
            self._order_first([directories[name] for name in wanted], directories)
        else:
            self._order_first(list(directories.values()), directories)
        return list(self._orders.values())

    def _order_first(self, wanted: list[Path], there: Mapping[str, Path]) -> None:
        """Note what is served first; with an ensemble go the models of its steps."""
        while wanted:
            directory = wanted.pop(0)
            if directory.name in self._orders:
                continue
            order = self._orders[directory.name] = _first_order(directory)
            wanted += [there[member] for member in _members(order) if member in there]

    async def settle(self) -> None:
        """Note what the first load came to: what came into the repository since isn't part of the orders.

        A model of which nothing could be loaded is served from an older version: a broken one that is
        the newest when the server starts is to do no more harm than one that is pushed while it runs.
        """
        states = await self._fleet.states()
        for name, order in list(self._orders.items()):
            ready = [line.version for line in states.get(name, ()) if line.state == "READY"]
            if order.versions is not None or self._orders.get(name) is not order:
                continue
            if ready:
                self._orders[name] = replace(order, versions=frozenset(ready))
            elif not order.rollout.stable:
                await self._fall_back(order)

    async def _fall_back(self, order: Order) -> None:
        """Serve the newest version below those that the policy of ``latest`` has tried in vain."""
        async with self._locks[order.name]:
            entry = await asyncio.to_thread(read_order, order)
            tried = {*(spec.version for spec in entry.versions), *entry.faults}
            if not tried or entry.config.version_policy.WhichOneof("policy_choice") != "latest":
                return
            for version in sorted((each for each in entry.available if each < min(tried)), reverse=True):
                older = replace(order, versions=frozenset({version, *tried}))
                prepared = await self._fleet.prepare(older)
                if version in prepared.ready:
                    _log.warning(
                        "older version served, as the newest can't be", model=order.name, version=version
                    )
                    await self._commit(prepared, older)
                    return
                await self._fleet.abandon(prepared.ticket)

    # -- models ---------------------------------------------------------------------------------

    async def load(self, name: str, config: str | None = None, given: Path | None = None) -> None:
        """Load a model, or load it anew where its files have changed.

        ``config`` (JSON) stands in for its configuration, and ``given``, a temporary directory of the
        model's shape, for its directory; that is removed once nothing is served from it. With an
        ensemble the models of its steps are loaded that aren't.

        Raises:
            ControlDisabled: the mode isn't explicit.
            InvalidRequest: the configuration isn't one; names the line.
            NotFound: the repository has no such model.
            ModelLoadError: a version wasn't loaded; what served before still does.
        """
        await self._whole(self._load(name, config, given))

    async def _load(self, name: str, config: str | None, given: Path | None) -> None:
        try:
            check_mode(self.mode, "load a model")
            await _check_config(name, config, given or self._settings.root / name)
            async with self._locks[name]:
                own = self._directory(name, must_exist=given is None)
                rollout = await self._rollout_in(name, own) if given is None else EMPTY
                order = Order(name, given or own, config, rollout)
                for member in await asyncio.to_thread(_members, order):
                    if member not in self._orders and member != name:
                        await self._load_member(member)
                await self._apply(order, must_be_whole=True)
        finally:
            await self._keep(name, given)

    async def _keep(self, name: str, given: Path | None) -> None:
        """Keep the temporary directory that a model's order names, if it does; remove the others."""
        ordered = self._orders[name].directory if name in self._orders else None
        before = self._temporary.pop(name, None)
        if ordered is not None and ordered in (given, before):
            self._temporary[name] = ordered
        for each in {given, before} - {ordered}:
            await remove_given(each)

    async def _load_member(self, name: str) -> None:
        """Load a model that an ensemble needs. One that is an ensemble itself has to be loaded by name.

        (So that no two loads can wait for each other.)
        """
        directory = self._directory(name, must_exist=True)
        rollout = await self._rollout_in(name, directory)
        order = Order(name, directory, None, rollout)
        if await asyncio.to_thread(_members, order):
            return
        async with self._locks[name]:
            if name not in self._orders:
                await self._apply(order, must_be_whole=True)

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Withdraw a model; what it has taken it answers. Nothing happens if it isn't loaded.

        With ``dependents`` the models of an ensemble's steps go with it.

        Raises:
            ControlDisabled: the mode isn't explicit.
        """
        check_mode(self.mode, "unload a model")
        members: list[str] = []
        if dependents and name in self._orders:
            members = await asyncio.to_thread(_members, self._orders[name])
        for each in dict.fromkeys([name, *members]):
            await self.withdraw(each)

    async def withdraw(self, name: str) -> None:
        """Withdraw a model, whatever the mode."""
        await self._whole(self._withdraw(name))

    async def _withdraw(self, name: str) -> None:
        if name not in self._orders and name not in self._locks:
            return
        async with self._locks[name]:
            if self._orders.pop(name, None) is None:
                return
            self._unwritten.discard(name)
            await self._fleet.unload(name)
            await remove_given(self._temporary.pop(name, None))
            _log.info("model withdrawn", model=name)

    async def refresh(self, name: str, directory: Path) -> None:
        """Serve what a model's directory holds now. A version that fails is logged, and is no error."""
        async with self._locks[name]:
            rollout = await self._rollout_in(name, directory)
            await self._apply(Order(name, directory, None, rollout))

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """Return the versions' counts; see ``Fleet``."""
        return await self._fleet.statistics(name, version)

    async def index(self) -> dict[str, list[VersionState]]:
        """Return every model of the repository, and how its versions are; none, if it isn't loaded."""
        names: list[str] = []
        with contextlib.suppress(ConfigurationError):
            directories = await asyncio.to_thread(model_directories, self._settings.root, True)
            names = [each.name for each in directories]
        states: dict[str, list[VersionState]] = {name: [] for name in names}
        states |= {name: list(lines) for name, lines in (await self._fleet.states()).items()}
        return dict(sorted(states.items()))

    # -- rollouts -------------------------------------------------------------------------------

    async def ready_versions(self, name: str) -> list[int]:
        """Return the versions of a model that are ready, in every process."""
        lines = (await self._fleet.states()).get(name, ())
        return [line.version for line in lines if line.state == "READY"]

    async def change_rollout(self, name: str, change: Change) -> Rollout:
        """Change a model's rollout: load what it needs, write it down, put it in force.

        Raises:
            ControlDisabled: the mode is none.
            NotFound: no such model, or a version that isn't there.
            InvalidRequest: the change can't be made.
            ModelLoadError: a version that it needs can't be served; nothing has changed.
            Unavailable: the state can't be written; nothing has changed.
        """
        check_mode(self.mode, "change a rollout")
        self._order(name)
        return await self._whole(self._change_rollout(name, change))

    async def _change_rollout(self, name: str, change: Change) -> Rollout:
        async with self._locks[name]:
            order = self._order(name)
            store = RolloutStore(order.directory)
            await self._write_held(name)
            # Asked of what the file holds, which a command may have changed since.
            wanted = change(await asyncio.to_thread(store.read))
            return await self._roll(order, wanted, store, change)

    async def _roll(self, order: Order, wanted: Rollout, store: RolloutStore, change: Change) -> Rollout:
        entry = await asyncio.to_thread(read_order, replace(order, rollout=wanted))
        changes.check_versions(wanted, entry.available)
        new = _newly_asked(order.rollout, wanted)
        prepared = await self._fleet.prepare(replace(order, rollout=wanted))
        try:
            failed = sorted(new.difference(prepared.ready))
            if failed:
                why = prepared.failures.get(failed[0]) or prepared.failures.get(0, "it isn't ready")
                raise ModelLoadError(f"model {order.name!r}: version {failed[0]} can't be served: {why}")
            written = await asyncio.to_thread(store.update, change)
        except BaseException:
            await self._fleet.abandon(prepared.ticket)
            raise
        await self._commit(prepared, replace(order, rollout=written))
        self.on_rollout(order.name)
        _log.info("rollout changed", model=order.name, what=_last_event(written))
        return written

    async def rollback(self, name: str, change: Change) -> Rollout:
        """Make a change that takes requests back to a version before: at once, if that is loaded.

        Raises:
            TensorferryError: as ``change_rollout``.
        """
        check_mode(self.mode, "change a rollout")
        return await self._whole(self._roll_back(name, change))

    async def _roll_back(self, name: str, change: Change) -> Rollout:
        wanted = change(self._order(name).rollout)
        if {version for version, _ in wanted.arms} <= set(await self.ready_versions(name)):
            writing = await self.divert_now(name, change)
            self.rollbacks.add(name, ASKED)
            return await writing
        changed = await self._change_rollout(name, change)
        self.rollbacks.add(name, ASKED)
        return changed

    async def divert(self, name: str, change: Change) -> Rollout:
        """Make a change as ``divert_now`` does, and wait until it is written down."""
        return await (await self.divert_now(name, change))

    async def divert_now(self, name: str, change: Change) -> asyncio.Task[Rollout]:
        """Change who answers among versions that are loaded: at once, and only then written down.

        For a rollback and a canary's next step: neither waits for a load that is under way. A kill in
        between leaves the state before, in which a guard that broke breaks again. Where the state can't
        be written it holds until the next start. Returns what writes it.

        Raises:
            NotFound: no such model.
            InvalidRequest: the change can't be made.
        """
        order = self._order(name)
        changed = change(order.rollout)
        self._orders[name] = replace(order, rollout=changed)
        self._diverting.setdefault(name, []).append(change)
        try:
            await self._fleet.set_rollout(name, changed)
        except BaseException:
            # Never in force: it mustn't be made of what is put in force later.
            self._diverting[name].remove(change)
            if self._orders.get(name, order).rollout is changed:
                self._orders[name] = order
            raise
        was_running, is_running = order.rollout.running, changed.running
        is_back = was_running is not None and is_running is None and changed.stable == order.rollout.stable
        log = _log.warning if is_back else _log.info
        log("rollout changed", model=name, what=_last_event(changed))
        self.on_rollout(name)
        return self._start(self._write_diverted(name, change))

    async def _write_diverted(self, name: str, change: Change) -> Rollout:
        async with self._locks[name]:
            self._diverting[name].remove(change)
            order = self._order(name)
            try:
                if name in self._unwritten:
                    await self._write_held(name)  # what holds has this change in it
                    written = await asyncio.to_thread(read_rollout, order.directory)
                else:
                    written = await asyncio.to_thread(RolloutStore(order.directory).update, change)
            except InvalidRequest:
                # A change that was under way meanwhile has made this one void; the file has its outcome.
                written = await asyncio.to_thread(read_rollout, order.directory)
            except (Unavailable, ConfigurationError) as error:
                _log.error("rollout holds until the next start only", model=name, reason=str(error))
                self._unwritten.add(name)
                written = order.rollout
            await self._apply(replace(self._order(name), rollout=written))
        return written


def _newly_asked(before: Rollout, after: Rollout) -> frozenset[int]:
    """Return the versions that ``after`` names and ``before`` didn't, or that begin to answer."""
    begin = {version for version, _ in after.arms} - {version for version, _ in before.arms}
    return (after.needed - before.needed) | begin


def _members(order: Order) -> list[str]:
    """Return the models of an ensemble's steps; none for a model. Reads the repository."""
    steps = [step for spec in read_order(order).versions for step in spec.steps]
    return list(dict.fromkeys(step.model for step in steps))


async def _check_config(name: str, config: str | None, directory: Path) -> None:
    """Raise InvalidRequest if a configuration that came with a request can't be read: the caller's fault."""
    if config is not None:
        try:
            await asyncio.to_thread(override_source, name, config, directory)
        except ConfigurationError as error:
            raise InvalidRequest(str(error)) from None


def _first_order(directory: Path) -> Order:
    """Return a model's order. One whose state can't be read is refused: any version might be wrong."""
    try:
        return Order(directory.name, directory, None, read_rollout(directory))
    except ConfigurationError as error:
        return Order(directory.name, directory, fault=str(error))


def _last_event(rollout: Rollout) -> str:
    return rollout.history[-1].what if rollout.history else ""
