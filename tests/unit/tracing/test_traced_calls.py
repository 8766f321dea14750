"""Calls to the service that are traced, and what is told of those that fail."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from random import Random

import grpc
import pytest
from tests.unit.support import run
from tests.unit.tracing.support import NOT_SAMPLED, SAMPLED, KeptTraces

from tensorferry.batching.pending import NEVER, Pending
from tensorferry.batching.record import BatchRecord
from tensorferry.clock import LoopClock
from tensorferry.engine import Engine
from tensorferry.errors import Cancelled
from tensorferry.repository import scan
from tensorferry.service.answers import Answer, StreamCall, TracedCall
from tensorferry.service.inference import InferenceService
from tensorferry.service.plans import Plan, identify, model_of
from tensorferry.tensors import Tensor
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
    """Failures that were told of, as long as that is wanted."""

    is_flood = False
    counted = 0

    def count(self, code) -> bool:
        self.counted += 1
        return not self.is_flood

    def tell(self, code, error, model, request_id, trace_id="") -> None:
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
        outcome = await call.outcome
        call.on_cancel = None  # as a transport does when the call is over
        return outcome

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


def test_a_model_that_took_its_settings_back_is_as_all_others(root):
    async def scenario(bench):
        bench.tracer.apply("mlp", {"trace_rate": ["1"]})
        bench.tracer.apply("mlp", {"trace_rate": []})
        await bench.infer(asking())
        assert await bench.traces() == []

    with_bench(root, scenario)


@pytest.mark.parametrize("name", [b"mlp", b"x" * 127, b"x" * 128, b"", b"\xff\xfe"])
def test_the_models_name_is_found_without_parsing_where_it_comes_first(name):
    body = bytes([0x0A]) + varint(len(name)) + name + bytes([0x1A, 1]) + b"r"
    assert model_of(body) == identify(body)[0]
    elsewhere = bytes([0x1A, 1]) + b"r" + bytes([0x0A]) + varint(len(name)) + name
    assert model_of(elsewhere) == identify(elsewhere)[0]


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80, number >> 7])


@pytest.mark.parametrize("body", [b"", b"\x0a", b"\x0a\x05mlp", b"\xff" * 40])
def test_the_models_name_of_what_is_no_request_harms_nobody(body):
    assert isinstance(model_of(body), str)


def test_calls_are_drawn_as_the_tracer_says(root):
    """The service counts down by itself what the tracer has drawn."""

    async def scenario(bench):
        traces = KeptTraces()
        bench.service._tracer = tracer = Tracer(traces, LoopClock(), 3, 1e9, Random(7))
        for number in range(60):
            await bench.infer(asking(request_id=f"r-{number}"))
        await tracer.close()
        drawn = [trace.request_id for each in traces.sent for trace in each]
        other = Tracer(KeptTraces(), LoopClock(), 3, 1e9, Random(7))
        assert drawn == [f"r-{number}" for number in range(60) if other.sample(None, None) is not None]
        assert 10 < len(drawn) < 40

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


@pytest.mark.parametrize("is_flood", [True, False])
@pytest.mark.parametrize("body", [asking("nobody"), asking(features=7)], ids=["unknown", "wrong"])
def test_nobody_looks_who_it_was_that_a_flood_is_of(root, body, is_flood):
    async def scenario(bench):
        called = []
        bench.failures.is_flood = is_flood
        sys.setprofile(lambda frame, event, _: called.append(frame.f_code) if event == "call" else None)
        try:
            await bench.infer(body)
        finally:
            sys.setprofile(None)
        assert bench.failures.counted == 1
        assert len(bench.failures) == (not is_flood)
        assert (identify.__code__ in called) == (not is_flood)

    with_bench(root, scenario, rate=None)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_an_answer_is_wrapped_for_a_stream_as_protobuf_would(size):
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=[bytes(size)])
    whole = pb.ModelStreamInferResponse(infer_response=response)
    assert in_stream(response.SerializeToString()) == whole.SerializeToString()


def test_an_answer_that_protobuf_would_not_parse_ends_its_message_and_no_other():
    message = b"\xff" * 200  # as one of more than 2 GiB is none
    assert in_stream(message).endswith(message)


def in_stream(message: bytes) -> bytes:
    """What a stream's call makes of an answer."""

    async def scenario():
        future = asyncio.get_running_loop().create_future()
        StreamCall(future, b"", NEVER, (None, None)).reply(message)
        return await future

    return run(scenario())


def test_a_traced_call_whose_request_failed_at_once_leaves_nothing_to_the_garbage_collector(root):
    async def scenario(bench):
        live = bench.service._engine.resolve("mlp", "")
        request = Pending(live.spec.bind([tensor]), lambda _: None)
        gc.collect()
        gc.disable()
        try:
            call = Call()
            traced = TracedCall(call, bench.tracer.sample(None, None), bench.tracer)
            request.on_done = Answer(traced, Plan(live, request.bound), b"r", None)
            request.fail(Cancelled("a piece of it was refused"))
            traced.submitted(Plan(live, request.bound), b"r", request)
            gone = weakref.ref(call)
            del call, traced, request
            assert len(await bench.traces()) == 1
            bench.sink.sent.clear()
            assert gone() is None
        finally:
            gc.enable()

    tensor = Tensor("features", "FP32", (1, 30), bytes(120))
    with_bench(root, scenario, rate=1)


def test_the_record_of_a_batch_goes_with_its_last_trace(root):
    """It leads to all of the batch's outputs."""

    def records():
        return sum(type(each) is BatchRecord for each in gc.get_objects())

    async def scenario(bench):
        gc.collect()
        gc.disable()
        try:
            before = records()
            await asyncio.gather(*(bench.infer(asking(request_id=name), SAMPLED) for name in "abc"))
            await bench.traces()
            assert records() > before
            bench.sink.sent.clear()
            assert records() == before
        finally:
            gc.enable()

    with_bench(root, scenario)
