"""An ensemble at work: takes a request through the models of its steps, one after the other.

An ensemble runs nothing itself. Each step is an ordinary request to the step's model, which batches it
with whatever else it has, from other ensembles and from callers::

    submit ──> first step ──> model's intake ──on_done──> next step ──> ... ──on_done──> request.finish

There is no task and no future: the step's ``on_done`` submits the next one. What passes from step to step
are views of the batches' outputs; nothing is copied but into the next model's batch.

Contracts:

* ``submit`` either raises, as the first step's model does, and the request is the caller's again, or
  the request's ``on_done`` will be called exactly once.
* Each step has the request's deadline, timeout, priority and split key, and finds its model anew: a model
  may be swapped between two steps.
* The first step that fails ends the request, with an error of the same class that names the step.
"""

from __future__ import annotations

import asyncio

from tensorferry.batching.pending import DONE, RUNNING, WAITING, Pending
from tensorferry.batching.statistics import BatcherStatistics, Counters, failure_reason
from tensorferry.clock import Clock
from tensorferry.engine.ensemble_members import MAX_DEPTH, Member, Resolve, missing
from tensorferry.engine.ensemble_stage import Stage
from tensorferry.errors import Cancelled, ModelFailed, TensorferryError
from tensorferry.model import ModelSpec, RunResult, TensorSpec
from tensorferry.tensors import Tensor

__all__ = ["EnsembleIntake"]


class EnsembleIntake:
    """The intake of one version of an ensemble. Owned by its ``LiveModel``, used on the loop thread.

    ``resolve`` finds a step's model, and must go on finding it while the server drains: requests that
    are in flight still have steps to go.
    """

    def __init__(self, spec: ModelSpec, resolve: Resolve, clock: Clock, has_histograms: bool = True) -> None:
        self._spec = spec
        self._resolve = resolve
        self._clock = clock
        slots = {each.name: number for number, each in enumerate(spec.inputs)}
        self._stages: list[Stage] = []
        for number, step in enumerate(spec.steps):
            self._stages.append(Stage(spec, number, slots))
            for _, name in step.outputs:
                slots[name] = len(slots)
        self._outputs = [(each, slots[each.name]) for each in spec.outputs]
        #: The requests that have no outcome yet.
        self._chains: dict[Pending, _Chain] = {}
        self._idle_event = asyncio.Event()
        self._counters = Counters(has_histograms)

    # -- requests -------------------------------------------------------------------------------

    def submit(self, request: Pending) -> None:
        """Submit the first step.

        Raises:
            ModelNotReady: the first step's model isn't there, or isn't ready.
            ModelFailed: ensembles call each other without end.
            TensorferryError: as the first step's model refuses it.
        """
        request.enqueued_at = self._clock.now()
        chain = self._chains[request] = _Chain(request)
        error = self._start(chain) if chain.depth <= MAX_DEPTH else self._too_deep()
        if error is None:
            return
        del self._chains[request]
        request.state = DONE
        self._counters.failed(failure_reason(error), 0.0)
        self._announce_idle()
        try:
            raise error
        finally:
            del error  # the traceback knows this frame: both would wait for the garbage collector

    def cancel(self, request: Pending) -> None:
        """Give a request up: the step that waits or runs is cancelled, and no other starts."""
        chain = self._chains.get(request)
        if chain is not None:
            self._abandon(chain, Cancelled("the caller cancelled the request"))

    def fail_waiting(self, error: TensorferryError) -> None:
        """End with ``error`` the requests whose step waits, and after its run those whose step runs.

        A request whose last step runs is still answered.
        """
        for chain in list(self._chains.values()):
            if chain.request not in self._chains:
                continue  # the callback of one that was ended just before has cancelled it
            if chain.step is not None and chain.step.state == WAITING:
                self._abandon(chain, error)
            else:
                chain.ending = error

    async def wait_idle(self) -> None:
        """Wait until no request is in flight. New ones postpone it: refuse them first."""
        while self._chains:
            self._idle_event.clear()
            await self._idle_event.wait()

    def close(self) -> None:
        """Do nothing, in place of ``Batcher.close``: what the steps' models hold is theirs."""

    # -- steps ----------------------------------------------------------------------------------

    def _start(self, chain: _Chain) -> TensorferryError | None:
        """Submit the chain's next step. Returns why it can't be."""
        stage, request = self._stages[chain.done], chain.request
        try:
            live = self._resolve(stage.step.model, stage.step.version, request.split_key)
            intake = live.intake or live.check_ready()
            bound, parts = stage.bind(live.spec, chain.tensors)
            step = _Step(bound, self._step_done, request.deadline, parts, request.timeout_s, request.priority)
            step.chain, step.depth, step.split_key = chain, chain.depth, request.split_key
            chain.live, chain.step = live, step
            intake.submit(step)
        except TensorferryError as error:
            chain.step = None
            return stage.named(error)
        return None

    def _step_done(self, step: Pending) -> None:
        assert isinstance(step, _Step)
        chain = step.chain
        if chain is None or chain.step is not step:
            return  # the request has its outcome
        # They know each other. Left so, they would wait for the garbage collector with all their data.
        step.chain = chain.step = None
        if step.record is not None:
            chain.add(step.record.result)
        stage = self._stages[chain.done]
        error: TensorferryError | None
        if step.error is not None:
            error = stage.named(step.error)
        else:
            error = stage.collect(step, chain.tensors)
        if error is None:
            chain.done += 1
            if chain.done == len(self._stages):
                self._finish(chain)
                return
            error = chain.ending or self._start(chain)
        if error is not None:
            self._fail(chain, error)

    def _finish(self, chain: _Chain) -> None:
        request = chain.request
        rows = request.bound.rows if self._spec.has_batch_dimension else 0
        outputs = []
        for declared, slot in self._outputs:
            tensor = chain.tensors[slot]
            if not _is_as_declared(tensor, declared, rows):
                self._fail(chain, self._undeclared(tensor, declared, rows))
                return
            outputs.append(Tensor(declared.name, tensor.datatype, tensor.shape, tensor.data))
        age_s = self._clock.now() - request.enqueued_at
        compute = RunResult([], chain.input_ns, chain.infer_ns, chain.output_ns)
        is_late = request.limit < request.enqueued_at + age_s
        self._counters.answered_whole(request.bound.rows, age_s, compute, is_late)
        if isinstance(request, _Step) and request.chain is not None:
            request.chain.add(compute)
        del self._chains[request]
        request.finish(outputs, 0, rows)
        self._announce_idle()

    def _abandon(self, chain: _Chain, error: TensorferryError) -> None:
        """End a request before its time: from now on its step isn't listened to."""
        live, step = chain.live, chain.step
        chain.step = None
        if live is not None and step is not None:
            step.chain = None
            live.cancel(step)
        self._fail(chain, error)

    def _fail(self, chain: _Chain, error: TensorferryError) -> None:
        request = chain.request
        if self._chains.pop(request, None) is not None:
            self._counters.failed(failure_reason(error), self._clock.now() - request.enqueued_at)
            request.fail(error)
            self._announce_idle()

    def _too_deep(self) -> ModelFailed:
        return ModelFailed(
            f"ensemble {self._spec.name!r} was called by ensembles {MAX_DEPTH} deep, the most there may be;"
            " do they call each other in a circle?"
        )

    def _undeclared(self, tensor: Tensor, declared: TensorSpec, rows: int) -> ModelFailed:
        wanted = list(declared.dims or ())
        if rows:
            wanted.insert(0, rows)
        datatype = declared.datatype.name if declared.datatype else "any datatype"
        return ModelFailed(
            f"ensemble {self._spec.name!r}: output {declared.name!r} is {tensor.datatype} of shape"
            f" {list(tensor.shape)}, and its configuration says {datatype} {wanted}"
        )

    def _announce_idle(self) -> None:
        if not self._chains:
            self._idle_event.set()

    # -- how things are -------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """Say why the ensemble can't answer now; empty if it can."""
        return missing(self._spec, self._resolve)

    @property
    def in_flight(self) -> int:
        """Requests that have no outcome yet."""
        return len(self._chains)

    def statistics(self) -> BatcherStatistics:
        """Return a snapshot of the counts, of whole requests.

        Each is an execution. Its compute times are those of its steps' runs; the rest of its time, in
        their queues and between them, counts as waiting.
        """
        return self._counters.snapshot(0, len(self._chains))

    def __repr__(self) -> str:
        name = f"{self._spec.name}/{self._spec.version}"
        return f"<EnsembleIntake {name}: {len(self._stages)} steps, {len(self._chains)} in flight>"


class _Chain:
    """A request on its way through the steps.

    ``tensors`` are the ensemble's: the inputs, then what each step has written, in the order in which
    the steps name them. ``done`` counts the steps that are over. ``depth`` is 1 for a caller's request,
    and one more than its caller's for that of an ensemble. ``ending`` is why no other step may start.
    The three durations are of the runs that answered its steps, in nanoseconds.
    """

    __slots__ = (
        "depth",
        "done",
        "ending",
        "infer_ns",
        "input_ns",
        "live",
        "output_ns",
        "request",
        "step",
        "tensors",
    )

    def __init__(self, request: Pending) -> None:
        self.request = request
        self.tensors = [
            Tensor(each.name, each.datatype, each.shape, data)
            for each, data in zip(request.bound.tensors, request.parts, strict=True)
        ]
        self.done = 0
        self.depth = request.depth + 1 if isinstance(request, _Step) else 1
        self.live: Member | None = None
        self.step: _Step | None = None
        self.ending: TensorferryError | None = None
        self.input_ns = self.infer_ns = self.output_ns = 0
        request.state = RUNNING

    def add(self, run: RunResult) -> None:
        """Count the durations of a step's run."""
        self.input_ns += run.input_ns
        self.infer_ns += run.infer_ns
        self.output_ns += run.output_ns


class _Step(Pending):
    """A step's request to its model."""

    __slots__ = ("chain", "depth")

    chain: _Chain | None
    depth: int


def _is_as_declared(tensor: Tensor, declared: TensorSpec, rows: int) -> bool:
    if declared.datatype is not None and tensor.datatype != declared.datatype.name:
        return False
    shape, dims = tensor.shape, declared.dims
    if rows:
        if shape[:1] != (rows,):
            return False
        shape = shape[1:]
    return (
        dims is None
        or shape == dims
        or (len(shape) == len(dims) and all(dim in (-1, size) for dim, size in zip(dims, shape, strict=True)))
    )
