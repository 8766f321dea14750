import asyncio
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import PATIENCE_S, with_engine
from torch import Tensor, nn

from tensorferry.engine import Engine, ModelState
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    NotFound,
    QueueFull,
)
from tensorferry.repository import scan
from tensorferry.tensors import Tensor as WireTensor
from tensorferry.tensors import array_of, tensor_of
from tensorferry.testing.models import (
    MARKER,
    write_identity,
    write_mlp,
    write_model,
    write_raising,
    write_slow,
    write_two_inputs,
)

#: Rounds of the slow model that outlast anything else that a test does meanwhile.
LONG = 3000


def x(*values):
    return [tensor_of("x", np.array(values, np.float32).reshape(-1, 1))]


def work(rounds):
    return [tensor_of("work", np.array([[rounds]], np.int64))]


def values_of(outputs):
    return [array_of(output).ravel().tolist() for output in outputs]


async def outcome(coroutine):
    """Return the result, or the error instead of raising it."""
    try:
        return await coroutine
    except Exception as error:
        return error


# -- requests -----------------------------------------------------------------------------------


def test_requests_of_one_tick_share_a_run_and_get_their_own_rows(tmp_path):
    write_identity(tmp_path)

    async def use(engine):
        answers = await asyncio.gather(*(engine.infer("identity", x(n, n + 0.5)) for n in range(10)))
        return answers, engine.models["identity"][1].statistics()

    answers, counts = with_engine(tmp_path, use)
    assert [values_of(outputs) for outputs in answers] == [[[n, n + 0.5]] for n in range(10)]
    assert (counts.execution_count, counts.inference_count, counts.success_count) == (1, 20, 10)


def test_several_inputs_and_outputs_meet_by_name(tmp_path):
    write_two_inputs(tmp_path)

    async def use(engine):
        def inputs(n):
            return [
                tensor_of("values", np.full((1, 3), n, np.float32)),
                tensor_of("offset", np.array([[10 * n]], np.int64)),
            ]

        return await asyncio.gather(*(engine.infer("two_inputs", inputs(n)) for n in range(5)))

    for n, (total, negated) in enumerate(with_engine(tmp_path, use)):
        assert (total.name, negated.name) == ("sum", "negated")
        assert values_of([total, negated]) == [[11 * n] * 3, [-10 * n]]


def test_batched_scores_are_those_of_the_model_alone(tmp_path):
    write_mlp(tmp_path)
    rows = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)

    async def use(engine):
        requests = [engine.infer("mlp", [tensor_of("features", row[None])]) for row in rows]
        return [values_of(outputs)[0][0] for outputs in await asyncio.gather(*requests)]

    module = torch.jit.load(tmp_path / "mlp" / "1" / "model.pt")
    with torch.inference_mode():
        expected = module(torch.from_numpy(rows)).ravel().tolist()
    np.testing.assert_allclose(with_engine(tmp_path, use), expected, rtol=1e-5)


def test_request_that_the_model_raises_on_fails_alone(tmp_path):
    write_raising(tmp_path)

    async def use(engine):
        requests = [engine.infer("raising", x(MARKER if n in (3, 11) else n)) for n in range(16)]
        return await asyncio.gather(*map(outcome, requests)), engine.in_flight_bytes

    outcomes, left = with_engine(tmp_path, use)
    for n, each in enumerate(outcomes):
        if n in (3, 11):
            assert isinstance(each, ModelFailed)
            assert "marker" not in str(each)
        else:
            assert values_of(each) == [[2.0 * n]]
    assert left == 0


def test_bad_input_is_refused_by_the_call_itself_and_harms_nobody(tmp_path):
    write_identity(tmp_path)

    async def use(engine):
        good = asyncio.create_task(engine.infer("identity", x(1)))
        for tensors in (
            [],
            [WireTensor("x", "FP32", (2**40, 30), bytes(120))],
            [WireTensor("y", "FP32", (1, 1), b"1234")],
        ):
            with pytest.raises(InvalidRequest, match="'identity'"):
                engine.submit(engine.resolve("identity", ""), tensors, print)
        assert values_of(await good) == [[1.0]]
        return engine.in_flight_bytes

    assert with_engine(tmp_path, use) == 0


def test_not_a_number_and_infinity_come_back_as_they_went(tmp_path):
    write_identity(tmp_path)
    data = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32).reshape(-1, 1)
    answer = with_engine(tmp_path, lambda engine: engine.infer("identity", [tensor_of("x", data)]))
    assert bytes(answer[0].data) == data.tobytes()


async def until_it_runs(engine, name):
    """Let the loop turn until the model's stream is busy."""
    for _ in range(1000):
        if engine.models[name][1].statistics().running:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"no batch of {name} has started")


def test_request_that_waits_too_long_for_a_busy_stream_expires_and_never_runs(tmp_path):
    write_slow(tmp_path, max_batch_size=1)

    async def use(engine):
        slow = asyncio.create_task(engine.infer("slow", work(LONG)))
        await until_it_runs(engine, "slow")
        with pytest.raises(DeadlineExceeded):
            await engine.infer("slow", work(1), timeout_s=0.02)
        await slow
        counts = engine.models["slow"][1].statistics()
        assert (counts.execution_count, counts.failures["EXPIRED"]) == (1, 1)

    with_engine(tmp_path, use)


def test_models_default_timeout_holds_where_it_is_nearer(tmp_path):
    options = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 20000 } }"
    write_slow(tmp_path, max_batch_size=1, options=options)

    async def use(engine):
        slow = asyncio.create_task(engine.infer("slow", work(LONG)))
        await until_it_runs(engine, "slow")
        for timeout_s in (None, 60.0):
            with pytest.raises(DeadlineExceeded):
                await engine.infer("slow", work(1), timeout_s=timeout_s)
        await slow

    with_engine(tmp_path, use)


def test_cancelled_task_cancels_its_request(tmp_path):
    write_slow(tmp_path, max_batch_size=1)

    async def use(engine):
        running, waiting = (asyncio.create_task(engine.infer("slow", work(LONG))) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert engine.in_flight <= 1
        running.cancel()
        await engine.wait_idle()
        counts = engine.models["slow"][1].statistics()
        assert (counts.execution_count, counts.failures["CANCELED"]) == (1, 2)
        assert engine.in_flight_bytes == 0

    with_engine(tmp_path, use)


def test_submitted_request_can_be_cancelled_through_its_model(tmp_path):
    write_identity(tmp_path)

    async def use(engine):
        done = []
        live = engine.resolve("identity", "")
        request = engine.submit(live, x(1), done.append)
        live.cancel(request)
        assert done == [request]
        assert isinstance(request.error, Cancelled)
        await engine.wait_idle()

    with_engine(tmp_path, use)


def test_servers_bounds_hold_where_the_model_states_none(tmp_path):
    write_identity(tmp_path, "free")
    write_identity(
        tmp_path, "bound", options="dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    )

    async def use(engine):
        for name, bound in (("free", 5), ("bound", 2)):
            outcomes = await asyncio.gather(*(outcome(engine.infer(name, x(n))) for n in range(10)))
            assert [isinstance(each, QueueFull) for each in outcomes] == [False] * bound + [True] * (
                10 - bound
            )

    with_engine(tmp_path, use, max_queue_size=5)


def test_bytes_in_flight_are_bound_over_all_models_together(tmp_path):
    write_identity(tmp_path, "a")
    write_identity(tmp_path, "b")

    async def use(engine):
        names = ["a", "b"] * 5
        outcomes = await asyncio.gather(*(outcome(engine.infer(name, x(1))) for name in names))
        assert [isinstance(each, QueueFull) for each in outcomes] == [False] * 4 + [True] * 6
        assert engine.in_flight_bytes == 0
        assert values_of(await engine.infer("a", x(1))) == [[1.0]]

    with_engine(tmp_path, use, max_inflight_bytes=16)


# -- names and versions -------------------------------------------------------------------------


class Plus(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x + self.number


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    root = tmp_path_factory.mktemp("versions")
    config = (
        'max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 1 }'
        ' output { name: "y" data_type: TYPE_FP32 dims: 1 } version_policy { all { } }'
    )
    for version in (1, 2, 10):
        write_model(root, "plus", Plus(float(version)), config, version)
    (root / "plus" / "11").mkdir()
    (root / "plus" / "11" / "model.pt").write_bytes(b"spoilt")
    return root


@pytest.mark.parametrize(("version", "number"), [("", 10), ("1", 1), ("2", 2), ("10", 10), ("02", 2)])
def test_empty_version_is_the_highest_that_is_ready(versions, version, number):
    answer = with_engine(versions, lambda engine: engine.infer("plus", x(0), version))
    assert values_of(answer) == [[float(number)]]


@pytest.mark.parametrize(
    ("name", "version", "kind", "says"),
    [
        ("minus", "", NotFound, "no model 'minus'; the repository has ['plus']"),
        ("minus", "1", NotFound, "no model 'minus'"),
        ("plus", "3", NotFound, "model 'plus' has no version 3 here; served are [1, 2, 10, 11]"),
        ("plus", "0", InvalidRequest, "version '0' is not an integer > 0"),
        ("plus", "-1", InvalidRequest, "version '-1' is not an integer > 0"),
        ("plus", "1.0", InvalidRequest, "version '1.0' is not"),
        ("plus", "latest", InvalidRequest, "version 'latest' is not"),
        ("plus", "\N{SUPERSCRIPT TWO}", InvalidRequest, "is not an integer > 0"),
        ("plus", "9" * 5000, InvalidRequest, "is not an integer > 0"),
        ("plus", "11", ModelNotReady, "model 'plus' version 11 is UNAVAILABLE: "),
    ],
)
def test_model_that_is_not_there_is_refused_with_its_reason(versions, name, version, kind, says):
    async def use(engine):
        with pytest.raises(kind) as caught:
            engine.resolve(name, version)
        return str(caught.value)

    assert says in with_engine(versions, use)


def test_version_that_does_not_load_leaves_the_others_serving_and_is_named(versions):
    async def use(engine):
        assert not engine.is_ready
        (name,), (reason,) = engine.unready().keys(), engine.unready().values()
        assert name == "plus/11"
        assert "not a TorchScript model" in reason
        states = {number: live.state for number, live in engine.models["plus"].items()}
        assert states == dict.fromkeys([1, 2, 10], ModelState.READY) | {11: ModelState.UNAVAILABLE}

    with_engine(versions, use)


def test_model_whose_configuration_is_wrong_leaves_the_others_serving_and_says_why(tmp_path):
    write_identity(tmp_path)
    (write_identity(tmp_path, "wrong") / "config.pbtxt").write_text("max_batch_size: -1")

    async def use(engine):
        assert not engine.is_ready
        assert list(engine.unready()) == ["wrong"]
        for version in ("", "1"):
            with pytest.raises(ModelNotReady, match=r"'wrong' can't be served: .*max_batch_size is -1"):
                engine.resolve("wrong", version)
        with pytest.raises(InvalidRequest):
            engine.resolve("wrong", "x")
        assert values_of(await engine.infer("identity", x(1))) == [[1.0]]

    with_engine(tmp_path, use)


def test_only_version_that_does_not_load_says_why_whatever_version_is_asked_for(tmp_path):
    path = write_identity(tmp_path) / "1" / "model.pt"
    path.write_bytes(b"")

    async def use(engine):
        for version in ("", "1"):
            with pytest.raises(ModelNotReady, match=r"version 1 is UNAVAILABLE: .*not a TorchScript model"):
                engine.resolve("identity", version)
        counts = engine.models["identity"][1].statistics()
        assert (counts.success_count, counts.waiting) == (0, 0)

    with_engine(tmp_path, use)


def test_gpu_that_is_not_there_is_the_models_reason_and_not_the_servers_end(tmp_path):
    write_identity(tmp_path, options="dynamic_batching { } instance_group { kind: KIND_GPU gpus: 99 }")

    async def use(engine):
        assert "cuda:99" in engine.unready()["identity/1"]

    with_engine(tmp_path, use)


def test_model_that_fails_in_warm_up_is_not_served(tmp_path):
    config = (
        'max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 2 }'
        ' output { name: "y" data_type: TYPE_FP64 dims: 2 }'
    )
    write_model(tmp_path, "plus", Plus(1.0), config)

    async def use(engine):
        assert "output 'y' is FP32, and its configuration says FP64" in engine.unready()["plus/1"]

    with_engine(tmp_path, use)


def test_model_is_loading_until_it_is_loaded(tmp_path):
    write_identity(tmp_path)

    async def main():
        engine = Engine(10, 2**20)
        loading = asyncio.create_task(engine.load_all(scan(tmp_path)))
        await asyncio.sleep(0)
        with pytest.raises(ModelNotReady, match="'identity' version 1 is LOADING"):
            engine.resolve("identity", "")
        assert not engine.is_ready
        assert engine.unready() == {"identity/1": "LOADING"}
        await loading
        assert engine.is_ready
        assert engine.unready() == {}
        await engine.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_model_without_configuration_takes_what_torch_has_and_refuses_the_rest(tmp_path):
    (write_identity(tmp_path) / "config.pbtxt").unlink()

    async def use(engine):
        live = engine.resolve("identity", "")
        assert live.spec.max_batch_size == 64
        for datatype in ("UINT16", "BYTES"):
            with pytest.raises(InvalidRequest, match=f"{datatype}, expected one of BOOL"):
                engine.submit(live, [WireTensor("INPUT__0", datatype, (1,), b"12")], print)
        mixed = [
            WireTensor("INPUT__0", "FP16", (1, 2), b"1234"),
            WireTensor("INPUT__0", "INT8", (2, 2), b"abcd"),
            WireTensor("INPUT__0", "FP16", (1, 2), b"5678"),
            WireTensor("INPUT__0", "FP16", (1, 3), b"123456"),
        ]
        answers = await asyncio.gather(*(engine.infer("identity", [each]) for each in mixed))
        for sent, (came,) in zip(mixed, answers, strict=True):
            assert (came.datatype, came.shape, bytes(came.data)) == (sent.datatype, sent.shape, sent.data)
        assert live.statistics().execution_count == 3

    with_engine(tmp_path, use)


# -- the end ------------------------------------------------------------------------------------


def test_draining_engine_refuses_new_requests_and_finishes_the_old(tmp_path):
    write_slow(tmp_path, max_batch_size=1)

    async def use(engine):
        live = engine.resolve("slow", "")
        old = [asyncio.create_task(engine.infer("slow", work(n))) for n in (50, 7)]
        await asyncio.sleep(0)
        engine.start_draining()
        assert not engine.is_ready
        with pytest.raises(Draining):
            engine.resolve("slow", "")
        with pytest.raises(Draining):
            engine.submit(live, work(1), print)
        await engine.wait_idle()
        assert engine.in_flight == 0
        assert [values_of(await each) for each in old] == [[[50]], [[7]]]

    with_engine(tmp_path, use)


def test_closing_ends_what_waits_and_lets_what_runs_finish(tmp_path):
    write_slow(tmp_path, max_batch_size=1)

    async def use(engine):
        running, waiting = (asyncio.create_task(outcome(engine.infer("slow", work(LONG)))) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await engine.close()
        assert values_of(await running) == [[LONG]]
        assert isinstance(await waiting, ModelNotReady)
        assert engine.models["slow"][1].state is ModelState.UNAVAILABLE
        assert engine.in_flight_bytes == 0

    with_engine(tmp_path, use)


def test_closing_twice_is_harmless_and_leaves_no_descriptor_behind(tmp_path):
    write_identity(tmp_path)

    def life():
        async def use(engine):
            await engine.infer("identity", x(1), timeout_s=60.0)
            await engine.close()

        with_engine(tmp_path, use)
        return len(os.listdir("/proc/self/fd"))

    first = life()
    assert life() == first


# -- batched and alone --------------------------------------------------------------------------


class Twice(nn.Module):
    """Elementwise, so that a row's answer is exact whatever rows are beside it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bool:
            return torch.logical_not(x)
        return x + x


DATATYPES = ["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"]
ITEMSIZE = dict(zip(DATATYPES, [1, 1, 1, 2, 4, 8, 2, 2, 4, 8], strict=True))


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """An engine, on a loop of its own, with ``Twice`` for each datatype and one that takes any."""
    root = tmp_path_factory.mktemp("twice")
    for datatype in DATATYPES:
        tensor = f"data_type: TYPE_{datatype} dims: -1"
        config = f'max_batch_size: 8 input {{ name: "INPUT__0" {tensor} }} output {{ name: "y" {tensor} }}'
        write_model(root, datatype, Twice(), config + "dynamic_batching { }")
    write_model(root, "any", Twice(), None)
    with asyncio.Runner() as runner:

        async def opened():
            engine = Engine(10_000, 2**30)
            await engine.load_all(scan(root))
            assert engine.unready() == {}
            return engine

        engine = runner.run(opened())
        yield engine, runner
        runner.run(engine.close())


@st.composite
def requests(draw):
    datatype = draw(st.sampled_from(DATATYPES))
    rows, width = draw(st.integers(1, 8)), draw(st.integers(0, 3))
    size = rows * width * ITEMSIZE[datatype]
    data = draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        data = bytes(byte & 1 for byte in data)
    elif datatype in ("FP16", "BF16"):
        # No NaN: which of its bits survive an addition in half precision depends on the lane.
        data = bytes(byte & 0x3F for byte in data)
    model = draw(st.sampled_from([datatype, "any"]))
    return model, WireTensor("INPUT__0", datatype, (rows, width), data)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=20))
def test_any_mix_of_requests_gives_the_same_bytes_batched_as_one_by_one(twice, mix):
    engine, runner = twice

    async def batched():
        return await asyncio.gather(*(engine.infer(model, [tensor]) for model, tensor in mix))

    async def alone():
        return [await engine.infer(model, [tensor]) for model, tensor in mix]

    def plain(answers):
        return [(each.datatype, each.shape, bytes(each.data)) for (each,) in answers]

    together = plain(runner.run(batched()))
    assert together == plain(runner.run(alone()))
    for (_, tensor), (datatype, shape, _) in zip(mix, together, strict=True):
        assert (datatype, shape) == (tensor.datatype, tensor.shape)
    assert engine.in_flight_bytes == 0


def test_mix_of_the_property_is_really_batched(twice):
    engine, runner = twice
    live = engine.resolve("INT8", "")
    before = live.statistics()

    async def batched():
        tensor = WireTensor("INPUT__0", "INT8", (2, 1), b"ab")
        await asyncio.gather(*(engine.infer("INT8", [tensor]) for _ in range(8)))

    runner.run(batched())
    assert live.statistics().execution_count - before.execution_count == 2
