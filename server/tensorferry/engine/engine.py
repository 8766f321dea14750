"""The server without a network. Everything above speaks to models through it.

All methods are called on the loop thread. Used in-process as well: ``await engine.infer(...)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tensorferry.batching.batcher import Admission
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.clock import LoopClock
from tensorferry.engine.catalog import Catalog
from tensorferry.engine.live import LiveModel, Means
from tensorferry.engine.live_ensemble import LiveEnsemble
from tensorferry.engine.response_cache import DEFAULT_RESPONSE_CACHE_BYTES, CacheSize, ResponseCache
from tensorferry.errors import Draining
from tensorferry.model import Bound
from tensorferry.tensors import Buffer, Tensor

__all__ = ["Engine"]


class Engine(Catalog):
    """A catalog that takes requests.

    ``max_queue_size`` bounds the requests that wait for a model whose configuration states no
    bound of its own; ``max_inflight_bytes`` the tensor bytes of all requests together. The models
    share ``cores``; 0 means all that this process may run on. ``response_cache_bytes`` bounds the answers
    that are kept for the models that want it; 0 keeps none. A load must leave
    ``memory_reserve_bytes`` free. Without ``has_histograms`` durations are summed up only. The server has
    ``processes`` of which this is one: with several, models on GPUs are refused.
    """

    def __init__(
        self,
        max_queue_size: int,
        max_inflight_bytes: int,
        cores: int = 0,
        response_cache_bytes: int = DEFAULT_RESPONSE_CACHE_BYTES,
        memory_reserve_bytes: int = 0,
        has_histograms: bool = True,
        processes: int = 1,
    ) -> None:
        self._clock = LoopClock()
        self._admission = Admission(max_inflight_bytes)
        self._cache = ResponseCache(response_cache_bytes)
        means = Means(
            self._clock,
            self._admission,
            max_queue_size,
            cores,
            self._cache,
            memory_reserve_bytes,
            has_histograms,
            processes=processes,
        )
        super().__init__(means, self._clock)

    # -- life -----------------------------------------------------------------------------------

    def start_draining(self) -> None:
        """Refuse new requests from now on. What waits or runs is served."""
        self._draining = True
        self._routes = {}  # not cleared: ensembles' steps go on by the same table
        self.generation += 1

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await asyncio.gather(*(live.wait_idle() for live in [*self._all(), *self._retiring]))

    async def close(self) -> None:
        """Unload everything. Requests still in flight end with an error or their answer."""
        self.start_draining()
        for retiring in self._retiring.values():
            retiring.cancel()
        every = [*self._all(), *self._retiring]
        # Ensembles first: what they have under way needs the others.
        await asyncio.gather(*(live.unload() for live in every if isinstance(live, LiveEnsemble)))
        await asyncio.gather(*(live.unload() for live in every))
        self._clock.close()

    def now(self) -> float:
        """Return the present instant in seconds, on the scale of deadlines."""
        return self._clock.now()

    # -- requests -------------------------------------------------------------------------------

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
        split_key: bytes = b"",
    ) -> Pending:
        """Queue a request that has been checked: ``parts`` hold the data of what ``bound`` describes.

        ``timeout_s``, ``priority`` and ``split_key`` are the request's own, as ``Pending`` has them.

        Raises:
            InvalidRequest: the model doesn't have that priority.
            QueueFull, PredictedLate, DeadlineExceeded, ModelNotReady, Draining: not taken, and not run.
        """
        if self._draining:
            raise Draining("the server is shutting down")
        request = Pending(bound, on_done, deadline, parts, timeout_s, priority)
        request.split_key = split_key
        (live.intake or live.check_ready()).submit(request)
        return request

    async def infer(
        self,
        name: str,
        tensors: Sequence[Tensor],
        version: str = "",
        timeout_s: float | None = None,
        split_key: bytes = b"",
    ) -> Sequence[Tensor]:
        """Run one request and wait for its outputs: the engine's in-process front door.

        Where the model's requests are divided, ``split_key`` says whose this one is.

        Raises:
            TensorferryError: as ``resolve`` and ``submit``, and what became of the run.
        """
        live = self.route(name, version).choose(split_key)
        future: asyncio.Future[Sequence[Tensor]] = self._loop.create_future()

        def settle(request: Pending) -> None:
            if future.done():
                return
            if request.error is not None:
                future.set_exception(request.error)
            else:
                future.set_result(request.outputs)

        deadline = NEVER if timeout_s is None else self._clock.now() + timeout_s
        bound = live.spec.bind(tensors)
        parts = [tensor.data for tensor in bound.tensors]
        request = self.submit_bound(live, bound, parts, settle, deadline, split_key=split_key)
        try:
            return await future
        except asyncio.CancelledError:
            live.cancel(request)
            raise

    # -- how things are -------------------------------------------------------------------------

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
