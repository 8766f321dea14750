"""Keeps a GPU busy: one thread launches batches, another waits for them.

::

    jobs ──> launching thread ──launched, at most ``slots``──> completing thread ──outcomes, in order──> loop
             model.launch()                                    launch.wait()

While the completing thread sleeps until the device is done with one batch, the launching thread stages the
next, and the device copies that one's inputs while it runs the first.

State that crosses threads: batches go from one thread to the other through a queue, and the slots come back
through another; ``_lost`` is set once, by whichever thread finds the device lost. Outcomes leave in the
order of their batches, as all of them leave by the completing thread, those of batches that were never
launched as well. Once one batch has found the device lost, those behind it get that error, and the device
isn't touched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass
from typing import Final

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import DeviceLost, TensorferryError
from tensorferry.execution.launching import Launch, LaunchingModel
from tensorferry.execution.outcomes import Done, failure, post

__all__ = ["Job", "Pipeline"]

#: What a stream's thread is given; None ends it.
Job = tuple[Batch, Done] | None


@dataclass(slots=True)
class _Launched:
    """A batch on its way through the device, or the error that it wasn't launched for."""

    batch: Batch
    done: Done
    launch: Launch | None
    error: TensorferryError | None = None


class Pipeline:
    """Serves one ``LaunchingModel``. Made, and used, on the thread that the model is launched on.

    Args:
        model: Loaded, attached and warm. It stays the caller's, who closes it after ``serve``.
        name: The completing thread's.
        loop: Where outcomes are told.

    Raises:
        RuntimeError: the system has no thread left.
    """

    def __init__(self, model: LaunchingModel, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._model = model
        self._loop = loop
        self._lost: DeviceLost | None = None
        self._launched: queue.SimpleQueue[_Launched | None] = queue.SimpleQueue()
        # A token for each batch that may be launched and not waited for. The pool starts no more batches
        # than these; should it ever, the launching thread waits here, and no slot is overwritten.
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(model.slots):
            self._slots.put(None)
        # Daemon: a device that hangs must not keep a drained server from exiting.
        self._completing: Final = threading.Thread(target=self._complete, name=name, daemon=True)
        self._completing.start()

    def serve(self, jobs: queue.SimpleQueue[Job]) -> None:
        """Run the batches of ``jobs`` until a None comes; return when all of them have their outcomes."""
        while (job := jobs.get()) is not None:
            batch, done = job
            self._slots.get()
            self._launched.put(self._launch(batch, done))
            # Drop the references now: the next job may be long in coming.
            del job, batch, done
        self.close()

    def close(self) -> None:
        """Wait for what is launched, and end the completing thread."""
        self._launched.put(None)
        self._completing.join()

    def _launch(self, batch: Batch, done: Done) -> _Launched:
        lost = self._lost
        if lost is not None:
            return _Launched(batch, done, None, _again(lost))
        try:
            return _Launched(batch, done, self._model.launch(batch.inputs()))
        except Exception as error:
            told_error = failure(self._model.spec, batch, error)
            if isinstance(told_error, DeviceLost):
                self._lost = told_error
            return _Launched(batch, done, None, told_error)

    def _complete(self) -> None:
        lost: DeviceLost | None = None
        # Without its device, a thread that asks CUDA anything sets up the first one, whosever that is.
        with contextlib.suppress(Exception):  # what is wrong, the first batch says
            self._model.attach(1)
        while (launched := self._launched.get()) is not None:
            outcome = self._outcome(launched, lost)
            if lost is None and isinstance(outcome.error, DeviceLost):
                lost = self._lost = outcome.error
            self._slots.put(None)  # first, so that the next batch finds it
            post(self._loop, launched.done, outcome)
            # The outputs may be large, and the next batch long in coming.
            del launched, outcome

    def _outcome(self, launched: _Launched, lost: DeviceLost | None) -> BatchOutcome:
        batch, launch = launched.batch, launched.launch
        if launch is None:
            return BatchOutcome(batch, None, launched.error)
        if lost is not None:
            return BatchOutcome(batch, None, _again(lost))
        try:
            return BatchOutcome(batch, launch.wait(), None)
        except Exception as error:
            return BatchOutcome(batch, None, failure(self._model.spec, batch, error))


def _again(lost: DeviceLost) -> DeviceLost:
    """Return the same error for another batch: one that is raised twice gathers tracebacks."""
    return DeviceLost(str(lost))
