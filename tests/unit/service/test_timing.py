"""What a response tells of its own time, and what asking for it costs those who don't."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.unit.tracing.support import batch_record

from tensorferry.batching.pending import Pending
from tensorferry.engine import Engine
from tensorferry.errors import InvalidRequest
from tensorferry.repository import scan
from tensorferry.service.plans import Plan, Planner
from tensorferry.service.timing import timing_parameters
from tensorferry.tensors import tensor_of
from tensorferry.testing.models import write_mlp
from tensorferry.wire import open_inference_pb2 as pb


def parameters_of(serialised: bytes) -> dict[str, object]:
    response = pb.ModelInferResponse.FromString(serialised)
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in response.parameters.items()
    }


def pending(enqueued_at: float, record=None) -> Pending:
    made = Pending.__new__(Pending)
    made.enqueued_at = enqueued_at
    made.record = record
    return made


def test_the_breakdown_says_where_the_time_went():
    request = pending(1.5, batch_record(started_at=2.0, ended_at=3.0))
    assert parameters_of(timing_parameters(request, 3.25)) == {
        "timing_total_us": 1_750_000,
        "timing_queue_us": 500_000,
        "timing_hold_us": 250_000,
        "timing_run_us": 600_000,
        "timing_batch_rows": 5,
        "timing_batch_requests": 3,
        "timing_batch_reason": "hold",
    }


def test_an_answer_that_was_kept_says_so():
    assert parameters_of(timing_parameters(pending(1.0), 1.00025)) == {
        "timing_total_us": 250,
        "timing_cached": True,
    }


def test_an_ensemble_has_the_total_alone():
    assert parameters_of(timing_parameters(pending(1.0), 1.5, is_ensemble=True)) == {
        "timing_total_us": 500_000
    }


def test_who_joined_a_run_that_had_left_waited_for_nothing():
    request = pending(2.5, batch_record(started_at=2.0, ended_at=3.0))
    assert parameters_of(timing_parameters(request, 3.0))["timing_queue_us"] == 0


# -- plans ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_mlp(root)
    loop = asyncio.new_event_loop()

    async def load():
        engine = Engine(64, 2**30)
        await engine.load_all(scan(root))
        return engine

    engine = loop.run_until_complete(load())
    yield Planner(engine)
    loop.run_until_complete(engine.close())
    loop.close()


def asking(value: pb.InferParameter | None = None) -> bytes:
    message = pb.ModelInferRequest(model_name="mlp", id="r-1")
    message.inputs.add(name="features", datatype="FP32", shape=[1, 30])
    message.raw_input_contents.append(bytes(120))
    if value is not None:
        message.parameters["timing"].CopyFrom(value)
    return message.SerializeToString()


def answered(plan: Plan) -> pb.ModelInferResponse:
    request = Pending(plan.bound, lambda _: None)
    output = tensor_of("score", np.array([[0.5], [0.25]], dtype=np.float32))
    request.record = batch_record(started_at=2.0, ended_at=3.0)
    request.finish([output], 1, 2)
    return pb.ModelInferResponse.FromString(plan.encode(b"r-1", request))


def test_a_response_has_the_breakdown_beside_all_that_it_has_anyway(planner):
    plain = answered(planner.decode(asking())[0])
    for _ in range(2):  # the second time from the plan that the first has taught
        timed = answered(planner.decode(asking(pb.InferParameter(bool_param=True)))[0])
        assert timed.parameters["timing_batch_rows"].int64_param == 5
        timed.parameters.clear()
        assert timed == plain
    assert not plain.parameters


def test_false_asks_for_nothing(planner):
    assert not answered(planner.decode(asking(pb.InferParameter(bool_param=False)))[0]).parameters


@pytest.mark.parametrize(
    "value",
    [pb.InferParameter(string_param="true"), pb.InferParameter(int64_param=1), pb.InferParameter()],
    ids=["text", "number", "nothing"],
)
def test_anything_but_a_bool_is_refused(planner, value):
    with pytest.raises(InvalidRequest, match=r"'timing' must be true or false \(bool_param\)"):
        planner.decode(asking(value))


def test_plain_requests_have_a_plan_that_knows_no_timing(planner):
    assert type(planner.decode(asking())[0]) is Plan
