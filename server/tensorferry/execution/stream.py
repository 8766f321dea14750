"""Worker streams: each runs batches one after another, and is the sole user of its model copy.

``ThreadStream`` runs on a thread of its own (with a CUDA stream of its own on a GPU).
``InlineStream`` runs on the loop thread, for a model whose run is shorter than handing it over:
two GIL hand-overs cost 0.1-0.2 ms, and a small MLP runs 64 rows in 0.02 ms.

State that crosses threads: jobs go in through a queue, outcomes come back through the loop's
``call_soon_threadsafe``. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import uuid
from collections.abc import Callable
from typing import Protocol

import structlog

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import ModelFailed, ModelLoadError, TensorferryError
from tensorferry.execution.warmup import WarmupReport, warm_up
from tensorferry.model import Model

__all__ = ["Done", "InlineStream", "Stream", "ThreadStream"]

_log = structlog.get_logger("tensorferry.execution")

Done = Callable[[BatchOutcome], None]


class Stream(Protocol):
    """One place where batches run, one at a time."""

    def start(self, batch: Batch, done: Done) -> None:
        """Run the batch; ``done`` is called once on the loop thread, perhaps before this returns."""
        ...

    def close(self) -> None:
        """Stop after the batch that runs, and free the model. Doesn't wait."""
        ...

    async def wait_closed(self) -> None:
        """Wait until the model has been freed."""
        ...


class InlineStream:
    """Runs on the calling (loop) thread."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def start(self, batch: Batch, done: Done) -> None:
        """Run the batch now and call ``done`` before returning."""
        done(_run(self._model, batch))

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    async def wait_closed(self) -> None:
        """Nothing to wait for."""


class ThreadStream:
    """A thread that loads its model, warms it up, and runs batches until closed.

    Life: ``opened`` resolves once with the warm-up's report, or with a ModelLoadError, and then
    the thread is over. After ``surrender`` or ``close`` the thread ends.
    """

    def __init__(
        self, name: str, load: Callable[[], Model], intra_op_threads: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.opened: asyncio.Future[tuple[Model, WarmupReport]] = loop.create_future()
        self._closed = loop.create_future()
        self._load = load
        self._intra_op_threads = intra_op_threads
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Batch, Done] | None] = queue.SimpleQueue()
        self._keeps_model = True
        # Daemon: a model stuck in a kernel must not keep a drained server from exiting.
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def start(self, batch: Batch, done: Done) -> None:
        """Hand the batch to the thread."""
        self._jobs.put((batch, done))

    async def surrender(self) -> Model:
        """End the thread and take its model over. Only when no batch is running."""
        self._keeps_model = False
        model, _ = await self.opened
        self.close()
        await self.wait_closed()
        return model

    def close(self) -> None:
        """Tell the thread to end after the batches it has been given."""
        self._jobs.put(None)

    async def wait_closed(self) -> None:
        """Wait until the thread has freed (or surrendered) its model."""
        await self._closed

    def _main(self) -> None:
        try:
            model = self._load()
            model.attach(self._intra_op_threads)
            report = warm_up(model)
        except TensorferryError as error:
            self._post(_resolve, self.opened, None, error)
            self._post(_resolve, self._closed, None, None)
            return
        except Exception as error:  # a fault of ours or of the backend's; never lose the thread's end
            _log.exception("loading a model failed unexpectedly")
            reason = ModelLoadError(f"loading failed unexpectedly: {type(error).__name__}: {error}")
            self._post(_resolve, self.opened, None, reason)
            self._post(_resolve, self._closed, None, None)
            return
        self._post(_resolve, self.opened, (model, report), None)
        while (job := self._jobs.get()) is not None:
            batch, done = job
            self._post(done, _run(model, batch))
            # Drop the references now: the next job may be long in coming.
            del job, batch, done
        if self._keeps_model:
            model.close()
        self._post(_resolve, self._closed, None, None)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
            self._loop.call_soon_threadsafe(callback, *arguments)


def _resolve(future: asyncio.Future[object], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _run(model: Model, batch: Batch) -> BatchOutcome:
    try:
        return BatchOutcome(batch, model.run(batch.inputs()), None)
    except TensorferryError as error:
        return BatchOutcome(batch, None, error)
    except Exception as error:
        return BatchOutcome(batch, None, _failure(model, batch, error))


def _failure(model: Model, batch: Batch, error: Exception) -> ModelFailed:
    """Log what the model raised, with its traceback; tell the caller only where to find it.

    A batch of several requests is halved and run again until the one at fault stands alone; that
    one is worth the traceback, which takes long to write.
    """
    spec = model.spec
    reference = uuid.uuid4().hex[:12]
    log = _log.bind(model=spec.name, version=spec.version, rows=batch.rows, error_id=reference)
    if len(batch.requests) == 1:
        log.error("model raised", exc_info=error)
    else:
        log.warning("model raised on a batch", requests=len(batch.requests), error=type(error).__name__)
    return ModelFailed(
        f"model {spec.name!r} version {spec.version} raised {type(error).__name__};"
        f" error id {reference} in the log"
    )
