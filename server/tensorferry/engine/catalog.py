"""What is served: models by name and version, how it changes, and who answers which requests.

All methods are called on the loop thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import structlog

from tensorferry.clock import Clock
from tensorferry.engine.ensemble_members import MAX_DEPTH, members_first
from tensorferry.engine.live import LiveModel, Means, ModelState
from tensorferry.engine.live_ensemble import LiveEnsemble, live_model
from tensorferry.engine.rollouts import Rollouts
from tensorferry.engine.routing import Route, Routes, Splits, routes_of
from tensorferry.engine.transition import Transition, wanted_specs
from tensorferry.errors import Draining, InvalidRequest, ModelNotReady, NotFound
from tensorferry.model import ModelSpec
from tensorferry.repository import RepositoryModel
from tensorferry.rollout.state import EMPTY, Rollout

__all__ = ["Catalog"]

_log = structlog.get_logger("tensorferry.engine")

#: How long a version that was replaced may take to answer what it had taken.
DRAIN_S: Final = 30.0


class Catalog:
    """Name -> live versions, and the routes to them.

    A change is prepared beside what serves and then committed in one step; the versions that it
    replaces answer what they have taken, and are freed.
    """

    def __init__(self, means: Means, clock: Clock) -> None:
        self._loop = asyncio.get_running_loop()
        self._means = replace(means, resolve=self._resolve_member, on_lost=self._lost)
        self._entries: dict[str, RepositoryModel] = {}
        self._versions: dict[str, dict[int, LiveModel]] = {}
        # What readiness asks for: there at the start and not withdrawn since. A model that is pushed
        # later and fails to load doesn't take the server out of its balancer.
        self._required: set[str] = set()
        self._preparing: dict[str, Transition] = {}
        self._retiring: dict[LiveModel, asyncio.Task[None]] = {}
        self._rollouts: dict[str, Rollout] = {}
        self._observers = Rollouts(clock)
        self._splits = Splits()
        self._routes: Routes = {}
        # The same, and those of ensembles' steps: they go on while the server drains.
        self._inner_routes: Routes = {}
        self._draining = False
        #: Changes whenever ``route`` may answer otherwise than before.
        self.generation = 0
        #: (model, version) -> loads that succeeded, and that failed.
        self.loads: Counter[tuple[str, int]] = Counter()
        self.load_failures: Counter[tuple[str, int]] = Counter()
        #: Why this process can't do its work any more, for good: a GPU was lost. "" while it can.
        self.why_dead = ""
        #: Called when readiness and liveness have changed by themselves: a version has lost its GPU.
        self.on_lost: Callable[[], None] | None = None

    # -- changes ---------------------------------------------------------------------------------

    async def load_all(
        self, entries: Sequence[RepositoryModel], rollouts: Mapping[str, Rollout] = MappingProxyType({})
    ) -> None:
        """Load every version of every entry, at the same time. A failure is that version's alone."""
        loading: list[LiveModel] = []
        for entry in entries:
            if entry.name in self._entries:
                continue  # a change has come before: this process has joined a server that runs
            rollout = self._rollouts[entry.name] = rollouts.get(entry.name, EMPTY)
            self._entries[entry.name] = entry
            self._required.add(entry.name)
            versions = {spec.version: live_model(spec) for spec in wanted_specs(entry, rollout)}
            loading += versions.values()
            self._versions[entry.name] = versions | self._faulty(entry)
            if entry.error is not None:
                _log.error("model refused", model=entry.name, reason=str(entry.error))
        ensembles = [live for live in loading if isinstance(live, LiveEnsemble)]
        await asyncio.gather(*(self._load_first(live) for live in loading if live not in ensembles))
        for spec in members_first([live.spec for live in ensembles]):
            await asyncio.gather(*(self._load_first(live) for live in ensembles if live.spec == spec))

    async def _load_first(self, live: LiveModel) -> None:
        await live.load(self._means)
        self._count(live)
        if self._versions.get(live.asked.name, {}).get(live.asked.version) is live:
            self._update_routes()
        else:
            self._retire(live)  # withdrawn, or replaced, while it was still loading

    async def prepare(self, entry: RepositoryModel, rollout: Rollout) -> Transition:
        """Load what ``entry`` and ``rollout`` ask for and isn't there, beside what serves.

        Nothing is in force until ``commit``; or ``abandon`` the transition. One at a time for each model.
        """
        transition = Transition(entry, rollout, self._versions.get(entry.name, {}))
        self._preparing[entry.name] = transition
        try:
            await transition.load(self._means)
        except BaseException:
            self._preparing.pop(entry.name, None)
            await transition.abandon()
            raise
        for live in transition.loaded.values():
            self._count(live)
        return transition

    def commit(self, transition: Transition, rejected: Mapping[int, str] = MappingProxyType({})) -> None:
        """Put a prepared transition in force: new requests go to the new versions from here on.

        What the old ones have taken they answer, and then they are freed. ``rejected`` versions
        (with the reason: another process couldn't load them) are treated as failed. While a version
        has failed, none that serves is withdrawn.
        """
        name = transition.name
        self._preparing.pop(name, None)
        before = self._versions.get(name, {})
        after = self._after(transition, rejected, before)
        serves = any(live.state is ModelState.READY for live in before.values())
        if transition.accepted(rejected) or not serves:
            self._entries[name] = transition.entry
        else:
            _log.error("change refused", model=name, reasons=transition.failures | dict(rejected))
        self._versions[name] = dict(sorted(after.items()))
        self._rollouts[name] = transition.rollout
        self._update_routes()
        kept = set(after.values())
        for live in [*before.values(), *transition.loaded.values()]:
            if live not in kept:
                self._retire(live)

    async def abandon(self, transition: Transition) -> None:
        """Free what a transition has loaded; everything stays as it was."""
        self._preparing.pop(transition.name, None)
        await transition.abandon()

    def set_rollout(self, name: str, rollout: Rollout) -> None:
        """Send requests where ``rollout`` says, among the versions that are there; from the next request on.

        Raises:
            NotFound: no such model.
        """
        self.entry(name)
        self._rollouts[name] = rollout
        self._update_routes()

    def unload(self, name: str) -> None:
        """Withdraw a model: new requests don't find it, those that are here are served.

        Raises:
            NotFound: no such model.
        """
        self.entry(name)
        versions = self._versions.pop(name)
        del self._entries[name]
        self._rollouts.pop(name, None)
        self._required.discard(name)
        self._observers.forget(name)
        self._update_routes()
        for live in versions.values():
            self._retire(live)

    async def wait_retired(self) -> None:
        """Wait until all versions that were withdrawn have been freed."""
        while self._retiring:
            await asyncio.wait(self._retiring.values())

    # -- routes --------------------------------------------------------------------------------

    def route(self, name: str, version: str = "", label: str = "") -> Route:
        """Find who answers requests that name this; "" is not named.

        Raises:
            InvalidRequest: ``version`` is not an integer > 0, or a label is given beside it.
            NotFound: no such model, version or label.
            ModelNotReady: it isn't ready; the message says why.
            Draining: the server is stopping.
        """
        route = self._routes.get((name, version, label))
        return route if route is not None else self._route_slowly(name, version, label)

    def resolve(self, name: str, version: str) -> LiveModel:
        """Find the version that is meant: the one named; else stable, or the highest that is ready.

        Raises:
            TensorferryError: as ``route``.
        """
        return self.route(name, version).live

    # -- how things are -------------------------------------------------------------------------

    @property
    def models(self) -> Mapping[str, Mapping[int, LiveModel]]:
        """Every model that should be served, by name and version; those that are still being prepared too."""
        if not self._preparing:
            return MappingProxyType(self._versions)
        merged = dict(self._versions)
        for name, transition in self._preparing.items():
            # One that is ready and not in force yet isn't ready to anybody who asks.
            loading = {n: live for n, live in transition.loaded.items() if live.state is not ModelState.READY}
            merged[name] = loading | self._versions.get(name, {})
        return merged

    @property
    def retiring(self) -> list[LiveModel]:
        """Versions that were withdrawn, and still answer what they have taken."""
        return list(self._retiring)

    def rollout(self, name: str) -> Rollout:
        """Return how a model's versions are rolled out."""
        return self._rollouts.get(name, EMPTY)

    def shares(self, name: str) -> dict[int, float]:
        """Return the part of a model's requests that each version gets which name neither it nor a label."""
        route = self._inner_routes.get((name, "", ""))
        return route.shares if route is not None else {}

    @property
    def observers(self) -> Rollouts:
        """What the rollouts' arms have answered."""
        return self._observers

    def entry(self, name: str) -> RepositoryModel:
        """Return what the repository says of a model.

        Raises:
            NotFound: it says nothing.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"no model {name!r}; the repository has {sorted(self._entries)}")
        return entry

    def fault(self, name: str) -> str:
        """Say why a model can't be served as a whole; "" if it can, or there is none."""
        entry = self._entries.get(name)
        return str(entry.error) if entry is not None and entry.error is not None else ""

    @property
    def is_ready(self) -> bool:
        """Whether all models that were there at the start are ready, no GPU is lost, and no drain began."""
        return not self._draining and not self.unready()

    def served(self) -> dict[str, bool]:
        """Say for every model whether all of its versions that readiness asks for are ready."""
        unready = {reason.partition("/")[0] for reason in self.unready()}
        return {
            name: name not in unready
            and any(live.state is ModelState.READY for live in self._versions.get(name, {}).values())
            for name in self.models
        }

    def unready(self) -> dict[str, str]:
        """Say for every model or version that was there at the start and isn't ready why.

        Also for one that came later and has lost its GPU: only a new process has that again.

        The keys are ``name`` or ``name/version``.
        """
        reasons: dict[str, str] = {}
        for name in self._required:
            error = self._entries[name].error
            if error is not None:
                reasons[name] = str(error)
            for live in self._versions[name].values():
                if live.state is not ModelState.READY and not live.is_newcomer:
                    reasons[f"{name}/{live.asked.version}"] = live.reason or live.state.value
        for live in self._all():
            if live.is_lost:
                reasons[f"{live.asked.name}/{live.asked.version}"] = live.reason or live.state.value
        return reasons

    def _all(self) -> list[LiveModel]:
        return [live for versions in self._versions.values() for live in versions.values()]

    def _count(self, live: LiveModel) -> None:
        counter = self.loads if live.state is ModelState.READY else self.load_failures
        counter[live.asked.name, live.asked.version] += 1

    def _faulty(self, entry: RepositoryModel) -> dict[int, LiveModel]:
        """Return stand-ins for the versions that are wrong in the repository, each with its reason."""
        faulty: dict[int, LiveModel] = {}
        for version, error in entry.faults.items():
            if not entry.versions:
                break  # the entry's own error says it
            live = faulty[version] = LiveModel(ModelSpec(entry.name, version, entry.directory / str(version)))
            live.fail(str(error))
            self._count(live)
        return faulty

    def _after(
        self, transition: Transition, rejected: Mapping[int, str], before: Mapping[int, LiveModel]
    ) -> dict[int, LiveModel]:
        """Return the versions after a transition: a failed one takes nobody's place."""
        after = dict(transition.kept)
        for live in after.values():
            live.reason = ""
        failed = self._faulty(transition.entry)
        for number, live in transition.loaded.items():
            if number in rejected or live.state is not ModelState.READY:
                failed[number] = live if live.state is not ModelState.READY else _refused(live, rejected)
            else:
                after[number] = live
        serving = {number: live for number, live in before.items() if live.state is ModelState.READY}
        if failed or transition.entry.error is not None:
            after = serving | after
        if transition.entry.error is not None:
            for live in after.values():
                live.reason = f"serves as before; the change was refused: {transition.entry.error}"
        for number, live in failed.items():
            if number in after:
                after[number].reason = f"serves as before; its new content was refused: {live.reason}"
            else:
                live.is_newcomer = bool(serving) or bool(transition.accepted(rejected))
                after[number] = live
        return after

    def _retire(self, live: LiveModel) -> None:
        if (live.state is not ModelState.READY and not live.is_lost) or live in self._retiring:
            return
        task = self._loop.create_task(live.unload(DRAIN_S))
        self._retiring[live] = task
        task.add_done_callback(lambda _: self._retiring.pop(live, None))

    def _lost(self, reason: str) -> None:
        # For good, though the version be unloaded: whatever is loaded onto that GPU later fails as well.
        self.why_dead = self.why_dead or reason
        self._update_routes()
        if self.on_lost is not None:
            self.on_lost()

    def _update_routes(self) -> None:
        if self._draining:
            return
        self._routes = self._inner_routes = self._make_routes()
        for _ in range(MAX_DEPTH):
            # An ensemble of ensembles comes and goes with those.
            ensembles = [live for live in self._all() if isinstance(live, LiveEnsemble)]
            has_changed = [live.refresh() for live in ensembles]
            if not any(has_changed):
                break
            self._routes = self._inner_routes = self._make_routes()
        for name, versions in self._versions.items():
            ready = {number: live for number, live in versions.items() if live.state is ModelState.READY}
            self._observers.apply(name, self.rollout(name), ready)
        self.generation += 1

    def _make_routes(self) -> Routes:
        routes: Routes = {}
        for name, versions in self._versions.items():
            routes |= routes_of(name, versions, self.rollout(name), self._splits)
        return routes

    def _resolve_member(self, name: str, version: str, key: bytes | None) -> LiveModel:
        """Find the model of an ensemble's step, for a request with this key; None: for none of them.

        Raises:
            TensorferryError: as ``route``.
        """
        route = self._inner_routes.get((name, version, "")) or self._route_slowly(name, version, "")
        return route.live if key is None else route.choose(key)

    def _route_slowly(self, name: str, version: str, label: str) -> Route:
        """Find a route that is written in another way (02 for 2), or find out why there is none.

        Raises:
            TensorferryError: as ``route``.
        """
        if self._draining:
            raise Draining("the server is shutting down")
        preparing = self._preparing.get(name)
        versions = (preparing.loaded if preparing is not None else {}) | self._versions.get(name, {})
        error = self._entries[name].error if name in self._entries else None
        if name not in self._entries and not versions:
            self.entry(name)  # raises
        if version and label:
            what = f"model {name!r}: the request names version {version!r} and label {label!r}"
            raise InvalidRequest(f"{what}; name one of them")
        if version:
            number = _version_number(name, version)
            if (name, str(number), "") in self._inner_routes:
                return self._inner_routes[name, str(number), ""]
        elif label:
            number = self.rollout(name).labels.get(label, 0)
            if not number:
                known = sorted(self.rollout(name).labels) or "none"
                raise NotFound(f"model {name!r} has no label {label!r}; there are {known}")
        else:
            number = self.rollout(name).stable or max(versions, default=0)
        if error is not None and number not in versions:
            raise ModelNotReady(f"model {name!r} can't be served: {error}")
        live = versions.get(number)
        if live is None:
            raise NotFound(f"model {name!r} has no version {number} here; served are {sorted(versions)}")
        live.check_ready()
        # Ready, and yet without a route: prepared, and not in force yet.
        raise ModelNotReady(f"model {name!r} version {number} is about to be served; try again")


def _refused(live: LiveModel, rejected: Mapping[int, str]) -> LiveModel:
    """Return a stand-in for a version that loaded here, and not in every process."""
    stand_in = LiveModel(live.asked)
    stand_in.fail(rejected[live.asked.version])
    return stand_in


def _version_number(name: str, version: str) -> int:
    number = int(version) if version.isascii() and version.isdigit() and len(version) < 20 else 0
    if number <= 0:
        raise InvalidRequest(f"model {name!r}: version {version!r} is not an integer > 0")
    return number
