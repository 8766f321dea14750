"""The counts of several processes are one server's, whatever becomes of the processes."""

from __future__ import annotations

from tests.unit.control.support import with_processes
from tests.unit.live_support import ask, write_version

from tensorferry.control.statistics import FleetStatistics, VersionStatistics, memory_usage, merged
from tensorferry.device import DeviceMemory
from tensorferry.execution.launching import DeviceStatus
from tensorferry.wire import open_inference_pb2 as pb


def told(
    count: int, name: str = "m", version: int = 1, identity: str = "i", rows: int = 1
) -> VersionStatistics:
    message = pb.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=1000 + count,
        inference_count=rows * count,
        execution_count=count,
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows, compute_infer=pb.StatisticDuration(count=count, ns=10 * count)
            )
        ],
    )
    message.inference_stats.success.count = count
    message.inference_stats.success.ns = 100 * count
    return VersionStatistics(name, version, identity, message)


def answered(lines) -> dict[tuple[str, int], int]:
    return {(line.name, line.version): line.message.inference_stats.success.count for line in lines}


def test_counts_add_up_and_batch_sizes_are_put_together():
    total = merged([told(3).message, told(5, rows=2).message, told(4).message])
    assert (total.inference_count, total.execution_count, total.last_inference) == (17, 12, 1005)
    assert total.inference_stats.success.ns == 1200
    sizes = {each.batch_size: each.compute_infer.count for each in total.batch_stats}
    assert sizes == {1: 7, 2: 5}
    assert [each.batch_size for each in total.batch_stats] == [1, 2]


def gpu(device: str, weights: int, pinned: int = 0) -> DeviceStatus:
    return DeviceStatus(device, memory=DeviceMemory(weights=weights, staging=1, pinned=pinned))


def usage(message: pb.ModelStatistics) -> list[tuple[str, int, int]]:
    return [(each.type, each.id, each.byte_size) for each in message.memory_usage]


def holding(*devices: DeviceStatus) -> pb.ModelStatistics:
    return pb.ModelStatistics(name="m", version="1", memory_usage=memory_usage(devices))


def test_memory_is_told_by_gpu_and_what_is_pinned_on_the_host_together():
    message = holding(gpu("cuda:0", 100, pinned=5), gpu("cuda:0", 0, pinned=5), gpu("cuda:3", 100, pinned=7))
    assert sorted(usage(message)) == [("CPU_PINNED", 0, 17), ("GPU", 0, 102), ("GPU", 3, 101)]


def test_a_model_on_the_cpu_tells_no_memory():
    assert usage(holding()) == []


def test_the_memory_of_processes_adds_up():
    total = merged([holding(gpu("cuda:0", 10)), holding(gpu("cuda:0", 20)), holding(gpu("cuda:1", 30))])
    assert usage(total) == [("GPU", 0, 32), ("CPU_PINNED", 0, 0), ("GPU", 1, 31)]


def test_a_dead_process_holds_no_memory():
    fleet = FleetStatistics()
    line = VersionStatistics("m", 1, "i", holding(gpu("cuda:0", 10)))
    fleet.total({0: [line]}, "", "")
    fleet.leave(0)
    (after,) = fleet.total({1: [line]}, "", "")
    assert usage(after.message) == [("GPU", 0, 11), ("CPU_PINNED", 0, 0)]


def test_merging_leaves_the_parts_as_they_are():
    part = told(3).message
    merged([part, told(5).message])
    assert part == told(3).message


def test_a_line_survives_json():
    line = told(3, "a b", 7)
    assert VersionStatistics.from_json(line.to_json()) == line


def test_a_dead_process_counts_are_kept():
    fleet = FleetStatistics()
    assert answered(fleet.total({0: [told(3)], 1: [told(5)]}, "", "")) == {("m", 1): 8}
    fleet.leave(1)
    assert answered(fleet.total({0: [told(4)]}, "", "")) == {("m", 1): 9}
    assert answered(fleet.total({0: [told(4)], 1: [told(1)]}, "m", "1")) == {("m", 1): 10}
    fleet.leave(1)
    assert answered(fleet.total({0: [told(4)]}, "", "")) == {("m", 1): 10}


def test_what_is_kept_ends_with_the_version_it_is_of():
    fleet = FleetStatistics()
    fleet.total({0: [told(3)], 1: [told(5)]}, "", "")
    fleet.leave(1)
    assert answered(fleet.total({0: [told(1, identity="other files")]}, "", "")) == {("m", 1): 1}
    assert answered(fleet.total({0: [told(1)]}, "", "")) == {("m", 1): 1}


def test_asking_for_one_model_keeps_what_is_known_of_others():
    fleet = FleetStatistics()
    fleet.total({0: [told(3)], 1: [told(5), told(7, "n")]}, "", "")
    fleet.leave(1)
    assert answered(fleet.total({0: [told(3)]}, "m", "")) == {("m", 1): 8}
    assert answered(fleet.total({0: [told(3), told(1, "n")]}, "", "")) == {("m", 1): 8, ("n", 1): 8}


def test_an_unloaded_model_starts_anew():
    fleet = FleetStatistics()
    fleet.total({0: [told(3)], 1: [told(5)]}, "", "")
    fleet.leave(1)
    fleet.forget("m")
    assert answered(fleet.total({0: [told(2)]}, "", "")) == {("m", 1): 2}


async def counted(process) -> dict[tuple[str, int], int]:
    return answered(await process.control.statistics("", ""))


def test_every_process_tells_the_sum_and_a_death_takes_nothing_from_it(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        for number, engine in enumerate(parent.engines):
            for _ in range(number + 1):
                await ask(engine, "m")
        first, second = parent.processes.values()
        assert await counted(first) == await counted(second) == {("m", 1): 3}
        await second.die()
        await parent.bury(1)
        assert await counted(first) == {("m", 1): 3}
        await ask(first.engine, "m")
        again = await parent.add(1)
        assert await counted(again) == {("m", 1): 4}

    with_processes(tmp_path, use)


def test_counts_start_with_a_versions_life(tmp_path):
    write_version(tmp_path, 1)

    async def use(parent):
        first, second = parent.processes.values()
        await ask(first.engine, "m")
        await ask(second.engine, "m")
        assert await counted(first) == {("m", 1): 2}
        await second.die()
        await parent.bury(1)
        await parent.coordinator.unload("m")
        await parent.coordinator.load("m")
        assert await counted(first) == {("m", 1): 0}

    with_processes(tmp_path, use)
