"""The composition root: the only place where concrete classes meet.

Start: engine, transport and HTTP port listen first (callers get UNAVAILABLE, probes 503), then
the models load, and then what is served may change (``control``). Stop: health says NOT_SERVING, new
requests are refused, accepted ones finish, then the models are freed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import structlog

from tensorferry import logs
from tensorferry.clock import LoopClock
from tensorferry.config import ServerConfig
from tensorferry.control.access import Control
from tensorferry.control.desk import ControlDesk, LocalDesk
from tensorferry.control.orders import Order, read_order
from tensorferry.engine import Engine
from tensorferry.errors import ConfigurationError
from tensorferry.http_port import NO_MONITORING, HttpPort
from tensorferry.monitoring.collect_engine import EngineCollector
from tensorferry.monitoring.collect_server import Outside, ServerCollector
from tensorferry.monitoring.feed import Feed
from tensorferry.monitoring.loop_lag import LoopLag
from tensorferry.monitoring.sources import ProcessSource
from tensorferry.service.builtin import HealthService, reflection_methods
from tensorferry.service.failures import Failures
from tensorferry.service.inference import SERVICE, InferenceService
from tensorferry.service.methods import MethodTable
from tensorferry.service.repository import ROLLOUT_SERVICE, RepositoryService
from tensorferry.service.settings import SettingsService
from tensorferry.service.shared_memory import Regions
from tensorferry.service.shared_memory_calls import GROUP, SharedMemoryService
from tensorferry.signals import StopSignals
from tensorferry.tracing import Tracer, Untraced, open_tracer
from tensorferry.transport import Transport, choose
from tensorferry.transport.listening import address_of

__all__ = ["Server", "run", "running", "serve"]

_log = structlog.get_logger("tensorferry.app")

#: Threads that want the GIL back wait at most this long for a busy loop. Python's 5 ms would be
#: most of a small model's latency; much less makes the loop give it up in the middle of its work.
_SWITCH_INTERVAL_S: Final = 0.0005

#: How long replies that are computed may take to leave, once nothing else is in flight.
_LINGER_S: Final = 2.0

#: How long models may take to be freed after the drain.
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its engine, and where it listens.

    ``grpc_address`` is ``host:port`` or ``unix:/path``, which has 0 for ``grpc_port``.
    """

    engine: Engine
    transport: str
    grpc_address: str
    grpc_port: int
    http_port: int


@asynccontextmanager
async def running(config: ServerConfig, desk: ControlDesk | None = None) -> AsyncIterator[Server]:
    """Run a server around a block: listening and loaded at its start, drained and freed at its end.

    ``desk`` is where it hears what to serve; its own where it is the only process.

    Raises:
        ConfigurationError: the repository isn't one, or a port can't be had. A model that
            doesn't load is no error here: the others serve, and it is named in readiness.
    """
    desk = desk or LocalDesk(config)
    orders = await desk.open()
    engine = Engine(
        config.max_queue_size,
        config.max_inflight_bytes,
        _cores(config.processes),
        config.response_cache_bytes,
        config.memory_reserve_bytes,
        config.monitoring == "on",
        config.processes,
    )
    health = HealthService(engine)
    engine.on_lost = health.follow
    transport = choose(config, reuse_port=config.processes > 1)
    async with _observing(config, engine, transport, desk) as observed:
        regions = Regions(config.shared_memory == "on", config.max_inflight_bytes)
        control = desk.connect(engine, health.follow, {**observed.adjustables, GROUP: regions})
        methods = _methods(engine, observed, health, control, regions)
        # Before anybody can ask: its first step makes the models known as LOADING. A caller that came
        # earlier would hear that there is no such model, and a probe that all is ready.
        loading = asyncio.create_task(_load(engine, orders))
        await asyncio.sleep(0)
        try:
            await health.update()
            http_port = await observed.port.start(config.http_host, config.http_port)
            # One of several processes takes no calls before it can answer them: the kernel would send
            # it a share of the connections, while the other processes are well able to serve them.
            if config.processes > 1:
                await loading
            grpc_port = await transport.start(methods, config.host, config.grpc_port)
            address = config.host if config.unix_path else address_of(config.host, grpc_port)
            print(f"grpc listening on {address} ({transport.name}{_security(config)})", flush=True)
            print(f"http listening on {address_of(config.http_host, http_port)}", flush=True)
            await loading
            await desk.start()
            await health.update()
            await observed.port.warm_up()
            _freeze()
            observed.start()
            yield Server(engine, transport.name, address, grpc_port, http_port)
        finally:
            await desk.close()
            loading.cancel()
            await _drain(engine, health, transport, config.drain_timeout_s)


@asynccontextmanager
async def _observing(
    config: ServerConfig, engine: Engine, transport: Transport, desk: ControlDesk
) -> AsyncIterator[_Observed]:
    """Make what observes the server; in the end close it, and send the last traces."""
    async with AsyncExitStack() as closing:
        tracer = open_tracer(config)
        if tracer is not None:
            closing.push_async_callback(tracer.close)
        observed = _Observed(config, engine, transport, desk, tracer)
        closing.push_async_callback(observed.close)
        yield observed


class _Observed:
    """What the server tells of itself, be it traces, counts or logs, and the port where it does."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        transport: Transport,
        desk: ControlDesk,
        tracer: Tracer | None,
    ) -> None:
        self.tracer = tracer
        self.failures = Failures()
        #: What may be changed while the server runs.
        self.adjustables = {"log": logs.adjustable(), "trace": self.tracer or Untraced()}
        self._clock = LoopClock()
        self._engine = engine
        is_on = config.monitoring == "on"
        self._lag = LoopLag(self._clock) if is_on else None
        outside = self._outside(desk)
        server = ServerCollector(transport, lambda: engine.is_ready, self._lag, outside)
        source = ProcessSource(EngineCollector(engine), server)
        feed: Feed | str = NO_MONITORING
        if config.processes > 1:
            feed = "this is one of several server processes; their parent's HTTP port has the page"
        elif is_on:
            feed = Feed(source, self._clock, engine.unready)
        self.port = HttpPort(
            source, self._readiness, engine.unready, self._clock, feed, lambda: engine.why_dead
        )

    def start(self) -> None:
        """Measure how late the loop is from now on, when all is loaded: that may hold it up."""
        if self._lag is not None:
            self._lag.start()

    async def close(self) -> None:
        """Close the port, and stop the timers."""
        await self.port.stop()
        if self._lag is not None:
            self._lag.stop()
        self._clock.close()

    def _outside(self, desk: ControlDesk) -> Outside:
        counts, tracer = self.failures.counts, self.tracer
        outside = Outside(lambda: counts, log_lines_dropped=logs.dropped, rollbacks=desk.rollbacks)
        return outside if tracer is None else replace(outside, traces=tracer.counts)

    async def _readiness(self) -> tuple[bool, Mapping[str, str]]:
        return self._engine.is_ready, self._engine.unready()


def _security(config: ServerConfig) -> str:
    if not config.tls_certificate:
        return ""
    return ", mutual TLS" if config.tls_client_ca else ", TLS"


def _cores(processes: int) -> int:
    """Return the cores that each of several processes on this machine may count as its own."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


async def _load(engine: Engine, orders: Sequence[Order]) -> None:
    entries = [read_order(order) for order in orders]
    await engine.load_all(entries, {order.name: order.rollout for order in orders})


def _methods(
    engine: Engine, observed: _Observed, health: HealthService, control: Control, regions: Regions
) -> MethodTable:
    return {
        **InferenceService(engine, observed.tracer, observed.failures, control, regions).methods(),
        **health.methods(),
        **RepositoryService(control).methods(),
        **SettingsService(control, engine).methods(),
        **SharedMemoryService(control).methods(),
        **reflection_methods([SERVICE, ROLLOUT_SERVICE, "grpc.health.v1.Health"]),
    }


async def _drain(engine: Engine, health: HealthService, transport: Transport, grace_s: float) -> None:
    await health.shut_down()
    engine.start_draining()
    stopping = asyncio.create_task(transport.stop(grace_s))
    idle = asyncio.create_task(engine.wait_idle())
    await asyncio.wait((stopping, idle), return_when=asyncio.FIRST_COMPLETED)
    # All is computed, or time is up. What is open now are replies on their way, and streams whose
    # callers are silent (health's watchers, idle inference streams), for which nobody need wait.
    await transport.stop(min(grace_s, _LINGER_S))
    await stopping
    idle.cancel()
    try:
        async with asyncio.timeout(_CLOSE_S):
            await engine.close()
    except TimeoutError:
        _log.warning("a model still runs and is left behind", in_flight=engine.in_flight)


def _freeze() -> None:
    """Take what start-up has built out of the garbage collector's sight: it lives as long as we do."""
    gc.collect()
    gc.freeze()


def run(config: ServerConfig, desk: ControlDesk | None = None) -> int:
    """Serve on an event loop of its own, as ``serve`` does; return the process's exit status.

    It is 0, or 2 for a fault in the configuration, which is written to standard error.
    """
    import uvloop

    status = 0
    try:
        uvloop.run(serve(config, desk))
    except ConfigurationError as error:
        print(f"tensorferry: {error}", file=sys.stderr)
        status = 2
    if any("#" in thread.name for thread in threading.enumerate()):
        # A worker stream (model/version#number) is stuck in its model or still loads it. The
        # interpreter's own way out would abort the process under such a thread.
        sys.stdout.flush()
        sys.stderr.flush()
        logs.flush()
        os._exit(status)
    return status


async def serve(config: ServerConfig, desk: ControlDesk | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal exits at once.

    Raises:
        ConfigurationError: as ``running``.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loaded = asyncio.Event()
    serving = asyncio.create_task(_serve(config, desk, loaded, stop))

    signals = StopSignals()

    def on_signal(number: signal.Signals) -> None:
        is_second = signals.is_second()
        if is_second is None:
            return
        if is_second:
            _log.warning("second signal: exiting without draining", signal=number.name)
            logs.flush()
            os._exit(1)
        _log.info("draining", signal=number.name, timeout_s=config.drain_timeout_s)
        stop.set()
        if not loaded.is_set():
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await serving
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    _log.info("stopped")


async def _serve(
    config: ServerConfig, desk: ControlDesk | None, loaded: asyncio.Event, stop: asyncio.Event
) -> None:
    async with running(config, desk) as server:
        loaded.set()
        _announce(server)
        await stop.wait()


def _announce(server: Server) -> None:
    for name, reason in server.engine.unready().items():
        _log.error("not served", model=name, reason=reason)
    print(
        "ready" if server.engine.is_ready else "ready, except " + ", ".join(server.engine.unready()),
        flush=True,
    )
