"""Starts a model's process, and starts it again whenever it has died.

The pauses double while the process keeps dying. The first restarts after a time of health are waited
for; after that, runs fail at once until the process is there again.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Final

import structlog

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends.process_handle import ChildProcess, Gone
from tensorferry.execution.backends.process_memory import SharedMemory
from tensorferry.execution.backends.process_wire import Malformed, completed, encode_order
from tensorferry.model import ModelSpec

__all__ = ["Starter", "named", "start"]

_log = structlog.get_logger("tensorferry.model_process")

#: The pause before a process is started again, which doubles while it keeps dying, up to the second.
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
#: A process that lived this long was well; its next death counts as the first.
_WELL_AFTER_S: Final = 10.0
#: A run waits for so many restarts: when one of four requests kills the model, and the batch is
#: halved to find it, the process dies three times before the others can be answered.
_PATIENT_DEATHS: Final = 3
#: How long it waits for each.
_PATIENCE_S: Final = 2.0
#: And for the later ones, where other instances can take the work meanwhile: an instance that fails
#: at once is idle at once, and would draw all requests away from those that are well.
_SHARED_PATIENCE_S: Final = 1.0


def named(spec: ModelSpec) -> str:
    """Return how messages call the model."""
    return f"model {spec.name!r} version {spec.version}"


def start(target: str, spec: ModelSpec, device: str, memory: SharedMemory) -> tuple[ChildProcess, ModelSpec]:
    """Start a process and have it load the model; return it, and the completed specification.

    Raises:
        ModelLoadError: as ``open_in_process``.
    """
    child = _spawn(spec, memory)
    try:
        return child, _load(child, target, spec, device)
    except BaseException:
        child.end()
        raise


def _spawn(spec: ModelSpec, memory: SharedMemory) -> ChildProcess:
    try:
        return ChildProcess(spec, memory.fds)
    except (OSError, RuntimeError) as error:  # no memory, too many processes; or the server is ending
        raise ModelLoadError(f"{named(spec)}: its process can't be started: {error}") from error


def _load(child: ChildProcess, target: str, spec: ModelSpec, device: str) -> ModelSpec:
    try:
        child.send(encode_order(target, device, spec))
        kind, fields = child.receive()
        if kind == "refused" and len(fields) == 1 and isinstance(fields[0], str):
            raise ModelLoadError(fields[0])
        if kind != "loaded":
            raise Malformed("something else than what it loaded")
        return completed(spec, fields)
    except Gone:
        how = child.death()
        printed = " | ".join(child.last_lines())
        last = f"; the last that it printed: {printed}" if printed else ""
        raise ModelLoadError(f"{named(spec)}: its process {how} while it loaded{last}") from None
    except Malformed as error:
        raise ModelLoadError(f"{named(spec)}: its process sent {error}") from None


class Starter:
    """Starts the successors of a process that died, on a thread that is over once one has loaded.

    All is written by whoever runs the model, apart from what the thread writes while it lives: the
    deaths, when it tries again and the process that loads.
    """

    def __init__(self, target: str, spec: ModelSpec, device: str, memory: SharedMemory) -> None:
        self._target = target
        self._spec = spec
        self._device = device
        self._memory = memory
        self._deaths = 0
        self._began_at = time.monotonic()
        self._again_at = 0.0
        self._refusal = ""
        self._closed = threading.Event()
        self._loading: ChildProcess | None = None
        self._loaded: queue.SimpleQueue[ChildProcess] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start_later(self) -> float:
        """Start another process in place of one that is dead; return the pause until then, in seconds."""
        if time.monotonic() - self._began_at >= _WELL_AFTER_S:
            self._deaths = 0
        pause_s = self._next_pause()
        self._thread = threading.Thread(
            target=self._keep_starting, args=(pause_s,), name=f"restarts {self._spec.name}", daemon=True
        )
        self._thread.start()
        return pause_s

    def started(self) -> ChildProcess:
        """Return the new process, waiting for it a little.

        Raises:
            ModelFailed: it isn't there yet.
        """
        try:
            child = self._loaded.get(timeout=self._patience_s())
        except queue.Empty:
            raise self._not_yet() from None
        if self._thread is not None:
            self._thread.join()  # handing the process over was the last thing that it did
            self._thread = None
        self._began_at = time.monotonic()
        self._refusal = ""
        return child

    def close(self) -> None:
        """Start no more, and end a process that has been started and not asked for."""
        self._closed.set()
        loading = self._loading
        if loading is not None:
            loading.kill()
        if self._thread is not None:
            self._thread.join()
        while not self._loaded.empty():
            self._loaded.get().end()

    def _patience_s(self) -> float:
        if self._deaths <= _PATIENT_DEATHS:
            return _PATIENCE_S
        return _SHARED_PATIENCE_S if len(self._spec.devices) > 1 else 0.0

    def _next_pause(self) -> float:
        pause_s: float = min(_FIRST_PAUSE_S * 2.0 ** min(self._deaths, 20), _LONGEST_PAUSE_S)
        self._deaths += 1
        self._again_at = time.monotonic() + pause_s
        return pause_s

    def _keep_starting(self, pause_s: float) -> None:
        while not self._closed.wait(pause_s):
            try:
                child = self._start()
            except ModelLoadError as error:
                self._refusal = str(error)
                pause_s = self._next_pause()
                _log.error("model process can't be started", reason=str(error), again_in_s=pause_s)
                continue
            _log.info("model process started", process=child.name, pid=child.pid)
            self._loaded.put(child)
            return

    def _start(self) -> ChildProcess:
        child = self._loading = _spawn(self._spec, self._memory)
        try:
            if self._closed.is_set():  # close has looked already, or looks and kills
                raise ModelLoadError(f"{named(self._spec)}: is closed")
            _load(child, self._target, self._spec, self._device)
        except BaseException:
            child.end()
            raise
        finally:
            self._loading = None
        return child

    def _not_yet(self) -> ModelFailed:
        remaining_s = self._again_at - time.monotonic()
        when = f"is tried again in {remaining_s:.1f} s" if remaining_s > 0 else "is loading now"
        why = f" (the latest start failed: {self._refusal})" if self._refusal else ""
        return ModelFailed(f"{named(self._spec)}: its process died and {when}{why}")
