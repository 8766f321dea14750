"""Emulated memory: what there is of it, what unwritten memory holds, and what is no memory of the device."""

from __future__ import annotations

import pytest
import torch
from tests.unit.emulation.support import BYTES, Bench, doubled

from tensorferry.testing.emulated_device import EmulatedDevice
from tensorferry.testing.emulated_gpu import EmulatedGpu, RaceError


def test_memory_is_counted_until_the_last_tensor_of_it_is_dropped():
    bench = Bench()
    before = bench.gpu.allocated_bytes()
    memory = bench.gpu.empty(bench.run, 1000)
    view = memory[10:20].view(torch.int16)
    assert bench.gpu.allocated_bytes() == before + 1024
    del memory
    assert bench.gpu.allocated_bytes() == before + 1024
    del view
    assert bench.gpu.allocated_bytes() == before
    assert bench.gpu.peak_bytes() == before + 1024
    bench.gpu.reset_peak()
    assert bench.gpu.peak_bytes() == before


def test_freed_memory_is_kept_until_it_is_given_back():
    bench = Bench()
    at_rest = bench.gpu.reserved_bytes()
    memory = bench.gpu.empty(bench.run, 4096)
    del memory
    assert bench.gpu.reserved_bytes() == at_rest + 4096
    smaller = bench.gpu.empty(bench.run, 1024)
    assert bench.gpu.reserved_bytes() == at_rest + 4096
    bench.gpu.release_cached()
    assert bench.gpu.reserved_bytes() == at_rest + smaller.numel()


def test_more_than_there_is_raises_what_torch_raises():
    bench = Bench(capacity_bytes=4096)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        bench.gpu.empty(bench.run, 4096)
    bench.gpu.empty(bench.run, 3584)


def test_a_call_needs_its_workspace_and_gives_it_back():
    bench = Bench(capacity_bytes=10_000)
    bench.bring_in()
    bench.device.call_bytes = lambda rows: rows * 2_000
    outputs = bench.gpu.call(bench.run, doubled, [bench.input])
    assert bench.gpu.peak_bytes() == 512 + 8_000 + 512
    assert bench.gpu.allocated_bytes() == 1024
    bench.device.memory.budget.capacity = 8_000
    with pytest.raises(torch.OutOfMemoryError):
        bench.gpu.call(bench.run, doubled, [bench.input])
    half = bench.gpu.call(bench.run, doubled, [bench.input[:2]])
    assert torch.equal(half[0], outputs[0][:2])


def test_a_call_that_fails_gives_its_workspace_back():
    bench = Bench()
    bench.bring_in()
    bench.device.call_bytes = lambda rows: 1000
    before = bench.gpu.allocated_bytes()
    with pytest.raises(ZeroDivisionError):
        bench.gpu.call(bench.run, lambda x: [x / (1 // 0)], [bench.input])
    assert bench.gpu.allocated_bytes() == before


def test_graphs_of_one_pool_share_the_workspace_of_the_largest():
    bench = Bench()
    bench.device.call_bytes = lambda rows: rows * 1024
    before = bench.gpu.reserved_bytes()
    pool = bench.gpu.pool()
    graphs = [bench.gpu.capture(bench.run, doubled, [bench.input[:rows]], pool) for rows in (4, 2, 1)]
    assert bench.gpu.reserved_bytes() == before + 4 * 1024 + 3 * 512
    assert bench.gpu.allocated_bytes() == before + 3 * 512
    del graphs, pool
    bench.gpu.release_cached()
    assert bench.gpu.reserved_bytes() == before


def test_models_of_one_device_share_its_memory():
    device = EmulatedDevice("cuda:0", capacity_bytes=1024)
    one, other = EmulatedGpu(device), EmulatedGpu(device)
    memory = one.empty(one.lane(), 1024)
    with pytest.raises(torch.OutOfMemoryError):
        other.empty(other.lane(), 1)
    del memory
    other.empty(other.lane(), 1024)


def test_memory_that_nothing_was_written_to_is_not_read():
    bench = Bench()
    assert bench.input.isnan().all()
    with pytest.raises(RaceError, match="where nothing was written"):
        bench.gpu.call(bench.run, doubled, [bench.input])
    bench.gpu.zero(bench.run, bench.input[:2])
    bench.gpu.call(bench.run, doubled, [bench.input[:2]])
    with pytest.raises(RaceError, match="where nothing was written"):
        bench.gpu.call(bench.run, doubled, [bench.input])
    bench.gpu.zero(bench.run, bench.input[2:])
    bench.gpu.call(bench.run, doubled, [bench.input])


def test_memory_from_elsewhere_is_refused():
    bench = Bench()
    foreign = torch.zeros(BYTES // 8, 2)
    with pytest.raises(RaceError, match="isn't in memory from"):
        bench.gpu.copy(bench.run, bench.input, foreign)
    with pytest.raises(RaceError, match="isn't in memory from"):
        bench.gpu.call(bench.run, doubled, [foreign])
    with pytest.raises(RaceError, match="isn't from pinned"):
        bench.gpu.fill(torch.zeros(4, dtype=torch.uint8), [b"1234"])
    with pytest.raises(RaceError, match="isn't from pinned"):
        bench.gpu.view(bench.input)


def test_copies_are_between_the_host_and_the_device_and_alike():
    bench = Bench()
    bench.fill()
    with pytest.raises(ValueError, match="between pinned memory and the device"):
        bench.gpu.copy(bench.run, bench.target, bench.source)
    with pytest.raises(ValueError, match="copy of"):
        bench.gpu.copy(bench.run, bench.input[:1], bench.source)
    with pytest.raises(ValueError, match="aren't in one piece"):
        bench.gpu.copy(bench.run, bench.input.t(), bench.source.view(2, -1))
    with pytest.raises(RuntimeError, match="same device"):
        bench.gpu.call(bench.run, doubled, [bench.source])


def test_pinned_memory_is_not_the_devices():
    bench = Bench()
    assert bench.gpu.holds(bench.input)
    assert not bench.gpu.holds(bench.source)


def test_outputs_keep_their_shapes_strides_and_what_they_share_with_inputs():
    bench = Bench()
    bench.bring_in()
    outputs = bench.gpu.call(
        bench.run, lambda x: [x, x.t() * 1, (x[:, :1] * 1).expand(-1, 3), x.sum(), x[:0] * 1], [bench.input]
    )
    same, transposed, expanded, total, empty = outputs
    assert same.data_ptr() == bench.input.data_ptr()
    assert transposed.stride() == (1, 2)
    assert expanded.tolist()[1] == [2.0, 2.0, 2.0]
    assert total.item() == 28.0
    assert empty.shape == (0, 2)
    total.add_(1)  # outputs aren't bound to inference mode


def test_a_lost_device_fails_for_good():
    bench = Bench()
    event = bench.mark(bench.run)
    assert not bench.gpu.is_lost()
    bench.device.lose()
    assert bench.gpu.is_lost()
    for use in (
        event.synchronize,
        lambda: bench.run.record(event),
        lambda: bench.run.wait(event),
        lambda: bench.gpu.empty(bench.run, 8),
        lambda: bench.gpu.zero(bench.run, bench.input),
        lambda: bench.gpu.call(bench.run, doubled, [bench.input]),
    ):
        with pytest.raises(RuntimeError, match="CUDA error"):
            use()


def test_faults_come_once_and_where_they_are_told():
    bench = Bench()
    bench.bring_in()
    bench.device.fail_next(torch.OutOfMemoryError("full"), "call")
    bench.device.fail_next(torch.OutOfMemoryError("still full"), "call")
    event = bench.mark(bench.run)
    event.synchronize()
    for message in ("full", "still full"):
        with pytest.raises(torch.OutOfMemoryError, match=message):
            bench.gpu.call(bench.run, doubled, [bench.input])
    bench.gpu.call(bench.run, doubled, [bench.input])
    bench.device.fail_next(RuntimeError("anything"))
    with pytest.raises(RuntimeError, match="anything"):
        event.synchronize()
    event.synchronize()
