"""A model on a GPU, on the emulated one: it raises wherever two accesses to the same memory might race."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import model_spec, tensor_spec

from tensorferry.device import Tuning
from tensorferry.errors import DeviceLost, ModelFailed, ModelLoadError, OutOfDeviceMemory
from tensorferry.execution.backends import torch_gpu
from tensorferry.execution.backends.torch_device import DeviceModel
from tensorferry.execution.backends.torch_memory import kept_by_graphs
from tensorferry.execution.launching import LaunchingModel
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchInput, PaddingSpec
from tensorferry.tensors import array_of
from tensorferry.testing.emulated_device import EmulatedDevice
from tensorferry.testing.emulated_gpu import EmulatedGpu


class Bench:
    """One emulated device, and models on it."""

    def __init__(self) -> None:
        self.device = EmulatedDevice("cuda:0")
        self.models: list[DeviceModel] = []
        self.now = 0.0

    def open(self, call, inputs=None, outputs=None, owned=(), **more) -> DeviceModel:
        tuning = Tuning(**{key: more.pop(key) for key in Tuning.__slots__ if key in more})
        spec = replace(model_spec(inputs, outputs, **more), tuning=tuning)
        order = range(len(spec.model_inputs))
        model = DeviceModel(call, spec, "cuda:0", order, owned, now=lambda: self.now)
        self.models.append(model)
        return model

    def ready(self, call, inputs=None, outputs=None, **more) -> DeviceModel:
        """A model that was warmed up and has its graphs, as a stream does it."""
        model = self.open(call, inputs, outputs, **more)
        for rows in (1, 2, 4, 8):
            zeros = [
                BatchInput(each.name, each.datatype.name, (rows, *each.dims), [bytes(rows * size_of(each))])
                for each in model.spec.model_inputs
            ]
            model.run(zeros)
            model.run(zeros)
        model.prepare()
        return model


def size_of(tensor):
    return int(np.prod(tensor.dims)) * tensor.datatype.itemsize


@pytest.fixture
def bench():
    here = Bench()
    with torch_gpu.opened_by(lambda name: EmulatedGpu(here.device)):
        yield here
    for model in here.models:
        model.close()
    assert here.device.races == []


def column(*values, name="x"):
    """A batch of FP32 rows of one element, each a request of its own."""
    return BatchInput(name, "FP32", (len(values), 1), [struct.pack("<f", value) for value in values])


def values(result, index=0):
    return array_of(result.outputs[index]).reshape(-1).tolist()


def double(x):
    return x * 2


def test_it_is_what_a_stream_takes_for_a_model_on_a_gpu(bench):
    assert isinstance(bench.open(double), LaunchingModel)


def test_a_batch_is_answered(bench):
    model = bench.ready(double)
    assert values(model.run([column(1, 2, 3)])) == [2, 4, 6]


def test_as_many_batches_as_slots_are_under_way_at_once(bench):
    model = bench.ready(double, staging_slots=3)
    launches = [model.launch([column(each, each + 10)]) for each in (1, 2, 3)]
    assert [values(each.wait()) for each in launches] == [[2, 22], [4, 24], [6, 26]]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_copies_overlap_with_runs_only_with_several_slots(bench, slots, graphs):
    model = bench.ready(
        lambda x: x + 1,
        [tensor_spec("x", "FP32", (1000,))],
        [tensor_spec("y", "FP32", (1000,))],
        staging_slots=slots,
        cuda_graphs=graphs,
    )
    data = BatchInput("x", "FP32", (8, 1000), [bytes(32000)])
    log = bench.device.timeline.log
    log.clear()
    under_way = []
    for _ in range(6):
        if len(under_way) == slots:
            under_way.pop(0).wait()
        under_way.append(model.launch([data]))
    for each in under_way:
        each.wait()
    runs = [each for each in log if each.name in ("call", "replay")]
    copies = [each for each in log if each.name.startswith("copy")]
    overlapping = [
        copy
        for copy in copies
        if any(copy.start_ns < run.end_ns and run.start_ns < copy.end_ns for run in runs)
    ]
    assert bool(overlapping) == (slots > 1)


@given(
    st.lists(st.lists(st.integers(-1000, 1000), min_size=1, max_size=8), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from(["auto", "off"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_launched_and_waited_for_the_answers_are_those_of_the_cpu(batches, slots, graphs, chance):
    here = Bench()
    with torch_gpu.opened_by(lambda name: EmulatedGpu(here.device)):
        model = here.ready(double, staging_slots=slots, cuda_graphs=graphs)
        under_way, answers, held = [], [], []
        for batch in batches:
            while len(under_way) == slots or (under_way and chance.random() < 0.4):
                held.append(under_way.pop(0).wait())  # a slow reader keeps every answer
                answers.append(values(held[-1]))
            under_way.append(model.launch([column(*batch)]))
        held += [each.wait() for each in under_way]
        assert [values(each) for each in held] == [[2 * value for value in batch] for batch in batches]
        assert here.device.races == []


def test_inputs_and_outputs_meet_their_names(bench):
    call = lambda a, b: {"sum": a + b, "difference": a - b}  # noqa: E731
    model = bench.ready(
        call,
        [tensor_spec("b"), tensor_spec("a")],
        [tensor_spec("difference"), tensor_spec("sum")],
    )
    model._argument_order = [1, 0]
    result = model.run([column(1, 2, name="b"), column(10, 20, name="a")])
    assert [each.name for each in result.outputs] == ["difference", "sum"]
    assert (values(result, 0), values(result, 1)) == ([9, 18], [11, 22])


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT32", "INT64", "FP16", "BF16", "FP64"])
def test_every_datatype_goes_there_and_back(bench, datatype):
    tensor = tensor_spec("x", datatype, (3,))
    model = bench.ready(lambda x: x.clone(), [tensor], [replace(tensor, name="y")])
    data = bytes([1, 0, 1] * tensor.datatype.itemsize * 2)
    result = model.run([BatchInput("x", datatype, (2, 3), [data])])
    assert bytes(result.outputs[0].data) == data


def test_an_output_that_is_its_input_is_right(bench):
    model = bench.ready(lambda x: x)
    assert values(model.run([column(5, 6)])) == [5, 6]


def test_an_output_that_is_not_in_one_piece_is_right(bench):
    model = bench.ready(
        lambda x: x.transpose(1, 2),
        [tensor_spec("x", "FP32", (2, 3))],
        [tensor_spec("y", "FP32", (3, 2))],
    )
    rows = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    result = model.run([BatchInput("x", "FP32", (2, 2, 3), [rows.tobytes()])])
    assert np.array_equal(array_of(result.outputs[0]), rows.transpose(0, 2, 1))


# -- graphs -------------------------------------------------------------------------------------


def test_graphs_are_captured_for_every_size_that_warm_up_ran(bench):
    model = bench.ready(double)
    assert model.status.graphs == (1, 2, 4, 8)
    assert model.status.no_graphs == ""
    assert model.run([column(1, 2)]).device.is_graph


def test_warm_up_as_a_stream_does_it_prepares_graphs(bench):
    model = bench.open(double)
    warm_up(model)
    assert model.status.graphs == (1, 2, 4, 8)


def test_a_batch_between_two_sizes_is_padded_with_zeros(bench):
    bench.device.costs.replay_ns = lambda rows: 1
    model = bench.ready(lambda x: x + x.sum(0, keepdim=True))
    model.run([column(100, 100, 100, 100)])  # what an earlier batch left must not show
    result = model.run([column(1, 2, 3)])
    assert (result.device.is_graph, result.device.padded_rows) == (True, 1)
    assert values(result) == [7, 8, 9]


def test_a_batch_is_run_as_it_is_where_padding_would_take_longer(bench):
    bench.device.costs.call_ns = lambda rows: 1000 * rows
    bench.device.costs.replay_ns = lambda rows: 990 * rows
    model = bench.ready(double)
    between, fitting = model.run([column(*range(5))]), model.run([column(*range(8))])
    assert (between.device.is_graph, between.device.padded_rows) == (False, 0)
    assert fitting.device.is_graph


def test_a_model_that_cannot_be_captured_runs_without(bench):
    def data_dependent(x):
        return x * 2 if x.sum().item() > 0 else x

    model = bench.ready(data_dependent)
    assert model.status.graphs == ()
    assert "can't be captured" in model.status.no_graphs
    assert values(model.run([column(3)])) == [6]


def test_a_graph_that_gives_other_outputs_than_a_run_is_not_used(bench):
    calls = []

    def counting(x):
        calls.append(x)
        return x + len(calls)

    model = bench.ready(counting)
    assert model.status.graphs == ()
    assert "other outputs" in model.status.no_graphs


def test_a_model_that_asks_for_graphs_and_cannot_have_them_is_refused(bench):
    bench.device.capture_fails = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(
        ModelLoadError, match=r"cuda_graphs is on, and .* not permitted .* set cuda_graphs to auto"
    ):
        bench.ready(double, cuda_graphs="on")


def test_a_model_that_asks_for_graphs_and_was_run_at_no_size_is_refused(bench):
    inputs = [tensor_spec("x", "FP32", (-1,))]
    model = bench.open(double, inputs, [tensor_spec("y", "FP32", (-1,))], cuda_graphs="on")
    with pytest.raises(
        ModelLoadError, match=r"cuda_graphs is on, and its inputs have no fixed size.*ragged_b"
    ):
        model.prepare()
    model = bench.open(double, inputs, [tensor_spec("y", "FP32", (-1,))])
    model.prepare()
    assert "no fixed size" in model.status.no_graphs


def test_without_graphs_none_is_captured(bench):
    model = bench.ready(double, cuda_graphs="off")
    assert (model.status.graphs, model.status.no_graphs) == ((), "")
    assert not model.run([column(1)]).device.is_graph


def test_a_model_whose_outputs_have_no_rows_is_not_padded(bench):
    bench.device.costs.replay_ns = lambda rows: 1
    model = bench.ready(lambda x: x.sum(0, keepdim=True))
    assert "first dimension" in model.status.no_graphs


def test_padded_lengths_have_graphs_of_their_own(bench):
    spec = [tensor_spec("x", "FP32", (-1,))]
    model = bench.open(
        lambda x: x * 2,
        spec,
        [tensor_spec("y", "FP32", (-1,))],
        padding=PaddingSpec(("x",), ("y",), (2, 4)),
    )
    for length in (2, 4):
        for rows in (1, 8):
            model.run([BatchInput("x", "FP32", (rows, length), [bytes(4 * rows * length)])])
    model.prepare()
    data = np.arange(8, dtype=np.float32)
    for length in (2, 4):
        rows = len(data) // length
        result = model.run([BatchInput("x", "FP32", (rows, length), [data.tobytes()])])
        assert np.array_equal(array_of(result.outputs[0]).reshape(-1), data * 2)


def test_a_model_without_rows_has_one_graph(bench):
    model = bench.open(
        double, [tensor_spec("x", "FP32", (3,))], [tensor_spec("y", "FP32", (3,))], max_batch_size=0
    )
    data = BatchInput("x", "FP32", (3,), [struct.pack("<3f", 1, 2, 3)])
    model.run([data])
    model.prepare()
    result = model.run([data])
    assert result.device.is_graph
    assert values(result) == [2, 4, 6]


# -- memory -------------------------------------------------------------------------------------


def hungry(bench, fits_rows: int) -> None:
    """From now on a run of more rows finds no memory."""
    budget = bench.device.memory.budget
    bench.device.call_bytes = lambda rows: 0 if rows <= fits_rows else budget.capacity


def test_a_batch_that_does_not_fit_is_run_in_pieces(bench):
    model = bench.ready(double, cuda_graphs="off")
    hungry(bench, 3)
    result = model.run([column(*range(8))])
    assert values(result) == [2 * each for each in range(8)]
    assert result.device.out_of_memory
    assert result.device.row_limit == 2
    assert result.outputs[0].shape == (8, 1)


def test_the_size_that_fits_holds_for_later_batches(bench):
    model = bench.ready(double, cuda_graphs="off")
    hungry(bench, 3)
    model.run([column(*range(8))])
    again = model.run([column(*range(5))])
    assert values(again) == [0, 2, 4, 6, 8]
    assert not again.device.out_of_memory
    assert model.run([column(1)]).device.row_limit == 2


def test_twice_as_much_is_tried_after_a_while(bench):
    model = bench.ready(double, cuda_graphs="off")
    hungry(bench, 3)
    model.run([column(*range(8))])
    hungry(bench, 8)
    limits = []
    for bench.now in (299.0, 300.0, 600.0):
        limits.append(model.run([column(*range(8))]).device.row_limit)
    assert limits == [2, 4, 0]


def test_a_single_large_request_is_run_in_pieces_too(bench):
    model = bench.ready(double, cuda_graphs="off")
    hungry(bench, 1)
    data = struct.pack("<8f", *range(8))
    result = model.run([BatchInput("x", "FP32", (8, 1), [data])])
    assert values(result) == [2 * each for each in range(8)]


def test_a_row_that_does_not_fit_is_refused_and_the_next_is_served(bench):
    model = bench.ready(double, cuda_graphs="off")
    hungry(bench, 0)
    with pytest.raises(OutOfDeviceMemory, match=r"no memory to run even one row"):
        model.run([column(1, 2)])
    hungry(bench, 8)
    assert values(model.run([column(1, 2)])) == [2, 4]


def test_graphs_are_given_up_where_there_is_no_memory_for_them(bench):
    model = bench.open(double)
    for rows in (1, 8):
        model.run([column(*range(rows))])
    bench.device.call_bytes = lambda rows: 0 if rows == 1 else bench.device.memory.budget.capacity
    model.prepare()
    assert model.status.graphs == (1,)
    assert "no memory" in model.status.no_graphs


def test_a_model_whose_staging_does_not_fit_is_refused(bench):
    bench.device.memory.budget.capacity = 1 << 20
    with pytest.raises(ModelLoadError, match=r"no memory for 3 staging buffers.*lower max_batch_size"):
        bench.open(double, [tensor_spec("x", "FP32", (1 << 20,))])


def test_what_a_model_holds_is_counted(bench):
    weights = torch.zeros(1000)
    model = bench.ready(double, owned=[weights])
    memory = model.status.memory
    assert memory.weights == 4000
    assert memory.staging == memory.pinned == 3 * 8 * 4
    sharing = bench.open(double, owned=[weights])
    sharing.prepare()
    assert sharing.status.memory.weights == 0


def test_what_graphs_work_in_is_nobody_else_s_until_the_model_is_closed(bench):
    bench.device.call_bytes = lambda rows: 1000 * rows
    model = bench.ready(double)
    assert kept_by_graphs("cuda:0") > 0
    model.close()
    bench.models.clear()
    assert kept_by_graphs("cuda:0") == 0


def test_closing_gives_all_memory_back(bench):
    model = bench.ready(double)
    model.run([column(1, 2)])
    model.close()
    bench.models.clear()
    del model
    assert EmulatedGpu(bench.device).reserved_bytes() == 0


# -- errors -------------------------------------------------------------------------------------


def test_a_model_that_raises_leaves_its_slot(bench):
    def picky(x):
        if x.shape[0] == 3:
            raise ValueError("not three")
        return x

    model = bench.ready(picky, staging_slots=1, cuda_graphs="off")
    for _ in range(3):
        with pytest.raises(ValueError, match="not three"):
            model.run([column(1, 2, 3)])
    assert values(model.run([column(1, 2)])) == [1, 2]


def test_an_output_of_another_shape_is_told(bench):
    model = bench.open(lambda x: x.repeat(1, 2))
    with pytest.raises(ModelFailed, match=r"output 'y' has shape \[1, 2\]"):
        model.run([column(1)])


def test_a_device_that_fails_for_good_is_lost_for_all_that_follows(bench):
    model = bench.ready(double)
    launched = model.launch([column(1)])
    bench.device.lose()
    with pytest.raises(DeviceLost, match=r"cuda:0 failed \(CUDA error.*start the server anew"):
        launched.wait()
    for _ in range(5):  # more than there are slots
        with pytest.raises(DeviceLost):
            model.launch([column(1)])


def test_an_error_that_leaves_the_device_well_is_the_batch_s_own(bench):
    model = bench.ready(double, staging_slots=1)
    bench.device.fail_next(RuntimeError("CUDA error: out of resources"), "synchronize")
    with pytest.raises(RuntimeError, match="out of resources"):
        model.run([column(1)])
    assert values(model.run([column(1)])) == [2]


# -- times --------------------------------------------------------------------------------------


def test_a_run_s_parts_are_the_device_s(bench):
    bench.device.costs.call_ns = lambda rows: 700
    model = bench.ready(double, cuda_graphs="off")
    result = model.run([column(1, 2)])
    assert result.device.run_ns == 700
    assert (result.device.bytes_in, result.device.bytes_out) == (8, 8)
    assert result.infer_ns == 700
    assert min(result.input_ns, result.output_ns) >= 0
