"""Calls to the service that are traced, and what is told of those that fail."""

from __future__ import annotations

import asyncio
import gc
import weakref

import grpc
import pytest
from tests.unit.support import run
from tests.unit.tracing.support import NOT_SAMPLED, SAMPLED, KeptTraces

from tensorferry.batching.pending import NEVER
from tensorferry.clock import LoopClock
from tensorferry.engine import Engine
from tensorferry.repository import scan
from tensorferry.service.inference import InferenceService
from tensorferry.testing.models import write_mlp
from tensorferry.tracing import Tracer
from tensorferry.wire import open_inference_pb2 as pb

TRACE_ID = SAMPLED[3:35].decode()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_mlp(root)
    return root


class Call:
    """A unary call as a transport gives it."""

    def __init__(self, traceparent=None) -> None:
        self.deadline = NEVER
        self.on_cancel = None
        self.traceparent = traceparent
        self.tracestate = None
        self.outcome = asyncio.get_running_loop().create_future()

    def reply(self, message: bytes) -> None:
        self.outcome.set_result(pb.ModelInferResponse.FromString(message))

    def fail(self, code, details: str) -> None:
        self.outcome.set_result((code, details))


class Context:
    """What a stream's handler asks of its call."""

    def __init__(self, *metadata) -> None:
        self._metadata = metadata

    def invocation_metadata(self):
        return self._metadata

    def time_remaining(self):
        return None


class Noted(list):
    """Failures that were told of."""

    def note(self, code, error, model, request_id, trace_id="") -> None:
        self.append((code, type(error).__name__, model, request_id, trace_id))


class Bench:
    """A service on a real engine, its traces and its failures."""

    def __init__(self, engine, rate) -> None:
        self.sink = KeptTraces()
        self.tracer = None if rate is None else Tracer(self.sink, LoopClock(), rate, 1e9)
        self.failures = Noted()
        self.service = InferenceService(engine, self.tracer, self.failures)

    async def infer(self, body, traceparent=None):
        call = Call(traceparent)
        self.service.infer(call, body)
        return await call.outcome

    async def stream(self, bodies, *metadata):
        async def messages():
            for body in bodies:
                yield body

        answers = self.service.ModelStreamInfer(messages(), Context(*metadata))
        return [pb.ModelStreamInferResponse.FromString(answer) async for answer in answers]

    async def traces(self):
        if self.tracer is not None:
            await self.tracer.close()
        return [trace for traces in self.sink.sent for trace in traces]


def with_bench(root, scenario, rate=0):
    async def whole():
        engine = Engine(64, 2**30)
        await engine.load_all(scan(root))
        try:
            return await scenario(Bench(engine, rate))
        finally:
            await engine.close()

    return run(whole())


def asking(model="mlp", features=30, request_id="r-1") -> bytes:
    message = pb.ModelInferRequest(model_name=model, id=request_id)
    message.inputs.add(name="features", datatype="FP32", shape=[2, features])
    message.raw_input_contents.append(bytes(8 * features))
    return message.SerializeToString()


def test_a_call_that_its_caller_samples_is_traced(root):
    async def scenario(bench):
        answer = await bench.infer(asking(), SAMPLED)
        assert answer.id == "r-1"
        (trace,) = await bench.traces()
        assert f"{trace.trace_id:032x}" == TRACE_ID
        assert (trace.model, trace.version, trace.request_id, trace.rows) == ("mlp", 1, "r-1", 2)
        assert (trace.method, trace.code) == ("ModelInfer", 0)
        assert trace.record.rows == 2
        instants = [trace.received_at, trace.submitted_at, trace.record.started_at, trace.record.ended_at]
        assert [*instants, trace.ended_at] == sorted([*instants, trace.ended_at])

    with_bench(root, scenario)


def test_others_are_not(root):
    async def scenario(bench):
        for header in (None, NOT_SAMPLED, b"garbage", b"\xff" * 4096):
            assert (await bench.infer(asking(), header)).id == "r-1"
        assert await bench.traces() == []

    with_bench(root, scenario)


@pytest.mark.parametrize(
    ("body", "code", "known"),
    [
        (asking("nobody"), grpc.StatusCode.NOT_FOUND, ("nobody", "r-1")),
        (asking(features=7), grpc.StatusCode.INVALID_ARGUMENT, ("mlp", "r-1")),
        (b"\xff" * 40, grpc.StatusCode.INVALID_ARGUMENT, ("", "")),
    ],
    ids=["unknown", "wrong", "garbage"],
)
def test_a_refused_call_is_traced_and_told_with_its_status(root, body, code, known):
    async def scenario(bench):
        refused, details = await bench.infer(body, SAMPLED)
        assert refused is code
        (trace,) = await bench.traces()
        assert (trace.code, trace.details) == (code.value[0], details)
        assert (trace.model, trace.request_id) == known
        assert trace.record is None
        ((noted, _, model, request_id, trace_id),) = bench.failures
        assert (noted, model, request_id, trace_id) == (code, *known, TRACE_ID)

    with_bench(root, scenario)


def test_the_trace_id_of_a_failure_is_told_though_the_call_is_not_traced(root):
    async def scenario(bench):
        await bench.infer(asking("nobody"), NOT_SAMPLED)
        assert bench.failures[0][4] == TRACE_ID
        assert await bench.traces() == []

    with_bench(root, scenario)


def test_failures_are_told_without_a_tracer(root):
    async def scenario(bench):
        await bench.infer(asking("nobody"))
        assert bench.failures == [(grpc.StatusCode.NOT_FOUND, "NotFound", "nobody", "r-1", "")]

    with_bench(root, scenario, rate=None)


def test_an_expired_call_is_traced_as_far_as_it_came(root):
    async def scenario(bench):
        call = Call(SAMPLED)
        bench.service.infer(call, asking())
        call.on_cancel()
        code, _ = await call.outcome
        assert code is grpc.StatusCode.CANCELLED
        (trace,) = await bench.traces()
        assert trace.code == code.value[0]
        assert trace.submitted_at >= trace.received_at
        assert trace.record is None
        assert [noted[0] for noted in bench.failures] == [code]

    with_bench(root, scenario)


def test_a_streams_context_is_that_of_all_its_messages(root):
    async def scenario(bench):
        bodies = [asking(request_id=f"r-{number}") for number in range(3)] + [asking("nobody")]
        answers = await bench.stream(bodies, ("traceparent", SAMPLED.decode()))
        assert [answer.infer_response.id for answer in answers] == ["r-0", "r-1", "r-2", "r-1"]
        traces = await bench.traces()
        assert {f"{trace.trace_id:032x}" for trace in traces} == {TRACE_ID}
        assert {trace.method for trace in traces} == {"ModelStreamInfer"}
        assert sorted((trace.request_id, trace.code) for trace in traces) == [
            ("r-0", 0),
            ("r-1", 0),
            ("r-1", 5),
            ("r-2", 0),
        ]
        assert len(bench.failures) == 1

    with_bench(root, scenario)


def test_a_model_with_settings_of_its_own_is_found_by_its_name(root):
    async def scenario(bench):
        bench.tracer.apply("mlp", {"trace_rate": ["1"]})
        await bench.infer(asking())
        await bench.infer(asking("nobody"))
        assert [trace.model for trace in await bench.traces()] == ["mlp"]

    with_bench(root, scenario)


def test_a_traced_call_leaves_nothing_to_the_garbage_collector(root):
    async def scenario(bench):
        gc.collect()
        gc.disable()
        try:
            call = Call(SAMPLED)
            bench.service.infer(call, asking())
            await call.outcome
            call.on_cancel = None  # as a transport does when the call is over
            gone = weakref.ref(call)
            del call
            for _ in range(4):
                await asyncio.sleep(0)
            assert gone() is None
        finally:
            gc.enable()

    with_bench(root, scenario)
