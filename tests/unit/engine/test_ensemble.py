"""A request goes through the steps of an ensemble and has one outcome."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import model_spec, run, tensor_spec

from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import DONE, NEVER, Intake, Pending
from tensorferry.batching.splitting import Splitter
from tensorferry.engine.ensemble import EnsembleIntake
from tensorferry.engine.ensemble_members import MAX_DEPTH, members_first, missing
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    NotFound,
    QueueFull,
)
from tensorferry.model import BatchingSpec, BatchInput, EnsembleStep, ModelSpec
from tensorferry.tensors import Tensor, array_of, tensor_of
from tensorferry.testing.clock import VirtualClock
from tensorferry.testing.puppet import PuppetExecutor

Compute = Callable[..., Sequence[np.ndarray]]


class Live:
    """A version that is ready: what an ensemble sees of ``LiveModel``."""

    def __init__(self, spec: ModelSpec, intake: Intake, executor: PuppetExecutor | None = None) -> None:
        self.spec = spec
        self.intake: Intake | None = intake
        self.executor = executor
        self._intake = intake

    def check_ready(self) -> Intake:
        if self.intake is None:
            raise ModelNotReady(f"model {self.spec.name!r} is unloading")
        return self.intake

    def cancel(self, request: Pending) -> None:
        self._intake.cancel(request)

    @property
    def statistics(self):
        assert isinstance(self._intake, Batcher)
        return self._intake.statistics()


def computing(outputs: Sequence[str], compute: Compute):
    """Make a behaviour of a function from arrays, in the order of the model's inputs, to arrays."""

    def behave(inputs: Sequence[BatchInput]) -> list[Tensor]:
        arrays = [
            array_of(Tensor(each.name, each.datatype, each.shape, b"".join(each.parts))) for each in inputs
        ]
        return [
            tensor_of(name, np.asarray(made, np.float32))
            for name, made in zip(outputs, compute(*arrays), strict=True)
        ]

    return behave


class World:
    """Models and ensembles on virtual time. Models are puppets: ``finish`` ends their runs."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.models: dict[tuple[str, str], Live] = {}
        self.done: list[Pending] = []

    def resolve(self, name: str, version: str, key: bytes | None) -> Live:
        live = self.models.get((name, "canary")) if key == b"canary's" else None
        live = live or self.models.get((name, version))
        if live is None:
            raise NotFound(f"no model {name!r}")
        return live

    def model(
        self,
        name: str,
        compute: Compute,
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = ("y",),
        max_batch_size: int = 8,
        version: str = "",
        inline: bool = False,
        dims: Sequence[int] = (1,),
        max_queue_size: int = 1000,
        **batching,
    ) -> Live:
        spec = replace(
            model_spec(
                [tensor_spec(each, dims=dims) for each in inputs],
                [tensor_spec(each, dims=dims) for each in outputs],
                max_batch_size,
                batching=BatchingSpec(**batching),
            ),
            name=name,
        )
        executor = PuppetExecutor(behaviour=computing(outputs, compute), inline=inline)
        batcher = Batcher(spec, executor, self.clock, Admission(2**30), max_queue_size)
        intake = Splitter(batcher, spec) if spec.batching.split_oversized else batcher
        live = self.models[name, version] = Live(spec, intake, executor)
        return live

    def ensemble(self, name: str, *steps: EnsembleStep, inputs=("in",), outputs=("out",), **more) -> Live:
        spec = replace(
            model_spec(
                [tensor_spec(each, **more) for each in inputs],
                [tensor_spec(each, **more) for each in outputs],
            ),
            name=name,
            platform="ensemble",
            backend="",
            steps=steps,
        )
        live = Live(spec, EnsembleIntake(spec, self.resolve, self.clock))
        self.models[name, ""] = live
        return live

    def submit(self, live: Live, *values: float, deadline: float = NEVER, **more) -> Pending:
        array = np.array(values, np.float32).reshape(-1, 1)
        tensors = [tensor_of(each.name, array) for each in live.spec.inputs]
        request = Pending(live.spec.bind(tensors), self.done.append, deadline, **more)
        live.check_ready().submit(request)
        return request

    def finish(self, *names: str) -> None:
        """Let each model's batch leave and finish, in turn."""
        for name in names:
            self.clock.tick()
            self.models[name, ""].executor.finish()
        self.clock.tick()


def step(model: str, reads: dict[str, str], writes: dict[str, str], version: str = "") -> EnsembleStep:
    return EnsembleStep(model, version, tuple(reads.items()), tuple(writes.items()))


def chain_of(*models: str, **more) -> list[EnsembleStep]:
    """Models with the input x and the output y, one after the other."""
    names = ["in", *[f"t{number}" for number in range(1, len(models))], "out"]
    return [
        step(model, {"x": before}, {"y": after}, **more)
        for model, before, after in zip(models, names, names[1:], strict=False)
    ]


def values(request: Pending, output: int = 0) -> list[float]:
    assert request.error is None, request.error
    return array_of(request.outputs[output]).ravel().tolist()


def two_steps(**more) -> tuple[World, Live]:
    """(x + 1) * 10."""
    world = World()
    world.model("add", lambda x: [x + 1], **more)
    world.model("times", lambda x: [x * 10])
    return world, world.ensemble("e", *chain_of("add", "times"))


class TestAnswer:
    def test_the_steps_are_composed(self):
        world, live = two_steps()
        request = world.submit(live, 1, 2)
        world.finish("add", "times")
        assert values(request) == [20, 30]
        assert [(each.name, each.datatype, each.shape) for each in request.outputs] == [
            ("out", "FP32", (2, 1))
        ]
        assert world.done == [request]

    def test_inputs_and_outputs_meet_by_the_names_of_the_maps(self):
        world = World()
        world.model("sub", lambda a, b: [a - b, a + b], inputs=("a", "b"), outputs=("less", "more"))
        steps = [
            step("sub", {"b": "q", "a": "p"}, {"more": "m", "less": "l"}),
            step("sub", {"a": "l", "b": "m"}, {"less": "out"}),
        ]
        live = world.ensemble("e", *steps, inputs=("p", "q"), outputs=("m", "out"))
        tensors = [tensor_of("q", np.array([[2]], np.float32)), tensor_of("p", np.array([[7]], np.float32))]
        request = Pending(live.spec.bind(tensors), world.done.append)
        live.check_ready().submit(request)
        world.finish("sub", "sub")
        assert (values(request, 0), values(request, 1)) == ([9.0], [-4.0])
        assert [each.name for each in request.outputs] == ["m", "out"]

    def test_a_branch_is_joined(self):
        world = World()
        world.model("left", lambda x: [x + 1])
        world.model("right", lambda x: [x * 3])
        world.model("join", lambda p, q: [p * q], inputs=("p", "q"))
        live = world.ensemble(
            "e",
            step("left", {"x": "in"}, {"y": "l"}),
            step("right", {"x": "in"}, {"y": "r"}),
            step("join", {"p": "l", "q": "r"}, {"y": "out"}),
        )
        request = world.submit(live, 2)
        world.finish("left", "right", "join")
        assert values(request) == [18]

    def test_data_comes_from_the_parts_and_not_from_a_shared_form(self):
        world, live = two_steps()
        bound = live.spec.bind([tensor_of("in", np.array([[1]], np.float32))])
        bound.forget_data()
        for number in (4, 5):
            part = np.array([[number]], np.float32).tobytes()
            live.check_ready().submit(Pending(bound, world.done.append, parts=[part]))
        world.finish("add", "times")
        assert [values(each) for each in world.done] == [[50], [60]]

    def test_requests_of_other_shapes_and_back_get_their_own(self):
        world, live = two_steps()
        requests = []
        for rows in (1, 3, 1, 2, 3):
            requests.append((world.submit(live, *range(rows)), rows))
            world.finish("add", "times")
        for request, rows in requests:
            assert values(request) == [(number + 1) * 10 for number in range(rows)]

    def test_nothing_is_copied_between_the_steps(self):
        world, live = two_steps()
        executor = world.models["times", ""].executor
        world.submit(live, 1, 2)
        world.finish("add")
        (batch,) = executor.running
        made = batch.requests[0].parts[0]
        assert isinstance(made, memoryview)
        assert array_of(Tensor("x", "FP32", (2, 1), made)).ravel().tolist() == [2, 3]

    def test_without_a_batch_dimension_shapes_are_whole(self):
        world = World()
        world.model("rows", lambda x: [x + 1], max_batch_size=8, dims=(1,))
        spec = replace(
            model_spec([tensor_spec("in", dims=(-1, 1))], [tensor_spec("out", dims=(-1, 1))], 0),
            steps=(step("rows", {"x": "in"}, {"y": "out"}),),
        )
        live = Live(spec, EnsembleIntake(spec, world.resolve, world.clock))
        request = world.submit(live, 1, 2, 3)
        world.finish("rows")
        assert values(request) == [2, 3, 4]
        assert request.outputs[0].shape == (3, 1)

    def test_a_step_whose_model_splits_takes_more_rows(self):
        world = World()
        world.model("small", lambda x: [x + 1], max_batch_size=2, split_oversized=True)
        live = world.ensemble("e", *chain_of("small"))
        request = world.submit(live, 1, 2, 3, 4, 5)
        world.finish("small", "small", "small")
        assert values(request) == [2, 3, 4, 5, 6]

    def test_a_stated_version_is_the_one_that_runs(self):
        world = World()
        world.model("m", lambda x: [x + 1])
        old = world.model("m", lambda x: [x - 1], version="3")
        live = world.ensemble("e", *chain_of("m", version="3"))
        request = world.submit(live, 5)
        world.clock.tick()
        old.executor.finish()
        assert values(request) == [4]

    def test_inline_models_finish_on_a_later_tick(self):
        world, live = two_steps(inline=True)
        request = world.submit(live, 1)
        assert request.state != DONE
        world.finish("times")
        assert values(request) == [20]

    def test_a_chain_may_be_long(self):
        world = World()
        world.model("m", lambda x: [x + 1], inline=True)
        live = world.ensemble("e", *chain_of(*["m"] * 64))
        request = world.submit(live, 0)
        world.clock.tick()
        assert values(request) == [64]


class TestBatching:
    def test_each_step_runs_the_requests_of_all_callers_together(self):
        world, live = two_steps()
        requests = [world.submit(live, number) for number in range(5)]
        alone = world.submit(world.models["add", ""], 100)
        world.finish("add", "times")
        assert [values(each) for each in requests] == [[(number + 1) * 10] for number in range(5)]
        assert values(alone) == [101]
        assert world.models["add", ""].statistics.execution_count == 1
        assert world.models["times", ""].statistics.execution_count == 1

    def test_a_model_that_is_two_steps_batches_both(self):
        world = World()
        model = world.model("m", lambda x: [x + 1])
        live = world.ensemble("e", *chain_of("m", "m"))
        first = world.submit(live, 1)
        world.finish("m")
        # Submitted by the callback within the batcher's completion, it leaves with the next.
        second = world.submit(live, 5)
        world.clock.tick()
        model.executor.finish()
        assert values(first) == [3]
        world.finish("m", "m")
        assert values(second) == [7]

    def test_deadline_timeout_and_priority_go_along(self):
        world, live = two_steps(priority_levels=3, default_priority_level=2)
        world.submit(live, 1, deadline=50.0, timeout_s=7.0, priority=1)
        world.clock.tick()
        for name in ("add", "times"):
            (batch,) = world.models[name, ""].executor.running
            (request,) = batch.requests
            assert (request.call_deadline, request.timeout_s, request.priority) == (50.0, 7.0, 1)
            world.finish(name)

    def test_a_model_may_be_swapped_between_two_steps(self):
        world, live = two_steps()
        request = world.submit(live, 1)
        world.clock.tick()
        world.model("times", lambda z: [z * 100], inputs=("x",))
        world.finish("add", "times")
        assert values(request) == [200]

    def test_the_split_key_chooses_the_version_at_each_step(self):
        world, live = two_steps()
        canary = world.model("times", lambda x: [x * 1000], version="canary")
        request = Pending(live.spec.bind([tensor_of("in", np.ones((1, 1), np.float32))]), world.done.append)
        request.split_key = b"canary's"
        live.check_ready().submit(request)
        other = world.submit(live, 1)
        world.finish("add", "times")
        canary.executor.finish()
        assert (values(request), values(other)) == ([2000], [20])

    def test_a_model_is_bound_anew_when_it_is_swapped(self):
        world, live = two_steps()
        world.submit(live, 1)
        world.finish("add", "times")
        world.model("times", lambda x: [x], dims=(2,))
        request = world.submit(live, 1)
        world.finish("add")
        assert isinstance(request.error, ModelFailed)
        assert "expected [-1, 2]" in str(request.error)


class TestFailure:
    def test_a_first_step_that_refuses_raises_and_the_request_is_the_callers(self):
        world, live = two_steps(max_queue_size=1)
        world.submit(live, 1)
        with pytest.raises(QueueFull, match=r"ensemble 'e', step 1 \(model 'add'\): "):
            world.submit(live, 2)
        assert len(world.done) == 0
        assert live.intake.in_flight == 1
        assert live.intake.statistics().failures["REJECTED"] == 1

    def test_a_later_step_that_refuses_fails_the_request_with_its_class(self):
        world = World()
        world.model("add", lambda x: [x + 1])
        world.model("times", lambda x: [x], max_queue_size=1)
        live = world.ensemble("e", *chain_of("add", "times"))
        first, second = world.submit(live, 1), world.submit(live, 2)
        world.finish("add", "times")
        assert values(first) == [2]
        assert isinstance(second.error, QueueFull)
        assert str(second.error).startswith("ensemble 'e', step 2 (model 'times'): ")

    def test_a_model_that_raises_fails_the_request_and_no_step_follows(self):
        world, live = two_steps()
        request = world.submit(live, 1)
        world.clock.tick()
        world.models["add", ""].executor.finish(ModelFailed("it raised"))
        world.clock.tick()
        assert isinstance(request.error, ModelFailed)
        assert str(request.error) == "ensemble 'e', step 1 (model 'add'): it raised"
        assert world.models["times", ""].executor.started == []
        assert world.done == [request]

    def test_one_bad_request_takes_no_other_with_it(self):
        def picky(x):
            if (x == 13).any():
                raise ModelFailed("unlucky")
            return [x]

        world = World()
        world.model("add", lambda x: [x + 1])
        world.model("picky", picky, inline=True)
        live = world.ensemble("e", *chain_of("add", "picky"))
        good, bad = world.submit(live, 1), world.submit(live, 12)
        world.finish("add")
        assert values(good) == [2]
        assert "step 2 (model 'picky'): unlucky" in str(bad.error)

    @pytest.mark.parametrize("name", ["add", "times"])
    def test_a_model_that_is_gone_is_unavailable_and_not_the_callers_fault(self, name):
        world, live = two_steps()
        del world.models[name, ""]
        if name == "add":
            with pytest.raises(ModelNotReady, match=r"step 1 \(model 'add'\): no model 'add'"):
                world.submit(live, 1)
            return
        request = world.submit(live, 1)
        world.finish("add")
        assert isinstance(request.error, ModelNotReady)

    def test_a_model_that_is_unloading_is_unavailable(self):
        world, live = two_steps()
        request = world.submit(live, 1)
        world.models["times", ""].intake = None
        world.finish("add")
        assert isinstance(request.error, ModelNotReady)
        assert "'times' is unloading" in str(request.error)

    def test_what_the_first_model_does_not_take_is_the_callers_fault(self):
        world = World()
        world.model("add", lambda x: [x], dims=(2,))
        live = world.ensemble("e", *chain_of("add"), dims=(-1,))
        with pytest.raises(InvalidRequest, match=r"step 1 \(model 'add'\): .*expected \[-1, 2\]"):
            world.submit(live, 1)

    def test_what_a_model_made_and_the_next_does_not_take_is_the_servers_fault(self):
        world = World()
        world.model("add", lambda x: [x])
        world.model("wide", lambda x: [x], dims=(2,))
        live = world.ensemble("e", *chain_of("add", "wide"))
        request = world.submit(live, 1)
        world.finish("add")
        assert isinstance(request.error, ModelFailed)
        assert "step 2 (model 'wide'): the steps before have made what" in str(request.error)

    def test_booleans_that_a_model_made_are_looked_at_each_time(self):
        world = World()
        made = iter([b"\x01", b"\x02"])
        executor = PuppetExecutor(behaviour=lambda inputs: [Tensor("y", "BOOL", (1, 1), next(made))])
        spec = replace(model_spec(outputs=[tensor_spec("y", "BOOL")]), name="flag")
        batcher = Batcher(spec, executor, world.clock, Admission(2**30), 10)
        world.models["flag", ""] = Live(spec, batcher, executor)
        world.model("use", lambda x: [x], inline=True)
        world.models["use", ""].spec = replace(
            world.models["use", ""].spec, inputs=(tensor_spec("x", "BOOL"),)
        )
        live = world.ensemble("e", *chain_of("flag", "use"))
        good = world.submit(live, 1)
        world.finish("flag")
        bad = world.submit(live, 1)
        world.finish("flag")
        assert good.error is None
        assert isinstance(bad.error, ModelFailed)
        assert "neither 0 nor 1" in str(bad.error)

    def test_an_output_that_the_model_does_not_have_is_named(self):
        world = World()
        world.model("add", lambda x: [x])
        live = world.ensemble("e", step("add", {"x": "in"}, {"z": "out"}))
        request = world.submit(live, 1)
        world.finish("add")
        assert isinstance(request.error, ModelFailed)
        assert "the model gave ['y'], and the step needs 'z'" in str(request.error)

    def test_an_input_that_the_model_does_not_have_is_named(self):
        world = World()
        world.model("add", lambda x: [x])
        live = world.ensemble("e", step("add", {"x": "in", "w": "in"}, {"y": "out"}))
        with pytest.raises(InvalidRequest, match="unknown input 'w'"):
            world.submit(live, 1)

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ({"dims": (2,)}, "is FP32 of shape [1, 1], and its configuration says FP32 [1, 2]"),
            ({"datatype": "INT64"}, "is FP32 of shape [1, 1], and its configuration says INT64 [1, 1]"),
        ],
    )
    def test_an_output_that_is_not_as_configured_fails_the_request(self, more, expected):
        world = World()
        world.model("add", lambda x: [x])
        spec = replace(
            model_spec([tensor_spec("in")], [tensor_spec("out", **more)]),
            name="e",
            steps=tuple(chain_of("add")),
        )
        live = Live(spec, EnsembleIntake(spec, world.resolve, world.clock))
        request = world.submit(live, 1)
        world.finish("add")
        assert isinstance(request.error, ModelFailed)
        assert expected in str(request.error)

    def test_a_deadline_that_comes_in_a_later_queue_ends_the_request(self):
        world, live = two_steps()
        request = world.submit(live, 1, deadline=1.0)
        world.clock.tick()
        # The second model is busy with another's request until after the deadline.
        other = world.submit(world.models["times", ""], 7)
        world.finish("add")
        world.clock.advance(2.0)
        assert isinstance(request.error, DeadlineExceeded)
        assert "step 2 (model 'times')" in str(request.error)
        world.finish("times")
        assert values(other) == [70]
        assert live.intake.in_flight == 0


class TestEnd:
    @pytest.mark.parametrize("runs", [False, True])
    @pytest.mark.parametrize("finished", [0, 1])
    def test_cancelling_cancels_the_step_and_no_other_starts(self, runs, finished):
        world, live = two_steps()
        request = world.submit(live, 1)
        if finished:
            world.clock.tick()
            # Without a tick after it, the second step still waits.
            world.models["add", ""].executor.finish()
        if runs:
            world.clock.tick()
        live.cancel(request)
        assert isinstance(request.error, Cancelled)
        assert world.done == [request]
        world.clock.tick()
        for name in ("add", "times"):
            for _ in world.models[name, ""].executor.running:
                world.finish(name)
        assert world.done == [request]
        # A run that was cancelled goes to its end, and nothing follows.
        assert len(world.models["times", ""].executor.started) == (1 if finished and runs else 0)
        assert live.intake.in_flight == world.models["times", ""].statistics.running == 0
        assert live.intake.statistics().failures["CANCELED"] == 1

    def test_cancelling_twice_or_late_does_nothing(self):
        world, live = two_steps()
        request = world.submit(live, 1)
        world.finish("add", "times")
        live.cancel(request)
        live.cancel(request)
        assert values(request) == [20]

    def test_a_callback_may_submit_and_cancel(self):
        world, live = two_steps()
        second = []

        def again(request: Pending) -> None:
            second.append(world.submit(live, 5))
            live.cancel(other)

        request = Pending(live.spec.bind([tensor_of("in", np.ones((1, 1), np.float32))]), again)
        live.check_ready().submit(request)
        other = world.submit(live, 2)
        world.finish("add", "times")
        assert values(request) == [20]
        assert isinstance(other.error, Cancelled)
        world.finish("add", "times")
        assert values(second[0]) == [60]

    def test_what_waits_is_ended_and_what_runs_ends_after_its_run(self):
        world, live = two_steps()
        runs_last = world.submit(live, 1)
        world.finish("add")
        runs_first = world.submit(live, 2)
        world.clock.tick()
        waits = world.submit(live, 3)
        live.intake.fail_waiting(ModelNotReady("unloading"))
        assert str(waits.error) == "unloading"
        assert (runs_last.error, runs_first.error) == (None, None)
        world.finish("add", "times")
        assert values(runs_last) == [20]
        assert str(runs_first.error) == "unloading"
        assert live.intake.in_flight == 0

    def test_idle_is_awaited(self):
        async def wait() -> tuple[bool, bool]:
            world, live = two_steps()
            world.submit(live, 1)
            waiting = live.intake.wait_idle()
            coroutine = waiting.__await__()
            next(coroutine)
            early = bool(live.intake.in_flight)
            world.finish("add", "times")
            return early, not live.intake.in_flight

        assert run(wait()) == (True, True)

    def test_nothing_is_left_to_the_garbage_collector(self):
        world, live = two_steps()
        gc.collect()
        gc.disable()
        try:
            request = world.submit(live, 1)
            world.finish("add", "times")
            cancelled = world.submit(live, 1)
            live.cancel(cancelled)
            world.clock.tick()
            for model in ("add", "times"):
                world.models[model, ""].executor.started.clear()
            world.done.clear()
            del request, cancelled
            # A step that was cancelled stays in its model's queue for a while, and knows no other by then.
            left = [each for each in gc.get_objects() if type(each) is Pending]
        finally:
            gc.enable()
        assert left == []


class TestNested:
    def test_an_ensemble_may_be_a_step(self):
        world, inner = two_steps()
        live = world.ensemble(
            "outer", step("e", {"in": "in"}, {"out": "t"}), step("add", {"x": "t"}, {"y": "out"})
        )
        assert inner.spec.steps
        request = world.submit(live, 1)
        world.finish("add", "times", "add")
        assert values(request) == [21]

    def test_its_errors_name_the_way(self):
        world, _ = two_steps()
        live = world.ensemble("outer", step("e", {"in": "in"}, {"out": "out"}))
        request = world.submit(live, 1)
        world.clock.tick()
        world.models["add", ""].executor.finish(ModelFailed("it raised"))
        expected = "ensemble 'outer', step 1 (model 'e'): ensemble 'e', step 1 (model 'add'): it raised"
        assert str(request.error) == expected

    def test_cancelling_reaches_the_innermost_step(self):
        world, inner = two_steps()
        live = world.ensemble("outer", step("e", {"in": "in"}, {"out": "out"}))
        request = world.submit(live, 1)
        live.cancel(request)
        assert isinstance(request.error, Cancelled)
        assert inner.intake.in_flight == 0
        world.clock.tick()
        assert world.models["add", ""].executor.started == []

    def test_a_circle_ends(self):
        world = World()
        world.model("add", lambda x: [x + 1], inline=True)
        names = ("a", "b")
        for name, other in (names, names[::-1]):
            world.ensemble(
                name, step("add", {"x": "in"}, {"y": "t"}), step(other, {"in": "t"}, {"out": "out"})
            )
        request = world.submit(world.models["a", ""], 1)
        world.clock.tick()
        assert isinstance(request.error, ModelFailed)
        assert f"called by ensembles {MAX_DEPTH} deep" in str(request.error)
        assert world.models["add", ""].statistics.execution_count == MAX_DEPTH


class TestStatistics:
    def test_requests_rows_and_failures_are_counted_once(self):
        world, live = two_steps()
        world.submit(live, 1, 2, 3)
        world.submit(live, 4)
        world.clock.advance(0.5)
        world.finish("add")
        assert live.intake.statistics().running == 2
        world.finish("times")
        failing = world.submit(live, 5)
        world.clock.tick()
        world.models["add", ""].executor.finish(ModelFailed("no"))
        counts = live.intake.statistics()
        assert failing.error is not None
        assert (counts.success_count, counts.inference_count, counts.execution_count) == (2, 4, 2)
        assert counts.success_ns == 1_000_000_000
        assert (counts.failure_count, counts.failures["BACKEND"]) == (1, 1)
        assert (counts.waiting, counts.running) == (0, 0)


class TestMissing:
    def reasons(self, world: World, live: Live) -> list[str]:
        assert live.intake.missing() == missing(live.spec, world.resolve)
        return live.intake.missing()

    def test_nothing_is_missing_where_the_models_are_ready_and_fit(self):
        assert self.reasons(*two_steps()) == []

    def test_models_that_are_absent_or_not_ready_are_named(self):
        world, live = two_steps()
        del world.models["add", ""]
        world.models["times", ""].intake = None
        assert self.reasons(world, live) == [
            "step 1 (model 'add'): no model 'add'",
            "step 2 (model 'times'): model 'times' is unloading",
        ]

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ({"inputs": ("z",)}, "has no input 'x'; it takes ['z']"),
            ({"inputs": ("x", "z")}, "takes an input 'z', which input_map leaves out"),
            ({"outputs": ("z",)}, "has no output 'y'; it gives ['z']"),
            ({"max_batch_size": 0}, "has no batch dimension, and the ensemble's max_batch_size is above 0"),
            ({"max_batch_size": 4}, "takes 4 rows, fewer than the ensemble's max_batch_size 8"),
            ({"dims": (2,)}, "takes FP32 [-1, 2] as 'x', and 'in' is FP32 [-1, 1]"),
        ],
    )
    def test_a_model_that_does_not_fit_is_told_in_what(self, model, expected):
        world = World()
        world.model("m", lambda *x: x, **model)
        live = world.ensemble("e", *chain_of("m"))
        assert any(f"step 1 (model 'm') {expected}" in each for each in self.reasons(world, live))

    def test_a_model_that_splits_takes_as_many_rows_as_come(self):
        world = World()
        world.model("m", lambda x: [x], max_batch_size=4, split_oversized=True)
        assert self.reasons(world, world.ensemble("e", *chain_of("m"))) == []

    def test_a_tensor_between_two_models_must_fit_both(self):
        world = World()
        world.model("a", lambda x: [x])
        world.model("b", lambda x: [x], dims=(3,))
        reasons = self.reasons(world, world.ensemble("e", *chain_of("a", "b")))
        assert "step 2 (model 'b') takes FP32 [-1, 3] as 'x', and 't1' is FP32 [-1, 1]" in reasons
        assert "the output 'out' is FP32 [-1, 1] in the configuration, and FP32 [-1, 3] comes" in reasons

    def test_any_size_fits_any(self):
        world = World()
        world.model("a", lambda x: [x], dims=(-1,))
        world.model("b", lambda x: [x], dims=(3,))
        assert self.reasons(world, world.ensemble("e", *chain_of("a", "b"), dims=(-1,))) == []

    def test_a_circle_of_ensembles_is_seen(self):
        world = World()
        for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
            live = world.ensemble(name, step(other, {"in": "in"}, {"out": "out"}))
        assert any("calls 'c' in turn, which would never end" in each for each in self.reasons(world, live))

    def test_a_circle_among_others_is_too_deep(self):
        world = World()
        for name, other in (("a", "b"), ("b", "a"), ("outer", "a")):
            live = world.ensemble(name, step(other, {"in": "in"}, {"out": "out"}))
        assert any(f"more than {MAX_DEPTH} deep" in each for each in self.reasons(world, live))

    def test_as_many_levels_as_may_be_are_not_too_many(self):
        world = World()
        world.model("m", lambda x: [x + 1], inline=True)
        live = world.ensemble("e1", *chain_of("m"))
        for level in range(2, MAX_DEPTH + 1):
            live = world.ensemble(f"e{level}", step(f"e{level - 1}", {"in": "in"}, {"out": "out"}))
            assert self.reasons(world, live) == []
        request = world.submit(live, 1)
        world.clock.tick()
        assert values(request) == [2]
        deeper = world.ensemble("deeper", step(live.spec.name, {"in": "in"}, {"out": "out"}))
        assert self.reasons(world, deeper) != []


def test_models_come_before_the_ensembles_that_call_them():
    world, inner = two_steps()
    outer = world.ensemble("outer", step("e", {"in": "in"}, {"out": "out"}))
    specs = [outer.spec, inner.spec, *(world.models[name, ""].spec for name in ("add", "times"))]
    assert [each.name for each in members_first(specs)] == ["add", "times", "e", "outer"]


def test_ensembles_in_a_circle_come_last():
    world = World()
    world.model("m", lambda x: [x])
    for name, other in (("a", "b"), ("b", "a")):
        world.ensemble(name, step(other, {"in": "in"}, {"out": "out"}))
    specs = [world.models[name, ""].spec for name in ("a", "m", "b")]
    assert [each.name for each in members_first(specs)] == ["m", "a", "b"]


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.integers(1, 3)),
            st.tuples(st.sampled_from(["tick", "fail add", "fail times"]), st.none()),
            st.tuples(st.sampled_from(["finish add", "finish times"]), st.none()),
            st.tuples(st.sampled_from(["cancel", "fail waiting"]), st.integers(0, 10)),
        ),
        max_size=40,
    )
)
def test_every_request_has_one_outcome_whatever_happens(events):
    world, live = two_steps()
    requests: list[tuple[Pending, list[int]]] = []
    for number, (event, how) in enumerate(events):
        if event == "submit":
            given_values = [number * 10 + row for row in range(how)]
            requests.append((world.submit(live, *given_values), given_values))
        elif event == "tick":
            world.clock.tick()
        elif event == "cancel" and requests:
            live.cancel(requests[how % len(requests)][0])
        elif event == "fail waiting":
            live.intake.fail_waiting(ModelNotReady("unloading"))
        elif event.split()[-1] in ("add", "times"):
            executor = world.models[event.split()[-1], ""].executor
            if executor.running:
                executor.finish(ModelFailed("no") if event.startswith("fail") else None)
    for _ in range(500):
        world.clock.advance(1.0)
        for name in ("add", "times"):
            if world.models[name, ""].executor.running:
                world.models[name, ""].executor.finish()
        if not live.intake.in_flight:
            break
    assert live.intake.in_flight == 0
    assert sorted(map(id, world.done)) == sorted(id(request) for request, _ in requests)
    for request, given_values in requests:
        if request.error is None:
            assert values(request) == [(each + 1) * 10 for each in given_values]
    counts = live.intake.statistics()
    assert counts.success_count + counts.failure_count == len(requests)
