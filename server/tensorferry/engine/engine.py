"""The server without a network. Everything above speaks to models through it.

All methods are called on the loop thread. Used in-process as well: ``await engine.infer(...)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import structlog

from tensorferry.batching.batcher import Admission
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.clock import LoopClock
from tensorferry.engine.live import LiveModel, ModelState
from tensorferry.engine.response_cache import DEFAULT_RESPONSE_CACHE_BYTES, CacheSize, ResponseCache
from tensorferry.errors import Draining, InvalidRequest, ModelNotReady, NotFound
from tensorferry.model import Bound
from tensorferry.repository import RepositoryModel
from tensorferry.tensors import Buffer, Tensor

__all__ = ["Engine"]

_log = structlog.get_logger("tensorferry.engine")


class Engine:
    """Name -> live versions, and the way to them.

    ``max_queue_size`` bounds the requests that wait for a model whose configuration states no
    bound of its own; ``max_inflight_bytes`` the tensor bytes of all requests together. The models
    share ``cores``; 0 means all that this process may run on. ``response_cache_bytes`` bounds the answers
    that are kept for the models that want it; 0 keeps none.
    """

    def __init__(
        self,
        max_queue_size: int,
        max_inflight_bytes: int,
        cores: int = 0,
        response_cache_bytes: int = DEFAULT_RESPONSE_CACHE_BYTES,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = LoopClock()
        self._max_queue_size = max_queue_size
        self._cores = cores
        self._admission = Admission(max_inflight_bytes)
        self._cache = ResponseCache(response_cache_bytes)
        self._entries: dict[str, RepositoryModel] = {}
        self._versions: dict[str, dict[int, LiveModel]] = {}
        # (name, version as written in the request) -> ready version: one look-up per request.
        self._routes: dict[tuple[str, str], LiveModel] = {}
        self._draining = False
        #: Changes whenever ``resolve`` may answer otherwise than before.
        self.generation = 0

    # -- life -----------------------------------------------------------------------------------

    async def load_all(self, entries: Sequence[RepositoryModel]) -> None:
        """Load every version of every entry, at the same time. A failure is that version's alone."""
        loading: list[LiveModel] = []
        for entry in entries:
            self._entries[entry.name] = entry
            self._versions[entry.name] = {spec.version: LiveModel(spec) for spec in entry.versions}
            if entry.error is not None:
                _log.error("model refused", model=entry.name, reason=str(entry.error))
            loading += self._versions[entry.name].values()
        await asyncio.gather(*(self._load(live) for live in loading))

    async def _load(self, live: LiveModel) -> None:
        await live.load(self._clock, self._admission, self._max_queue_size, self._cores, self._cache)
        self._update_routes()

    def start_draining(self) -> None:
        """Refuse new requests from now on. What waits or runs is served."""
        self._draining = True
        self._routes.clear()
        self.generation += 1

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await asyncio.gather(*(live.wait_idle() for live in self._all()))

    async def close(self) -> None:
        """Unload everything. Requests still in flight end with an error or their answer."""
        self.start_draining()
        await asyncio.gather(*(live.unload() for live in self._all()))
        self._clock.close()

    def now(self) -> float:
        """Return the present instant in seconds, on the scale of deadlines."""
        return self._clock.now()

    # -- requests -------------------------------------------------------------------------------

    def resolve(self, name: str, version: str) -> LiveModel:
        """Find the version that a request means; "" means the highest that is ready.

        Raises:
            InvalidRequest: ``version`` is not an integer > 0.
            NotFound: no such model or version.
            ModelNotReady: it isn't ready; the message says why.
            Draining: the server is stopping.
        """
        live = self._routes.get((name, version))
        return live if live is not None else self._resolve_slowly(name, version)

    def submit(
        self,
        live: LiveModel,
        tensors: Sequence[Tensor],
        on_done: Callable[[Pending], None],
        deadline: float = NEVER,
    ) -> Pending:
        """Queue a request for ``live``. ``on_done`` is called once, on a later tick of the loop.

        ``deadline`` is an instant of ``now``'s scale in seconds; the model's own default
        timeout holds where it is nearer.

        Raises:
            InvalidRequest: the tensors aren't what the model takes.
            QueueFull, PredictedLate, DeadlineExceeded, ModelNotReady, Draining: not taken, and not run.
        """
        bound = live.spec.bind(tensors)
        return self.submit_bound(live, bound, [tensor.data for tensor in bound.tensors], on_done, deadline)

    def submit_bound(
        self,
        live: LiveModel,
        bound: Bound,
        parts: Sequence[Buffer],
        on_done: Callable[[Pending], None],
        deadline: float = NEVER,
        timeout_s: float = 0.0,
        priority: int = 0,
    ) -> Pending:
        """Queue a request that has been checked: ``parts`` hold the data of what ``bound`` describes.

        ``timeout_s`` and ``priority`` are the request's own, as ``Pending`` has them.

        Raises:
            InvalidRequest: the model doesn't have that priority.
            QueueFull, PredictedLate, DeadlineExceeded, ModelNotReady, Draining: not taken, and not run.
        """
        if self._draining:
            raise Draining("the server is shutting down")
        request = Pending(bound, on_done, deadline, parts, timeout_s, priority)
        (live.intake or live.check_ready()).submit(request)
        return request

    async def infer(
        self, name: str, tensors: Sequence[Tensor], version: str = "", timeout_s: float | None = None
    ) -> Sequence[Tensor]:
        """Run one request and wait for its outputs: the engine's in-process front door.

        Raises:
            TensorferryError: as ``resolve`` and ``submit``, and what became of the run.
        """
        live = self.resolve(name, version)
        future: asyncio.Future[Sequence[Tensor]] = self._loop.create_future()

        def settle(request: Pending) -> None:
            if future.done():
                return
            if request.error is not None:
                future.set_exception(request.error)
            else:
                future.set_result(request.outputs)

        deadline = NEVER if timeout_s is None else self._clock.now() + timeout_s
        request = self.submit(live, tensors, settle, deadline)
        try:
            return await future
        except asyncio.CancelledError:
            live.cancel(request)
            raise

    # -- how things are -------------------------------------------------------------------------

    @property
    def models(self) -> Mapping[str, Mapping[int, LiveModel]]:
        """Every model that should be served, by name and version."""
        return MappingProxyType(self._versions)

    def entry(self, name: str) -> RepositoryModel:
        """Return what the repository says of a model.

        Raises:
            NotFound: it says nothing.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"no model {name!r}; the repository has {sorted(self._entries)}")
        return entry

    @property
    def is_ready(self) -> bool:
        """Whether every model that should be served is ready, and the server isn't draining."""
        return not self._draining and not self.unready()

    def unready(self) -> dict[str, str]:
        """Say for every model or version that isn't ready (``name`` or ``name/version``) why."""
        reasons = {name: str(entry.error) for name, entry in self._entries.items() if entry.error}
        for live in self._all():
            if live.state is not ModelState.READY:
                reasons[f"{live.spec.name}/{live.spec.version}"] = live.reason or live.state.value
        return reasons

    @property
    def in_flight(self) -> int:
        """Requests that wait or run, of all models."""
        return sum(live.in_flight for live in self._all())

    @property
    def in_flight_bytes(self) -> int:
        """Tensor bytes of the requests in flight."""
        return self._admission.byte_size

    @property
    def cache_size(self) -> CacheSize:
        """How full the response cache is."""
        return self._cache.size()

    def _all(self) -> list[LiveModel]:
        return [live for versions in self._versions.values() for live in versions.values()]

    def _update_routes(self) -> None:
        if self._draining:
            return
        routes: dict[tuple[str, str], LiveModel] = {}
        for name, versions in self._versions.items():
            for number in sorted(versions):
                if versions[number].state is ModelState.READY:
                    routes[name, str(number)] = routes[name, ""] = versions[number]
        self._routes = routes
        self.generation += 1

    def _resolve_slowly(self, name: str, version: str) -> LiveModel:
        if self._draining:
            raise Draining("the server is shutting down")
        entry = self.entry(name)
        versions = self._versions[name]
        if version:
            number = _version_number(name, version)
            if entry.error is not None:
                raise ModelNotReady(f"model {name!r} can't be served: {entry.error}")
            live = versions.get(number)
            if live is None:
                raise NotFound(f"model {name!r} has no version {number} here; served are {sorted(versions)}")
            live.check_ready()
            return live
        if entry.error is not None:
            raise ModelNotReady(f"model {name!r} can't be served: {entry.error}")
        ready = [number for number in versions if versions[number].state is ModelState.READY]
        if ready:
            return versions[max(ready)]
        live = versions[max(versions)]
        live.check_ready()  # raises: none is ready
        return live


def _version_number(name: str, version: str) -> int:
    number = int(version) if version.isascii() and version.isdigit() and len(version) < 20 else 0
    if number <= 0:
        raise InvalidRequest(f"model {name!r}: version {version!r} is not an integer > 0")
    return number
