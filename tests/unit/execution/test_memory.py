from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from tests.unit.support import PATIENCE_S, model_spec, run, tensor_spec

from tensorferry.device import Tuning
from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends.torch_staging import Lanes, Slot, largest_input_bytes
from tensorferry.execution.memory import LOADS, Loads, check_memory
from tensorferry.execution.memory_needs import HOST, input_bytes, needed_bytes
from tensorferry.execution.pool import open_pool
from tensorferry.model import PaddingSpec
from tensorferry.testing.emulated_gpu import EmulatedGpu

MIB = 2**20


@pytest.fixture
def spec(tmp_path):
    """A version whose file has that many MiB, all of them a hole."""

    def written(mib, name="model.pt", **more):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(mib * MIB)
        return replace(model_spec(), path=path, **more)

    return written


def test_each_copy_on_the_cpu_needs_the_files_size_and_some_more(spec):
    one = needed_bytes(spec(100))[HOST]
    assert 100 * MIB < one < 200 * MIB
    assert needed_bytes(spec(100, devices=("cpu", "cpu", "cpu"))) == {HOST: 3 * one}


def test_copies_on_gpus_need_memory_there_and_pass_through_the_hosts(spec):
    one = needed_bytes(spec(100))[HOST]
    own = spec(100, devices=("cuda:0", "cuda:1", "cuda:1"), inputs=[tensor_spec("x", "FP32", (-1,))])
    assert needed_bytes(own) == {"cuda:0": one, "cuda:1": 2 * one, HOST: 300 * MIB}


def test_streams_that_share_weights_need_one_copy_on_each_device(spec):
    one = needed_bytes(spec(100))[HOST]
    own = spec(
        100,
        devices=("cuda:0", "cuda:1", "cuda:1"),
        inputs=[tensor_spec("x", "FP32", (-1,))],
        tuning=Tuning(shares_weights=True),
    )
    assert needed_bytes(own) == {"cuda:0": one, "cuda:1": one, HOST: 200 * MIB}
    assert needed_bytes(replace(own, devices=("cpu", "cpu"))) == {HOST: 2 * one}


def test_each_stream_on_a_gpu_has_staging_buffers_there_and_pinned_ones_on_the_host(spec):
    without = needed_bytes(spec(100, devices=("cuda:0",) * 2, inputs=[tensor_spec("x", "FP32", (-1,))]))
    own = spec(
        100,
        devices=("cuda:0",) * 2,
        inputs=[tensor_spec("x", "FP32", (1024, 256)), tensor_spec("mask", "INT64", (1024, 128))],
        max_batch_size=16,
        tuning=Tuning(staging_slots=4),
    )
    staging = 2 * 4 * 16 * 2 * MIB
    assert needed_bytes(own) == {place: size + staging for place, size in without.items()}
    shared = needed_bytes(replace(own, tuning=replace(own.tuning, shares_weights=True)))
    assert shared["cuda:0"] == without["cuda:0"] // 2 + staging, "buffers are never shared"
    on_cpu = replace(own, devices=("cpu",))
    assert needed_bytes(on_cpu) == needed_bytes(spec(100)), "the CPU has none"


def test_models_that_copy_in_their_own_way_are_not_charged_for_staging_buffers(spec):
    own = spec(
        100, devices=("cuda:0",), platform="onnxruntime_onnx", inputs=[tensor_spec("x", "FP32", (1024,))]
    )
    assert needed_bytes(own) == needed_bytes(replace(own, tuning=replace(own.tuning, staging_slots=8)))


def test_staging_buffers_of_a_padded_model_are_for_its_longest_bucket(spec):
    plain = needed_bytes(spec(100, devices=("cuda:0",), inputs=[tensor_spec("x", "FP32", (-1,))]))
    padding = PaddingSpec(("x",), (), (128, 512), lengths_input="lengths")
    own = spec(
        100,
        devices=("cuda:0",),
        inputs=[tensor_spec("x", "INT64", (-1,))],
        max_batch_size=1024,
        padding=padding,
    )
    row_bytes = 512 * 8 + 8  # the lengths are an input of the model's
    assert needed_bytes(own)["cuda:0"] - plain["cuda:0"] == 3 * 1024 * row_bytes


def test_model_without_batch_dimension_is_staged_one_at_a_time(spec):
    plain = needed_bytes(spec(100, devices=("cuda:0",), inputs=[tensor_spec("x", "FP32", (-1,))]))
    own = spec(100, devices=("cuda:0",), inputs=[tensor_spec("x", "FP32", (MIB,))], max_batch_size=0)
    assert needed_bytes(own)["cuda:0"] - plain["cuda:0"] == 3 * 4 * MIB


def test_all_files_of_a_version_count_where_weights_may_stand_beside_the_model(spec, tmp_path):
    own = spec(10, "model.onnx", platform="onnxruntime_onnx")
    alone = needed_bytes(own)[HOST]
    spec(30, "model.onnx.data")
    spec(500, "golden.npz")
    spec(500, "manifest.json")
    spec(500, ".hidden")
    assert needed_bytes(replace(own, golden=tmp_path / "golden.npz")) == {HOST: 4 * alone}


def test_only_the_model_file_counts_for_torchscript(spec):
    own = spec(10)
    before = needed_bytes(own)
    spec(500, "training_rows.csv")
    assert needed_bytes(own) == before


def test_ensemble_and_file_that_is_not_there_need_nothing(spec, tmp_path):
    assert needed_bytes(replace(spec(10), platform="ensemble")) == {}
    assert needed_bytes(replace(spec(10), path=tmp_path / "gone.pt")) == {}


def test_model_that_fits_with_the_reserve_is_let_in(spec):
    own = spec(100)
    needed = needed_bytes(own)[HOST]
    check_memory(own, 50 * MIB, {HOST: needed + 50 * MIB})
    with pytest.raises(ModelLoadError):
        check_memory(own, 50 * MIB + 1, {HOST: needed + 50 * MIB})


def test_refusal_has_the_numbers_and_says_what_to_do(spec):
    own = spec(100, devices=("cpu", "cpu"))
    with pytest.raises(ModelLoadError) as caught:
        check_memory(own, 256 * MIB, {HOST: 300 * MIB})
    message = str(caught.value)
    assert message.startswith(
        "model 'm' version 1 would not fit: it needs about 270 MiB of memory for 2 copies"
    )
    assert str(own.path) in message
    assert "300 MiB are available, and 256 MiB are to stay free (memory_reserve_bytes)" in message
    assert "lower the count of its instance_group" in message


def test_memory_of_each_gpu_is_checked(spec):
    own = spec(100, devices=("cuda:0", "cuda:1"))
    enough = {HOST: 2**40, "cuda:0": 2**40, "cuda:1": 2**40}
    check_memory(own, 0, enough)
    with pytest.raises(ModelLoadError, match=r"135 MiB of memory of cuda:1 for 1 copy"):
        check_memory(own, 0, enough | {"cuda:1": 100 * MIB})
    with pytest.raises(ModelLoadError, match="200 MiB of memory for its way to the GPU"):
        check_memory(own, 0, enough | {HOST: 100 * MIB})


def test_refusal_of_a_model_on_gpus_names_the_staging_buffers_and_what_else_can_be_lowered(spec):
    own = spec(100, devices=("cuda:0", "cuda:0"), inputs=[tensor_spec("x", "FP32", (MIB,))])
    enough = {HOST: 2**40, "cuda:0": 2**40}
    with pytest.raises(ModelLoadError) as caught:
        check_memory(own, 0, enough | {"cuda:0": 300 * MIB})
    message = str(caught.value)
    assert "of memory of cuda:0 for 2 copies of" in message
    assert "and 192 MiB of staging buffers; 300 MiB are available" in message
    assert "its max_batch_size or its staging_slots, let its streams share their weights" in message
    with pytest.raises(ModelLoadError, match=r"model\.pt, and 192 MiB of pinned staging buffers"):
        check_memory(own, 0, enough | {HOST: 300 * MIB})
    shared = replace(own, tuning=Tuning(shares_weights=True))
    with pytest.raises(ModelLoadError, match="for 1 copy of") as caught:
        check_memory(shared, 0, enough | {"cuda:0": 300 * MIB})
    assert "ENABLE_WEIGHT_SHARING" not in str(caught.value)


def test_place_of_which_nothing_is_known_is_not_held_against_the_model(spec):
    check_memory(spec(100, devices=("cuda:0",)), 0, {HOST: 2**40, "cuda:0": None})


def test_measured_memory_of_this_machine_decides_where_none_is_given(spec):
    check_memory(spec(1), 0)
    with pytest.raises(ModelLoadError, match="would not fit"):
        check_memory(spec(2**20), 0)


class Machine:
    """Its memory is taken by loading, at the end; ``loads`` is what looks at it."""

    def __init__(self, free_mib):
        self.free = free_mib * MIB
        self.loads = Loads(lambda _: self.free)
        self.inside: list[str] = []

    async def load(self, spec, gate: asyncio.Event):
        async with self.loads.admitted(spec):
            self.inside.append(spec.name)
            await gate.wait()
            self.free -= needed_bytes(spec)[HOST]

    def start(self, spec, gate) -> asyncio.Task:
        return asyncio.create_task(self.load(spec, gate))


async def until(condition):
    while not condition():  # noqa: ASYNC110 - no event tells it, and run() bounds it
        await asyncio.sleep(0)


def test_load_that_fits_beside_those_under_way_goes_ahead(spec):
    async def main():
        machine, gate = Machine(300), asyncio.Event()
        tasks = [machine.start(spec(100), gate) for _ in range(2)]
        await until(lambda: machine.inside == ["m", "m"])
        assert machine.loads.promised == {HOST: 2 * needed_bytes(spec(100))[HOST]}
        gate.set()
        await asyncio.gather(*tasks)
        assert machine.loads.promised == {}

    run(main())


def test_two_loads_do_not_count_the_same_free_memory(spec):
    async def main():
        machine, gate = Machine(200), asyncio.Event()
        tasks = [machine.start(spec(100), gate) for _ in range(2)]
        await until(lambda: machine.loads.waiting)
        assert machine.inside == ["m"], "the other waits: what the first takes isn't known yet"
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        (refusal,) = [each for each in results if each is not None]
        assert isinstance(refusal, ModelLoadError)
        assert "65 MiB are available" in str(refusal)

    run(main())


def test_load_that_waited_goes_ahead_when_there_is_room_after_the_other(spec):
    async def main():
        machine, gate = Machine(200), asyncio.Event()
        first = machine.start(spec(100), gate)
        await until(lambda: machine.inside)
        second = machine.start(replace(spec(100), name="second"), gate)
        await until(lambda: machine.loads.waiting)
        machine.free += 100 * MIB
        gate.set()
        await asyncio.gather(first, second)
        assert machine.inside == ["m", "second"]

    run(main())


def test_load_that_would_not_fit_alone_is_refused_at_once(spec):
    async def main():
        machine, gate = Machine(200), asyncio.Event()
        task = machine.start(spec(100), gate)
        await until(lambda: machine.inside)
        with pytest.raises(ModelLoadError, match="would not fit"):
            await machine.load(spec(1000), gate)
        gate.set()
        task.cancel()

    run(main())


def test_load_that_fails_gives_its_promise_back(spec):
    async def main():
        loads = Loads(lambda _: 200 * MIB)
        with pytest.raises(ZeroDivisionError):
            async with loads.admitted(spec(100)):
                raise ZeroDivisionError
        assert loads.promised == {}

    run(main())


def test_load_that_is_given_up_while_it_waits_leaves_nothing(spec):
    async def main():
        machine, gate = Machine(200), asyncio.Event()
        async with machine.loads.admitted(spec(100)):
            waiting = machine.start(spec(100), gate)
            await until(lambda: machine.loads.waiting)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert (machine.loads.promised, machine.loads.waiting, machine.inside) == ({}, 0, [])

    run(main())


def test_measurement_that_a_load_ended_in_the_middle_of_is_made_again(spec):
    """It may have been made before that load took the last of its memory."""
    free = [2**40, 200 * MIB, 50 * MIB]
    began, goes_on = threading.Event(), threading.Event()

    def measure(_):
        value = free.pop(0)
        if len(free) == 1:
            began.set()
            goes_on.wait(PATIENCE_S)
        return value

    async def main():
        loads = Loads(measure)
        async with loads.admitted(spec(100)):
            second = asyncio.create_task(loads.admitted(spec(100)).__aenter__())
            await asyncio.to_thread(began.wait, PATIENCE_S)
        goes_on.set()
        with pytest.raises(ModelLoadError, match="50 MiB are available"):
            await second

    run(main())


def test_model_of_a_tebibyte_is_refused_by_the_pool_without_being_read(spec):
    own = spec(2**20)
    with pytest.raises(ModelLoadError, match="would not fit: it needs about 1415578 MiB of memory"):
        run(open_pool(own))
    assert LOADS.promised == {}


def test_reserve_that_cannot_be_left_free_refuses_even_a_small_model(spec):
    with pytest.raises(ModelLoadError, match="1048576 MiB are to stay free"):
        run(open_pool(spec(1), memory_reserve_bytes=2**40))


def test_weights_that_turn_out_not_to_be_shareable_are_left_to_the_devices_own_refusal(spec):
    # Counted as shared: else nothing would load that fits only with its weights shared.
    own = spec(100, devices=("cuda:0",) * 3, tuning=Tuning(shares_weights=True))
    alone = needed_bytes(replace(own, devices=("cuda:0",)))
    shared = needed_bytes(own)
    assert shared["cuda:0"] - alone["cuda:0"] < alone["cuda:0"] // 10, "staging buffers only"
    assert shared[HOST] - alone[HOST] < alone[HOST] // 10, "they are read one after another"


PADDED = PaddingSpec(("x",), (), (128, 512), lengths_input="lengths")


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": [tensor_spec("x", "FP32", (16, 3)), tensor_spec("mask", "INT64", (5,))]},
        {"inputs": [tensor_spec("x", "FP16", (16, 3))], "max_batch_size": 0},
        {"inputs": [tensor_spec("x", "INT64", (-1,))], "padding": PADDED},
        {"inputs": [tensor_spec("x", "FP32", (2, -1, 3)), tensor_spec("y", "BOOL", (4,))], "padding": PADDED},
        {"inputs": [tensor_spec("x", "FP32", (-1,))]},
        {"inputs": [tensor_spec("x", "FP32", None)]},
    ],
)
def test_staging_buffers_are_as_large_as_was_estimated(spec, more):
    own = replace(spec(10), devices=("cuda:0",), **({"max_batch_size": 8} | more))
    without = needed_bytes(replace(own, inputs=(tensor_spec("x", "FP32", (-1,)),), padding=None))
    gpu = EmulatedGpu("cuda:0")
    lanes = Lanes(gpu)
    slots = [
        Slot(gpu, lanes, index, largest_input_bytes(own), True) for index in range(own.tuning.staging_slots)
    ]
    staging = sum(slot.nbytes for slot in slots)
    assert needed_bytes(own) == {place: size + staging for place, size in without.items()}


def test_of_inputs_of_any_size_only_the_others_are_estimated(spec):
    fixed, varied = tensor_spec("x", "FP32", (16,)), tensor_spec("y", "FP32", (-1,))
    own = replace(spec(10), inputs=(fixed, varied), max_batch_size=8)
    assert input_bytes(own) == [8 * 16 * 4, None]
    assert largest_input_bytes(own) == [], "its slots' buffers all grow as needed"
