"""What captures refuse, what replays leave behind, and what graphs of one pool do to each other."""

from __future__ import annotations

import pytest
import torch
from tests.unit.emulation.support import Bench, doubled

from tensorferry.testing.emulated_gpu import RaceError


def test_a_graph_leaves_nothing_until_it_is_replayed():
    bench = Bench()
    bench.bring_in()
    graph = bench.gpu.capture(bench.run, doubled, [bench.input], bench.gpu.pool())
    assert graph.outputs[0].isnan().all()
    with pytest.raises(RaceError, match="where nothing was written"):
        bench.gpu.copy(bench.run, bench.target, graph.outputs[0])
    bench.gpu.replay(bench.run, graph)
    bench.gpu.copy(bench.run, bench.target, graph.outputs[0])
    bench.mark(bench.run).synchronize()
    assert bench.read(bench.target)[3] == 6.0


def test_a_graph_reads_what_its_input_holds_when_it_is_replayed():
    bench = Bench()
    bench.bring_in()
    graph = bench.gpu.capture(bench.run, doubled, [bench.input], bench.gpu.pool())
    bench.mark(bench.run).synchronize()
    bench.bring_in(start=100)
    bench.gpu.replay(bench.run, graph)
    assert graph.outputs[0][0].tolist() == [200.0, 202.0]


def test_two_lanes_do_not_replay_graphs_of_one_pool_at_once():
    bench = Bench()
    bench.bring_in()
    bench.mark(bench.copy_in).synchronize()
    pool = bench.gpu.pool()
    one, other = (bench.gpu.capture(bench.run, doubled, [bench.input], pool) for _ in range(2))
    bench.gpu.replay(bench.run, one)
    with pytest.raises(RaceError, match="pool of graphs"):
        bench.gpu.replay(bench.copy_out, other)


def test_a_replay_does_not_spoil_a_later_graphs_outputs_while_they_are_copied():
    # torch lets a later graph have what an earlier one freed, for its outputs too.
    bench = Bench()
    bench.bring_in()
    pool = bench.gpu.pool()
    earlier, later = (bench.gpu.capture(bench.run, doubled, [bench.input], pool) for _ in range(2))
    bench.gpu.replay(bench.run, later)
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, later.outputs[0])
    copied = bench.mark(bench.copy_out)
    with pytest.raises(RaceError, match="replay of graph 1, which may work where graph 2"):
        bench.gpu.replay(bench.run, earlier)
    bench.run.wait(copied)
    bench.gpu.replay(bench.run, earlier)
    assert later.outputs[0].isnan().all()


@pytest.mark.parametrize("pools", [1, 2])
def test_a_replay_leaves_alone_the_outputs_of_earlier_graphs_and_other_pools(pools: int):
    bench = Bench()
    bench.bring_in()
    handles = [bench.gpu.pool() for _ in range(pools)]
    first, second = (
        bench.gpu.capture(bench.run, doubled, [bench.input], handles[index % pools]) for index in range(2)
    )
    pairs = [(first, second), (second, first)] if pools == 2 else [(first, second)]
    for kept, other in pairs:
        bench.gpu.replay(bench.run, kept)
        bench.order(bench.copy_out, bench.run)
        bench.gpu.copy(bench.copy_out, bench.target, kept.outputs[0])
        copied = bench.mark(bench.copy_out)
        bench.gpu.replay(bench.run, other)
        copied.synchronize()
    assert bench.device.races == []


def test_outputs_that_a_graph_copies_to_other_memory_are_safe_from_later_replays():
    bench = Bench()
    bench.bring_in()
    pool = bench.gpu.pool()
    kept = [bench.floats(bench.gpu.empty(bench.run, 32)) for _ in range(2)]
    graphs = [
        bench.gpu.capture(bench.run, lambda x, to=to: [to.copy_(x * 2)], [bench.input], pool) for to in kept
    ]
    bench.gpu.replay(bench.run, graphs[1])
    bench.order(bench.copy_out, bench.run)
    bench.gpu.copy(bench.copy_out, bench.target, graphs[1].outputs[0])
    bench.gpu.replay(bench.run, graphs[0])
    assert kept[1][0].tolist() == [0.0, 2.0]
    with pytest.raises(RaceError, match=r"replay of graph 2 .* behind copy out"):
        bench.gpu.replay(bench.run, graphs[1])


HOST_READS = {
    "item": lambda x: [x * x.sum().item()],
    "bool": lambda x: [x if x.sum() > 0 else x * 2],
    "cpu": lambda x: [x.cpu()],
    "numpy": lambda x: [torch.as_tensor(x.numpy())],
    "tolist": lambda x: [x * x.tolist()[0][0]],
    "mask": lambda x: [x[x > 0]],
    "nonzero": lambda x: [torch.nonzero(x)],
    "tensor": lambda x: [x * torch.tensor(2.0, device=x.device)],
}


class Branching(torch.nn.Module):
    """Asks on the host what its input holds."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x] if bool(x.sum() > 0) else [x * 2]


class ToHost(torch.nn.Module):
    """Brings its output to the host."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [(x * 2).cpu()]


@pytest.mark.parametrize("name", HOST_READS)
def test_a_capture_refuses_what_waits_for_the_device(name: str):
    bench = Bench()
    bench.bring_in()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        bench.gpu.capture(bench.run, HOST_READS[name], [bench.input], bench.gpu.pool())
    bench.gpu.call(bench.run, doubled, [bench.input])  # the lane is as it was
    assert bench.input[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("module", [Branching(), ToHost()])
def test_a_capture_refuses_it_in_torchscript_too(module: torch.nn.Module):
    bench = Bench()
    scripted = torch.jit.script(module)
    for _ in range(3):
        scripted(torch.ones(4, 2))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        bench.gpu.capture(bench.run, scripted, [bench.input], bench.gpu.pool())


def test_a_capture_allows_what_stays_on_the_device():
    bench = Bench()
    bench.bring_in()

    def forward(x: torch.Tensor) -> list[torch.Tensor]:
        return [x.to(x.device) + torch.zeros(2, device=x.device), x.half(), x[:, [1]]]

    graph = bench.gpu.capture(bench.run, forward, [bench.input], bench.gpu.pool())
    bench.gpu.replay(bench.run, graph)
    assert graph.outputs[2][0].item() == 1.0


def test_a_replay_with_other_shapes_is_refused():
    bench = Bench()
    bench.bring_in()
    rows = iter([1, 2])
    graph = bench.gpu.capture(bench.run, lambda x: [x[: next(rows)] * 2], [bench.input], bench.gpu.pool())
    with pytest.raises(RuntimeError, match="other shapes"):
        bench.gpu.replay(bench.run, graph)


def test_a_lane_that_captures_takes_nothing_else():
    bench = Bench()
    bench.bring_in()
    pool = bench.gpu.pool()

    def inner(x: torch.Tensor) -> list[torch.Tensor]:
        return bench.gpu.capture(bench.run, doubled, [x], pool).outputs

    def copying(x: torch.Tensor) -> list[torch.Tensor]:
        bench.gpu.copy(bench.run, bench.target, x)
        return [x]

    for forward in (inner, copying):
        with pytest.raises(RuntimeError, match="captures a graph"):
            bench.gpu.capture(bench.run, forward, [bench.input], pool)


def test_captures_fail_and_replays_are_spoilt_when_told():
    bench = Bench()
    bench.bring_in()
    bench.device.capture_fails = RuntimeError("not today")
    with pytest.raises(RuntimeError, match="not today"):
        bench.gpu.capture(bench.run, doubled, [bench.input], bench.gpu.pool())
    bench.device.capture_fails = None
    bench.device.after_replay = lambda outputs: outputs[0].add_(1)
    graph = bench.gpu.capture(bench.run, doubled, [bench.input], bench.gpu.pool())
    bench.gpu.replay(bench.run, graph)
    assert graph.outputs[0][0].tolist() == [1.0, 3.0]
