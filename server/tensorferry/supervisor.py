"""``--processes N``: one parent that starts N whole servers on one port and keeps them going.

The kernel spreads connections over the processes' listening sockets (SO_REUSEPORT). The parent
holds the port without listening, so that ``--grpc-port 0`` means one port for all, loads no model,
and serves the HTTP port for all of them: ready when all are, metrics summed. It also decides what is
served (``control``) and tells them over a socket pair, so that all serve the same.

A worker that dies is started again, after a pause that doubles while it keeps dying. SIGTERM and
SIGINT drain all workers; a second signal kills them. A worker whose parent dies drains and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog

from tensorferry import logs
from tensorferry.config import ServerConfig
from tensorferry.control.access import handlers_of
from tensorferry.control.channel import Channel
from tensorferry.control.desk import Command
from tensorferry.control.processes import ProcessFleet
from tensorferry.errors import SettingsError
from tensorferry.fleet_port import FleetPort
from tensorferry.signals import StopSignals
from tensorferry.transport.listening import address_of, reason_of

__all__ = ["settings_of", "supervise"]

_log = structlog.get_logger("tensorferry.supervisor")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
#: A worker that served this long was well; its next death counts as the first.
_WELL_AFTER_S = 60.0
_CONFIGURATION_STATUS = 2
#: ``ready, except ...`` names models; asyncio's own limit of 64 KiB would end the reading.
_LONGEST_LINE_BYTES = 2**20


#: Connects a process's end of the control channel; returns what disconnects it.
Attach = Callable[[int, socket.socket], Awaitable[Callable[[], Awaitable[None]]]]


class _Worker:
    """One child process, started again whenever it ends before its time."""

    def __init__(
        self, number: int, config: ServerConfig, attach: Attach, on_death: Callable[[int], None]
    ) -> None:
        self.number = number
        self._attach = attach
        self._on_death = on_death
        self.transport = ""
        self.http_url = ""
        self.announcement = asyncio.get_running_loop().create_future()
        self.is_ready = False
        #: How often its process was started.
        self.starts = 0
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the worker going until ``stop``.

        Raises:
            SettingsError: it found its settings or its repository wrong at its first start.
        """
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            status = await self._run_once()
            if self._stopping.is_set():
                return
            if status == _CONFIGURATION_STATUS and not self.announcement.done():
                raise SettingsError("a server process refused its settings; its message is above")
            if loop.time() - started > _WELL_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            self._on_death(self.number)
            _log.error(
                "server process ended; starting it again", process=self.number, status=status, pause_s=pause_s
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                    return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_once(self) -> int:
        settings = json.dumps(dataclasses.asdict(self._config), default=str)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "tensorferry.worker",
                    str(os.getpid()),
                    settings,
                    str(theirs.fileno()),
                ),
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE_BYTES,
                pass_fds=(theirs.fileno(),),
                # Out of the terminal's reach: Ctrl-C is the parent's to pass on, and twice is a kill.
                start_new_session=True,
            )
        self.starts += 1
        detach = await self._attach(self.number, ours)
        assert self._process.stdout is not None, "stdout is a pipe"
        if self._stopping.is_set():
            self._send(signal.SIGTERM)  # the word came while the process was being made
        async for raw in self._process.stdout:
            self._heard(raw.decode().strip())
        self.is_ready = False
        self.http_url = ""
        await detach()
        return await self._process.wait()

    def _heard(self, line: str) -> None:
        if line.startswith("grpc listening on "):
            self.transport = line.rpartition(" (")[2].rstrip(")")
        elif line.startswith("http listening on "):
            self.http_url = "http://" + line.removeprefix("http listening on ")
        elif line.startswith("ready"):
            self.is_ready = True
            if not self.announcement.done():
                self.announcement.set_result(line)

    @property
    def why_silent(self) -> str:
        """Why it doesn't answer, if it doesn't."""
        if self._stopping.is_set():
            return "stopping"
        return "doesn't answer: it hangs, or is too busy" if self.is_ready else "starting"

    def stop(self, number: signal.Signals) -> None:
        """Pass a signal on; the worker isn't started again."""
        self._stopping.set()
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def supervise(config: ServerConfig) -> None:
    """Run ``config.processes`` servers until SIGTERM or SIGINT.

    Raises:
        SettingsError: a port can't be had, or the workers refused their settings.
    """
    holder = _hold_port(config.host, config.grpc_port)
    port = holder.getsockname()[1]
    worker_config = dataclasses.replace(config, grpc_port=port, http_port=0)
    fleet = ProcessFleet({"log": logs.adjustable()})
    command = Command(config, fleet)
    command.first_orders()
    attach = partial(_attach, fleet, command)
    workers = [
        _Worker(number, worker_config, attach, command.canaries.process_died)
        for number in range(config.processes)
    ]
    front = FleetPort(config, workers, command.rollbacks)
    try:
        http_port = await front.start(config.http_host, config.http_port)
        _forward_signals(workers)
        announcing = asyncio.create_task(_announce(config, port, http_port, workers, command))
        try:
            await _run_all(workers)
        finally:
            announcing.cancel()
    finally:
        await command.close()
        await front.stop()
        holder.close()


async def _attach(
    fleet: ProcessFleet, command: Command, number: int, end: socket.socket
) -> Callable[[], Awaitable[None]]:
    """Talk to a process that was just started: it asks for its orders, and takes changes from then on."""

    async def join() -> list[dict[str, object]]:
        fleet.join(number, channel)
        return [order.to_json() for order in command.coordinator.orders]

    async def counts(name: str, arms: dict[str, object], shadows: dict[str, object]) -> None:
        fleet.heard_counts(number, name, arms, shadows)
        command.canaries.progress(name)

    async def detach() -> None:
        fleet.leave(number)
        await channel.close()

    handlers = handlers_of(command.coordinator, command.calls, fleet.adjusting.adjust)
    channel = Channel({**handlers, "join": join, "counts": counts})
    await channel.open(end)
    return detach


async def _run_all(workers: list[_Worker]) -> None:
    """Return when all have been stopped; if one can't go on, stop the others and say why."""
    running = [asyncio.create_task(worker.run()) for worker in workers]
    await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
    for worker in workers:
        worker.stop(signal.SIGTERM)
    await asyncio.wait(running)
    await asyncio.gather(*running)


async def _announce(
    config: ServerConfig, port: int, http_port: int, workers: list[_Worker], command: Command
) -> None:
    lines = await asyncio.gather(*(worker.announcement for worker in workers))
    await command.start()
    transport = f"{workers[0].transport}, {config.processes} processes"
    print(f"grpc listening on {address_of(config.host, port)} ({transport})")
    print(f"http listening on {address_of(config.http_host, http_port)}")
    print(max(lines, key=len), flush=True)


def _forward_signals(workers: list[_Worker]) -> None:
    loop = asyncio.get_running_loop()
    signals = StopSignals()

    def on_signal(number: signal.Signals) -> None:
        is_second = signals.is_second()
        if is_second is None:
            return
        for worker in workers:
            worker.stop(signal.SIGKILL if is_second else signal.SIGTERM)
        if is_second:
            logs.flush()
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _hold_port(host: str, port: int) -> socket.socket:
    """Bind the port without listening: the kernel hands connections only to those who listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # SO_REUSEPORT would share the port with another server's processes, too, if they are the
        # same user's: each would get some of the other's calls. Without it the port must be free.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        holder = socket.socket(family, kind, protocol)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as error:
        raise SettingsError(
            f"can't listen on {address_of(host, port)} for gRPC: {reason_of(error)}"
        ) from None
    return holder


def settings_of(text: str) -> ServerConfig:
    """Rebuild the settings that a parent has sent to its worker."""
    values = json.loads(text)
    values["model_repository"] = Path(values["model_repository"])
    values["load_model"] = tuple(values["load_model"])
    return ServerConfig(**values)
