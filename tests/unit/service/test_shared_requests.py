"""Requests with tensors in shared memory: from a message to parts, and from outputs to a reply."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.unit.support import run

from tensorferry.batching.pending import Pending
from tensorferry.engine import Engine
from tensorferry.errors import InvalidRequest, NotFound, QueueFull
from tensorferry.repository import scan as scan_repository
from tensorferry.service.answers import Answer
from tensorferry.service.large_copies import LargeAnswer, LargeCopies
from tensorferry.service.plans import Plan
from tensorferry.service.shared_memory import Regions
from tensorferry.service.shared_requests import INLINE_BYTES, LargeRequest, SharedPlanner
from tensorferry.tensors import Tensor
from tensorferry.testing.models import write_identity, write_two_inputs
from tensorferry.wire import open_inference_pb2 as pb

SIZE = 4096


class _NoScan(SharedPlanner):
    """Parses every time."""

    def decode(self, body):
        return self._parse(body)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_two_inputs(root)
    write_identity(root, "flags", "BOOL", dims=(2,))
    write_identity(root, "large", "UINT8", dims=(-1,), max_batch_size=8)

    async def load():
        engine = Engine(64, 2**30)
        await engine.load_all(scan_repository(root))
        return engine

    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(load())
    yield engine
    loop.run_until_complete(engine.close())
    loop.close()


@pytest.fixture
def shm(tmp_path):
    (tmp_path / "object").write_bytes(bytes(SIZE))
    return tmp_path


@pytest.fixture
def regions(shm):
    regions = Regions(True, directory=str(shm))
    register(regions, "r")
    return regions


@pytest.fixture(params=[SharedPlanner, _NoScan])
def planner(request, engine, regions):
    return request.param(engine, regions)


def register(regions, name, key="/object", byte_size=SIZE):
    change = {"object": key, "offset": 0, "byte_size": byte_size, "ticket": f"{name} is {key}"}
    regions.apply("", {name: change})


def fill(shm, offset, data, key="object"):
    with open(shm / key, "r+b") as file:
        file.seek(offset)
        file.write(data)


def put(tensor, byte_size, offset=0, region="r"):
    """Say in a tensor's parameters where it lies, as tritonclient does."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def two(rows=1, order=("offset", "values"), **more):
    """A request for two_inputs with no data yet."""
    message = pb.ModelInferRequest(model_name="two_inputs", **more)
    shapes = {"offset": ("INT64", 1), "values": ("FP32", 3)}
    for name in order:
        message.inputs.add(name=name, datatype=shapes[name][0], shape=[rows, shapes[name][1]])
    return message


def both_shared(**more):
    message = two(**more)
    put(message.inputs[0], 8)
    put(message.inputs[1], 12, 100)
    return message


def decoded(planner, message):
    form, identity, parts, split_key = planner.decode(message.SerializeToString())
    return form, identity, [bytes(part) for part in parts], split_key


def refused(planner, message, kind=InvalidRequest):
    with pytest.raises(kind) as caught:
        planner.decode(message.SerializeToString())
    return str(caught.value)


def test_inputs_are_read_anew_for_each_request_of_a_form(planner, shm):
    for number in range(3):
        offset, values = np.int64([number]).tobytes(), np.float32([number] * 3).tobytes()
        fill(shm, 0, offset)
        fill(shm, 100, values)
        message = both_shared(id=str(number))
        message.parameters["split_key"].string_param = "me"
        form, identity, parts, split_key = decoded(planner, message)
        assert (parts, identity, split_key) == ([offset, values], str(number).encode(), b"me")
        assert [tensor.name for tensor in form.bound.tensors] == ["offset", "values"]
        assert (form.bound.rows, form.bound.byte_size) == (1, 20)


@pytest.mark.parametrize("order", [("offset", "values"), ("values", "offset")])
@pytest.mark.parametrize("shared", ["offset", "values"])
def test_some_inputs_may_be_shared_and_others_raw(planner, shm, order, shared):
    fill(shm, 8, b"s" * 12)
    for raw in (b"a", b"b"):
        message = two(order=order)
        for each in message.inputs:
            size = 8 if each.name == "offset" else 12
            if each.name == shared:
                put(each, size, 8)
            else:
                message.raw_input_contents.append(raw * size)
        parts = decoded(planner, message)[2]
        expected = {"offset": raw * 8, "values": raw * 12} | {
            shared: b"s" * (8 if shared == "offset" else 12)
        }
        assert parts == [expected["offset"], expected["values"]]


def test_some_inputs_may_be_shared_and_others_typed(planner, shm):
    fill(shm, 100, b"v" * 12)
    for number in (1, 2):
        message = two()
        message.inputs[0].contents.int64_contents.append(number)
        put(message.inputs[1], 12, 100)
        assert decoded(planner, message)[2] == [np.int64([number]).tobytes(), b"v" * 12]


def test_a_form_names_its_region_and_another_object_may_get_the_name(planner, regions, shm):
    message = both_shared()
    decoded(planner, message)
    regions.apply("", {"r": None})
    assert "'r'" in refused(planner, message, NotFound)
    (shm / "other").write_bytes(b"o" * SIZE)
    register(regions, "r", "/other")
    assert decoded(planner, message)[2] == [b"o" * 8, b"o" * 12]


def test_a_form_does_not_outlive_the_room_in_its_region(planner, regions):
    message = both_shared()
    decoded(planner, message)
    regions.apply("", {"r": None})
    register(regions, "r", byte_size=111)
    assert "which has 111" in refused(planner, message)


def test_requests_beside_shared_ones_are_decoded_as_ever(planner):
    message = two()
    message.raw_input_contents.extend([b"1" * 8, b"2" * 12])
    for _ in range(2):
        form, _, parts, _ = decoded(planner, message)
        assert isinstance(form, Plan)
        assert parts == [b"1" * 8, b"2" * 12]
        decoded(planner, both_shared())


def test_a_bool_in_shared_memory_is_looked_at_each_time(planner, shm):
    message = pb.ModelInferRequest(model_name="flags")
    put(message.inputs.add(name="x", datatype="BOOL", shape=[1, 2]), 2)
    assert decoded(planner, message)[2] == [b"\0\0"]
    fill(shm, 0, b"\1\2")
    assert "BOOL" in refused(planner, message)
    fill(shm, 0, b"\1\0")
    assert decoded(planner, message)[2] == [b"\1\0"]


def changed(change):
    message = both_shared()
    change(message)
    return message


def parameter(index, name, **value):
    def change(message):
        message.inputs[index].parameters[name].CopyFrom(pb.InferParameter(**value))

    return change


def lost(name):
    def change(message):
        del message.inputs[0].parameters[name]

    return change


def with_contents(message):
    message.inputs[0].contents.int64_contents.append(1)


def with_raw(message):
    message.raw_input_contents.append(b"12345678")


def twice(message):
    message.inputs[1].CopyFrom(message.inputs[0])


def shared_output(message):
    put(message.outputs.add(name="score"), 8)


WRONG = {
    "too few bytes": (parameter(0, "shared_memory_byte_size", int64_param=7), "7 bytes"),
    "too many bytes": (parameter(0, "shared_memory_byte_size", int64_param=9), "9 bytes"),
    "a negative size": (parameter(0, "shared_memory_byte_size", int64_param=-8), "shared_memory_byte_size"),
    "a size in words": (
        parameter(0, "shared_memory_byte_size", string_param="8 B"),
        "shared_memory_byte_size",
    ),
    "no size": (lost("shared_memory_byte_size"), "shared_memory_byte_size"),
    "no region": (lost("shared_memory_region"), "shared_memory_region"),
    "a region that is no text": (parameter(0, "shared_memory_region", int64_param=1), "shared_memory_region"),
    "a negative offset": (parameter(0, "shared_memory_offset", int64_param=-1), "shared_memory_offset"),
    "a place behind the end": (parameter(0, "shared_memory_offset", int64_param=SIZE - 7), "end behind"),
    "a place far behind": (parameter(0, "shared_memory_offset", uint64_param=2**64 - 1), "end behind"),
    "contents, too": (with_contents, "contents"),
    "raw contents, too": (with_raw, "raw_input_contents"),
    "the same input twice": (twice, "twice"),
    "an unknown output": (shared_output, "score"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_places_are_refused(planner, what):
    change, says = WRONG[what]
    for _ in range(2):
        message = changed(change)
        assert says in refused(planner, message)


def test_an_unknown_model_is_not_found_whatever_else_is_wrong(planner):
    message = both_shared()
    message.model_name = "nobody"
    del message.inputs[0].parameters["shared_memory_byte_size"]
    assert "nobody" in refused(planner, message, NotFound)


def test_missing_raw_contents_beside_a_shared_input_are_missed(planner):
    message = two()
    put(message.inputs[0], 8)
    assert "'values' has no data" in refused(planner, message)


def test_an_object_that_was_truncated_fails_the_request(planner, shm):
    message = both_shared()
    decoded(planner, message)
    (shm / "object").write_bytes(bytes(50))
    assert "truncated" in refused(planner, message)


def answered(form, rows=1, first_row=0, batch_rows=4):
    """A request of a form that was answered with its rows of a batch."""
    request = Pending(form.bound, lambda _: None)
    request.batch_outputs = [
        Tensor("sum", "FP32", (batch_rows, 3), np.arange(3 * batch_rows, dtype=np.float32).tobytes()),
        Tensor("negated", "INT64", (batch_rows, 1), np.arange(batch_rows).tobytes()),
    ]
    request.first_row, request.batch_rows = first_row, batch_rows
    return request


def parameters_of(output):
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in output.parameters.items()
    }


def test_an_output_is_written_to_its_place_and_the_others_are_in_the_reply(planner, shm):
    message = both_shared()
    put(message.outputs.add(name="sum"), 64, 200)
    message.outputs.add(name="negated")
    for _ in range(2):
        fill(shm, 0, bytes(SIZE))
        form = decoded(planner, message)[0]
        reply = pb.ModelInferResponse.FromString(form.encode(b"7", answered(form, first_row=2)))
        assert (reply.model_name, reply.model_version, reply.id) == ("two_inputs", "1", "7")
        assert [output.name for output in reply.outputs] == ["sum", "negated"]
        # One entry for each output: clients count them.
        assert list(reply.raw_output_contents) == [b"", np.int64([2]).tobytes()]
        assert parameters_of(reply.outputs[0]) == {
            "shared_memory_region": "r",
            "shared_memory_byte_size": 12,
            "shared_memory_offset": 200,
        }
        assert list(reply.outputs[0].shape) == [1, 3]
        assert not reply.outputs[1].parameters
        data = (shm / "object").read_bytes()
        assert data[200:212] == np.float32([6, 7, 8]).tobytes()
        assert not any(data[:200] + data[212:])


def test_outputs_may_be_shared_where_inputs_are_not(planner, shm):
    message = two()
    message.raw_input_contents.extend([bytes(8), bytes(12)])
    put(message.outputs.add(name="negated"), 8)
    form = decoded(planner, message)[0]
    reply = pb.ModelInferResponse.FromString(form.encode(b"", answered(form, first_row=3)))
    assert list(reply.raw_output_contents) == [b""]
    assert (shm / "object").read_bytes()[:8] == np.int64([3]).tobytes()


def test_a_reply_has_its_timing_if_that_was_asked_for(planner):
    message = both_shared()
    message.parameters["timing"].bool_param = True
    put(message.outputs.add(name="sum"), 12)
    form = decoded(planner, message)[0]
    reply = pb.ModelInferResponse.FromString(form.encode(b"", answered(form)))
    assert "timing_total_us" in reply.parameters


def test_an_output_larger_than_its_place_is_not_written(planner, shm):
    message = both_shared()
    put(message.outputs.add(name="sum"), 11)
    form = decoded(planner, message)[0]
    with pytest.raises(InvalidRequest, match="takes 12 bytes, and the request gives it 11"):
        form.encode(b"", answered(form, first_row=1))
    assert not any((shm / "object").read_bytes())


def test_an_output_whose_object_was_truncated_fails_the_request(planner, shm):
    message = both_shared()
    put(message.outputs.add(name="sum"), 12, 200)
    form = decoded(planner, message)[0]
    (shm / "object").write_bytes(bytes(205))
    with pytest.raises(InvalidRequest, match="now has 205 bytes"):
        form.encode(b"", answered(form))


def test_a_region_that_is_unregistered_meanwhile_still_gets_its_output(planner, regions, shm):
    message = both_shared()
    put(message.outputs.add(name="sum"), 12)
    form = decoded(planner, message)[0]
    regions.apply("", {"r": None})
    form.encode(b"", answered(form, first_row=1))
    assert (shm / "object").read_bytes()[:12] == np.float32([3, 4, 5]).tobytes()


# -- large inputs -------------------------------------------------------------------------------


def large(regions, shm):
    """A request whose input is too large for the loop thread."""
    (shm / "large").write_bytes(b"l" * (INLINE_BYTES + 1))
    register(regions, "l", "/large", INLINE_BYTES + 1)
    message = pb.ModelInferRequest(model_name="large", id="1")
    put(message.inputs.add(name="x", datatype="UINT8", shape=[1, INLINE_BYTES + 1]), INLINE_BYTES + 1, 0, "l")
    return message


def unread(planner, message):
    with pytest.raises(LargeRequest) as caught:
        planner.decode(message.SerializeToString())
    return caught.value.of


def test_a_large_input_is_left_to_another_thread(planner, regions, shm):
    message = large(regions, shm)
    for _ in range(2):
        request, identity, split_key = unread(planner, message)
        assert (identity, split_key) == (b"1", b"1")
        assert request.byte_size == INLINE_BYTES + 1
        assert [bytes(part) for part in request.read()] == [b"l" * (INLINE_BYTES + 1)]


class Call:
    """A call whose caller may go away; its outcome is a future's."""

    on_cancel = None
    traceparent = None

    def __init__(self) -> None:
        self.outcome = asyncio.get_running_loop().create_future()

    def reply(self, message):
        self.outcome.set_result(message)

    def fail(self, code, details):
        self.outcome.set_exception(ValueError(code, details))


def reading(engine, regions, shm, use, most_bytes=2**30):
    """Run ``use(copies, request, call, outcome)`` on a loop; the outcome gets a value or an error."""
    request = unread(SharedPlanner(engine, regions), large(regions, shm))[0]

    async def used():
        outcome = asyncio.get_running_loop().create_future()
        await use(LargeCopies(engine, most_bytes), request, Call(), outcome)

    run(used())


def test_a_large_input_is_read_and_counted_meanwhile(engine, regions, shm):
    async def use(copies, request, call, outcome):
        copies.read(call, request, outcome.set_result, outcome.set_exception)
        assert copies.byte_size == INLINE_BYTES + 1
        assert [len(part) for part in await outcome] == [INLINE_BYTES + 1]
        assert copies.byte_size == 0

    reading(engine, regions, shm, use)


def test_a_large_input_that_was_truncated_fails_its_request(engine, regions, shm):
    async def use(copies, request, call, outcome):
        (shm / "large").write_bytes(b"")
        copies.read(call, request, outcome.set_result, outcome.set_exception)
        with pytest.raises(InvalidRequest, match="truncated"):
            await outcome
        assert copies.byte_size == 0

    reading(engine, regions, shm, use)


def test_a_read_that_nobody_waits_for_tells_nobody(engine, regions, shm):
    async def use(copies, request, call, outcome):
        copies.read(call, request, outcome.set_exception, outcome.set_exception)
        call.on_cancel()
        last = Call()
        copies.read(last, request, outcome.set_result, outcome.set_exception)
        await outcome
        copies._pool.shutdown()
        await asyncio.sleep(0)
        assert copies.byte_size == 0

    reading(engine, regions, shm, use)


def test_reads_are_bounded_with_the_bytes_in_flight(engine, regions, shm):
    async def use(copies, request, call, outcome):
        copies.read(call, request, outcome.set_result, outcome.set_exception)
        with pytest.raises(QueueFull, match="max_inflight_bytes"):
            copies.read(Call(), request, outcome.set_exception, outcome.set_exception)
        await outcome
        again = asyncio.get_running_loop().create_future()
        copies.read(Call(), request, again.set_result, again.set_exception)
        await again

    reading(engine, regions, shm, use, most_bytes=2 * INLINE_BYTES)


def answer_of(copies, form, size):
    """Answer a request with an output of a size; return its call."""
    call = Call()
    request = Pending(form.bound, lambda _: None)
    request.batch_outputs, request.batch_rows = [Tensor("y", "UINT8", (1, size), b"o" * size)], 1
    LargeAnswer(Answer(call, form, b"7", None), copies)(request)
    return call


@pytest.mark.parametrize("size", [3, INLINE_BYTES + 1])
def test_a_large_output_is_written_by_another_thread(engine, regions, shm, size):
    message = large(regions, shm)
    put(message.outputs.add(name="y"), INLINE_BYTES + 1, 0, "l")
    form = unread(SharedPlanner(engine, regions), message)[0]

    async def main():
        copies = LargeCopies(engine, 2**30)
        call = answer_of(copies, form, size)
        assert copies.byte_size == (size if size > INLINE_BYTES else 0)
        reply = pb.ModelInferResponse.FromString(await call.outcome)
        assert (reply.id, list(reply.raw_output_contents)) == ("7", [b""])
        assert copies.byte_size == 0
        assert (shm / "large").read_bytes() == b"o" * size + b"l" * (INLINE_BYTES + 1 - size)

        (shm / "large").write_bytes(b"")
        with pytest.raises(ValueError, match="truncated"):
            await answer_of(copies, form, size).outcome

    run(main())


def test_a_small_input_with_a_large_output_is_read_at_once(engine, regions, shm):
    message = large(regions, shm)
    message.inputs[0].shape[:] = [1, 4]
    put(message.inputs[0], 4, 0, "l")
    put(message.outputs.add(name="y"), INLINE_BYTES + 1, 0, "l")
    request = unread(SharedPlanner(engine, regions), message)[0]

    async def main():
        got = []
        LargeCopies(engine, 2**30).read(Call(), request, got.append, got.append)
        assert [[bytes(part) for part in parts] for parts in got] == [[b"llll"]]

    run(main())
