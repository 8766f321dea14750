"""Worker streams: each runs batches one after another, and is the sole user of its model copy.

``ThreadStream`` runs on a thread of its own. A model on a GPU it launches there, and has another thread wait
for the results, so that several batches are under way at once; see ``pipeline``.
``InlineStream`` runs on the loop thread, for a model whose run is shorter than handing it over:
two GIL hand-overs cost 0.1-0.2 ms, and a small MLP runs 64 rows in 0.02 ms.

State that crosses threads: jobs go in through a queue, outcomes come back through the loop's
``call_soon_threadsafe``. ``last_cpu_s`` is written before the outcome is sent, and read after it has
come. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import ModelLoadError, TensorferryError
from tensorferry.execution.launching import LaunchingModel
from tensorferry.execution.outcomes import Done, failure, post
from tensorferry.execution.pipeline import Job, Pipeline
from tensorferry.execution.priority import Priority, run_aside
from tensorferry.execution.warmup import WarmupReport, warm_up
from tensorferry.model import Model

__all__ = ["Conduct", "InlineStream", "Stream", "ThreadStream"]

_log = structlog.get_logger("tensorferry.execution")


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a stream behaves. ``cpu_clock`` gives the calling thread's CPU time in seconds.

    On the loop thread it is asked for one run in ``cpu_every``: it is a system call, and asking
    twice for each run took 5 % of a saturated server's time.

    With ``gives_way`` a thread of its own, and those it starts, are nicer once its runs are long;
    see ``Priority``. In the ``background`` they are as nice as can be from the start.

    With ``loads_aside`` the model is loaded and warmed up on a thread that gives way to everything
    else, and then handed to the stream's own thread, which doesn't. That is for backends whose
    threads end with the thread that used them: threads (or processes) that stay with the model
    would stay nice.
    """

    gives_way: bool = True
    cpu_clock: Callable[[], float] = time.thread_time
    cpu_every: int = 1
    background: bool = False
    loads_aside: bool = False


_PLAIN: Final = Conduct()


class Stream(Protocol):
    """One place where batches run: one at a time, or on a GPU as many as its model has slots."""

    #: CPU time of the thread that ran the latest batch, in seconds: unlike the time that passed, it
    #: leaves out what the thread spent in waiting for a core or for the GIL. Negative: not measured.
    last_cpu_s: float

    def start(self, batch: Batch, done: Done) -> None:
        """Run the batch; ``done`` is called once on the loop thread, perhaps before this returns."""
        ...

    def close(self) -> None:
        """Stop after the batches that were given, and free the model. Doesn't wait."""
        ...

    async def wait_closed(self) -> None:
        """Wait until the model has been freed."""
        ...


class InlineStream:
    """Runs on the calling (loop) thread."""

    def __init__(self, model: Model, conduct: Conduct = _PLAIN) -> None:
        self.last_cpu_s = 0.0
        self._model = model
        self._cpu_clock = conduct.cpu_clock
        self._cpu_every = conduct.cpu_every
        self._runs = 0
        self._freed: asyncio.Future[object] | None = None
        self._thread: threading.Thread | None = None

    def start(self, batch: Batch, done: Done) -> None:
        """Run the batch now and call ``done`` before returning."""
        self._runs += 1
        if self._runs % self._cpu_every:
            self.last_cpu_s = -1.0
            done(_run(self._model, batch))
            return
        began = self._cpu_clock()
        outcome = _run(self._model, batch)
        self.last_cpu_s = self._cpu_clock() - began
        done(outcome)

    def close(self) -> None:
        """Free the model, on a thread: giving back a large one's memory takes milliseconds."""
        loop = asyncio.get_running_loop()
        self._freed = loop.create_future()
        self._thread = threading.Thread(target=self._free, args=(loop, self._freed), daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # "can't start new thread": the system's limit is reached
            self._thread = None
            self._model.close()

    async def wait_closed(self) -> None:
        """Wait until the model has been freed."""
        if self._freed is not None and self._thread is not None:
            await self._freed
            self._thread.join()

    def _free(self, loop: asyncio.AbstractEventLoop, freed: asyncio.Future[object]) -> None:
        try:
            self._model.close()
        finally:
            post(loop, _resolve, freed, None, None)


class ThreadStream:
    """A thread that loads its model, warms it up, and runs batches until closed.

    Life: ``opened`` resolves once with the warm-up's report, or with a ModelLoadError, and then
    the thread is over. After ``release`` or ``close`` the thread ends.

    A stream with a ``report`` takes a model over that was warmed up elsewhere: it may be given
    batches at once. What warm-up compiles serves all threads (measured with torch 2.13: the first
    run on a new thread takes 0.1-0.2 ms more than the next, where compiling takes 30 ms), so it
    isn't done again.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Model],
        intra_op_threads: int,
        loop: asyncio.AbstractEventLoop,
        report: WarmupReport | None = None,
        conduct: Conduct = _PLAIN,
    ) -> None:
        self.last_cpu_s = 0.0
        self.opened: asyncio.Future[tuple[Model, WarmupReport]] = loop.create_future()
        self._closed = loop.create_future()
        self._report = report
        self._conduct = conduct
        self._load = load
        self._intra_op_threads = intra_op_threads
        self._loop = loop
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._keeps_model = True
        # Daemon: a model stuck in a kernel must not keep a drained server from exiting.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def start(self, batch: Batch, done: Done) -> None:
        """Hand the batch to the thread."""
        self._jobs.put((batch, done))

    def release(self) -> None:
        """End the thread and leave its model open, for another stream that has it from ``opened``.

        Only when no batch is running: the thread has run its last then, and doesn't touch the
        model again.
        """
        self._keeps_model = False
        self.close()

    def close(self) -> None:
        """Tell the thread to end after the batches it has been given."""
        self._jobs.put(None)

    async def wait_closed(self) -> None:
        """Wait until the thread has freed (or released) its model, and is over."""
        await self._closed
        self._thread.join()  # saying so was the last thing that it did

    def _main(self) -> None:
        conduct, priority = self._conduct, None
        if conduct.gives_way or conduct.background:
            priority = Priority(self._thread.name, background=conduct.background)
        try:
            model, report = self._loaded()
            pipeline = self._pipeline(model)
        except TensorferryError as error:
            self._fail(error)
            return
        except Exception as error:  # a fault of ours or of the backend's; never lose the thread's end
            _log.exception("loading a model failed unexpectedly")
            self._fail(ModelLoadError(f"loading failed unexpectedly: {type(error).__name__}: {error}"))
            return
        if priority is not None:
            priority.measured(report)
        post(self._loop, _resolve, self.opened, (model, report), None)
        if pipeline is not None:
            self.last_cpu_s = -1.0
            pipeline.serve(self._jobs)
        else:
            self._serve(model, priority)
        if self._keeps_model:
            _close(model)
        post(self._loop, _resolve, self._closed, None, None)

    def _fail(self, error: Exception) -> None:
        post(self._loop, _resolve, self.opened, None, error)
        post(self._loop, _resolve, self._closed, None, None)

    def _pipeline(self, model: Model) -> Pipeline | None:
        """Return what serves a model on a GPU, made before anybody is told that the model is there."""
        if not isinstance(model, LaunchingModel):
            return None
        try:
            return Pipeline(model, f"{self._thread.name} completing", self._loop)
        except BaseException:
            _close(model)
            raise

    def _loaded(self) -> tuple[Model, WarmupReport]:
        if not self._conduct.loads_aside or self._report is not None:
            return self._load_here()
        model, report = run_aside(self._load_here, f"{self._thread.name} loading")
        model.attach(self._intra_op_threads)
        return model, report

    def _load_here(self) -> tuple[Model, WarmupReport]:
        model = self._load()
        try:
            model.attach(self._intra_op_threads)
            return model, self._report or warm_up(model)
        except BaseException:
            # The error outlives this: with its traceback it would keep the model, or its process, alive.
            _close(model)
            raise

    def _serve(self, model: Model, priority: Priority | None) -> None:
        cpu_clock = self._conduct.cpu_clock
        while (job := self._jobs.get()) is not None:
            batch, done = job
            began = cpu_clock()
            outcome = _run(model, batch)
            self.last_cpu_s = cpu_clock() - began
            if priority is not None:
                priority.saw(self.last_cpu_s)
            post(self._loop, done, outcome)
            # Drop the references now: the next job may be long in coming.
            del job, batch, done, outcome


def _resolve(future: asyncio.Future[object], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _close(model: Model) -> None:
    try:
        model.close()
    except Exception:  # a lost device can't give its memory back; the thread has to end all the same
        _log.exception("closing a model failed", model=model.spec.name, version=model.spec.version)


def _run(model: Model, batch: Batch) -> BatchOutcome:
    try:
        return BatchOutcome(batch, model.run(batch.inputs()), None)
    except Exception as error:
        return BatchOutcome(batch, None, failure(model.spec, batch, error))
