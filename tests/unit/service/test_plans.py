"""Recognising a request's form must give what parsing it gives, for every body there is."""

import asyncio

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorferry.batching.pending import Pending
from tensorferry.engine import Engine
from tensorferry.errors import TensorferryError
from tensorferry.repository import scan as scan_repository
from tensorferry.service import plans
from tensorferry.service.codec import encode_response
from tensorferry.service.plans import Plan, Planner
from tensorferry.tensors import Tensor, rows_of
from tensorferry.testing.models import write_mlp, write_two_inputs
from tensorferry.wire import open_inference_pb2 as pb

_scan = pytest.importorskip("tensorferry.service._scan", reason="the _scan extension isn't built")


def fraud(rows=1, **more):
    message = pb.ModelInferRequest(model_name="mlp", **more)
    message.inputs.add(name="features", datatype="FP32", shape=[rows, 30])
    message.raw_input_contents.append(bytes(120 * rows))
    return message


class _NoScan(Planner):
    """Parses every time."""

    def decode(self, body):
        return self._parse(body)


def outcome(planner, body):
    try:
        plan, identity, parts, split_key = planner.decode(body)
    except TensorferryError as error:
        return type(error), str(error)
    shapes = [(each.name, each.datatype, each.shape) for each in plan.bound.tensors]
    data = [bytes(part) for part in parts]
    return (
        plan.live.spec.name,
        plan.requested,
        plan.timeout_s,
        shapes,
        plan.bound.rows,
        identity,
        data,
        split_key,
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_mlp(root)
    write_two_inputs(root)

    async def load():
        engine = Engine(64, 2**30)
        await engine.load_all(scan_repository(root))
        return engine

    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(load())
    yield engine
    loop.run_until_complete(engine.close())
    loop.close()


names = st.sampled_from(["mlp", "two_inputs", "features", "a", "b", "nobody", "", "score"])
values = st.builds(pb.InferParameter, int64_param=st.integers(-5, 5))
values |= st.builds(pb.InferParameter, string_param=st.text(max_size=3))
parameters = st.dictionaries(st.sampled_from(["timeout", "other", "split_key", "label"]), values, max_size=3)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=names,
    datatype=st.sampled_from(["FP32", "INT64", "BOOL", "", "BYTES"]),
    shape=st.lists(st.sampled_from([1, 2, 30, 0, -1, 2**40]), max_size=3),
)
messages = st.builds(
    pb.ModelInferRequest,
    model_name=names,
    model_version=st.sampled_from(["", "1", "2", "x"]),
    id=st.text(max_size=5),
    parameters=parameters,
    inputs=st.lists(inputs, max_size=3),
    outputs=st.lists(st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=names), max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=8) | st.just(bytes(120)), max_size=3),
)
split_keys = st.builds(pb.InferParameter, string_param=st.text(max_size=5))
valid = st.builds(
    fraud,
    rows=st.integers(1, 3),
    id=st.text(max_size=5),
    parameters=st.dictionaries(st.just("split_key"), split_keys, max_size=1),
)
mutations = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3)


@settings(max_examples=400, deadline=None)
@given(message=messages | valid, mutation=mutations)
def test_a_recognised_request_is_what_parsing_it_gives(engine, message, mutation):
    body = bytearray(message.SerializeToString())
    for place, value in mutation:
        if body:
            body[place % len(body)] = value
    planner = Planner(engine)
    expected = outcome(_NoScan(engine), bytes(body))
    assert outcome(planner, bytes(body)) == expected
    assert outcome(planner, bytes(body)) == expected, "the second time, from the plan"


@settings(max_examples=400, deadline=None)
@given(body=st.binary(max_size=60) | messages.map(lambda message: message.SerializeToString()))
def test_key_id_and_raw_contents_make_up_the_body(body):
    scanned = _scan.scan(body)
    if scanned is None:
        return
    key, identity, raws, split_key = scanned
    try:
        rest = pb.ModelInferRequest.FromString(key)
        rest.id = identity.decode()
        if split_key:
            rest.parameters["split_key"].string_param = split_key.decode()
    except (DecodeError, UnicodeDecodeError):
        with pytest.raises(DecodeError):
            pb.ModelInferRequest.FromString(body)
        return
    rest.raw_input_contents.extend(bytes(raw) for raw in raws)
    assert pb.ModelInferRequest.FromString(body) == rest


def _keyed(split_key):
    message = fraud()
    message.parameters["split_key"].string_param = split_key
    return message


def test_requests_of_one_form_share_a_plan_and_keep_no_data(engine):
    planner = Planner(engine)
    first, *_ = planner.decode(fraud(id="1").SerializeToString())
    second, identity, *_ = planner.decode(fraud(id="2").SerializeToString())
    assert first is second
    assert identity == b"2"
    keyed, *_, split_key = planner.decode(_keyed("a").SerializeToString())
    assert (planner.decode(_keyed("b").SerializeToString())[0], split_key) == (keyed, b"a")
    assert keyed is first, "a split key is no part of the form"
    assert not any(tensor.data for tensor in first.bound.tensors)


def test_forms_differ_by_rows_version_and_parameters(engine):
    planner = Planner(engine)
    bodies = [fraud(), fraud(rows=2), fraud(model_version="1")]
    bodies.append(fraud(parameters={"timeout": pb.InferParameter(int64_param=1)}))
    assert len({id(planner.decode(body.SerializeToString())[0]) for body in bodies}) == 4


def test_data_of_another_size_is_checked_anew(engine):
    planner = Planner(engine)
    planner.decode(fraud().SerializeToString())
    wrong = fraud()
    wrong.raw_input_contents[0] = bytes(116)
    assert outcome(planner, wrong.SerializeToString())[1].endswith(
        "has 116 bytes, and shape [1, 30] of FP32 takes 120"
    )


def test_plans_are_bounded(engine, monkeypatch):
    monkeypatch.setattr(plans, "MAX_PLANS", 2)
    planner = Planner(engine)
    for version in ("", "1", "01", "001", "0001"):
        planner.decode(fraud(model_version=version).SerializeToString())
    assert len(planner._plans) <= 2


def test_a_large_content_is_a_view_of_the_body():
    message = pb.ModelInferRequest(raw_input_contents=[bytes(8192)])
    _, _, (content,), _ = _scan.scan(message.SerializeToString())
    assert isinstance(content, memoryview)


outputs_of_a_batch = st.integers(1, 6).flatmap(
    lambda rows: st.tuples(
        st.just(rows),
        st.lists(
            st.tuples(st.sampled_from("xyz"), st.lists(st.integers(0, 3), max_size=2)), min_size=1, max_size=3
        ),
    )
)


@settings(max_examples=200, deadline=None)
@given(shape=outputs_of_a_batch, identity=st.text(max_size=200), data=st.data())
def test_joined_replies_are_protobufs_own_bytes(engine, shape, identity, data):
    batch_rows, described = shape
    outputs = []
    for name, dims in described:
        row_bytes = 1
        for size in dims:
            row_bytes *= size
        content = bytes(range(256))[: row_bytes * batch_rows].ljust(row_bytes * batch_rows, b"-")
        outputs.append(Tensor(name, "UINT8", (batch_rows, *dims), memoryview(content)))
    first_row = data.draw(st.integers(0, batch_rows - 1))
    rows = data.draw(st.integers(1, batch_rows - first_row))
    plan, *_ = Planner(engine).decode(fraud(rows=rows).SerializeToString())
    request = Pending(plan.bound, lambda _: None)
    request.finish(outputs, first_row, batch_rows)
    joined = plan.encode(identity.encode(), request)
    mine = [rows_of(output, first_row, rows) for output in outputs]
    assert joined == encode_response(plan.live.spec, identity, mine).SerializeToString()
    assert isinstance(plan, Plan)
