"""What is told of a model on a GPU, which is emulated: it agrees with itself and with what was asked."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.unit.monitoring.nvml import FakeNvml, whole
from tests.unit.support import run

from tensorferry.config import ServerConfig
from tensorferry.control.statistics import model_statistics
from tensorferry.engine import Engine
from tensorferry.errors import DeviceLost
from tensorferry.execution.backends import torch_gpu
from tensorferry.monitoring.collect_engine import EngineCollector
from tensorferry.monitoring.collect_server import ServerCollector
from tensorferry.monitoring.families import Families
from tensorferry.monitoring.gpus import GpuSampler
from tensorferry.monitoring.sources import ProcessSource
from tensorferry.repository import scan
from tensorferry.tensors import tensor_of
from tensorferry.testing.emulated_gpu import EmulatedDevice, EmulatedGpu
from tensorferry.testing.models import write_identity
from tensorferry.transport import choose

KEY = ("identity", "1")
UUID = "GPU-emulated-cuda:0"
OPTIONS = "dynamic_batching { }\ninstance_group { count: 2 kind: KIND_GPU gpus: 0 }"


@pytest.fixture
def device():
    """The one device that models on any GPU are on."""
    emulated = EmulatedDevice("cuda:0")
    with torch_gpu.opened_by(lambda _: EmulatedGpu(emulated)):
        yield emulated


def on_engine(root, use):
    """Run ``use(engine)`` with a model on the GPU and one on the CPU."""
    write_identity(root, "identity", options=OPTIONS)
    write_identity(root, "on_cpu")

    async def main():
        engine = Engine(1000, 2**30)
        await engine.load_all(scan(root))
        try:
            return await use(engine)
        finally:
            await engine.close()

    return run(main())


async def call(engine: Engine, name: str = "identity", times: int = 10) -> None:
    x = [tensor_of("x", np.ones((2, 1), np.float32))]
    await asyncio.gather(*(engine.infer(name, x) for _ in range(times)))


def total(families: Families, name: str, **labels: str) -> float:
    """The sum of a family's series with these label values."""
    family = families[name]
    return sum(
        value
        for key, value in family.values.items()
        if labels.items() <= dict(zip(family.labels, key, strict=True)).items()
    )


def test_the_devices_batches_are_those_that_were_run(device, tmp_path):
    async def use(engine: Engine) -> tuple[Families, dict[str, str]]:
        await call(engine)
        await call(engine, "on_cpu")
        collector = EngineCollector(engine)
        return await collector.collect(), collector.devices

    families, devices = on_engine(tmp_path, use)
    batches = total(families, "tensorferry_device_batches")
    assert batches == families["nv_inference_exec_count"].values[KEY] > 0
    assert total(families, "tensorferry_device_bytes", direction="in") >= 10 * 2 * 4
    assert total(families, "tensorferry_device_graphs") > 0
    assert {key[:2] for key in families["tensorferry_device_run_seconds"].values} == {KEY}
    assert devices == {UUID: "cuda:0"}


def test_what_it_holds_is_the_same_in_metrics_and_statistics(device, tmp_path):
    async def use(engine: Engine):
        families = await EngineCollector(engine).collect()
        return families, [model_statistics(engine.resolve(name, "")) for name in ("identity", "on_cpu")]

    families, (on_gpu, on_cpu) = on_engine(tmp_path, use)
    usage = {each.type: each.byte_size for each in on_gpu.memory_usage}
    held = "tensorferry_device_memory_bytes"
    assert usage["GPU"] == sum(
        total(families, held, kind=kind) for kind in ("weights", "staging", "graphs", "workspace")
    )
    assert usage["CPU_PINNED"] == total(families, held, kind="pinned") > 0
    assert list(on_cpu.memory_usage) == []


def test_the_gpus_that_models_are_on_are_asked_after_and_no_others(device, tmp_path):
    threads = []
    nvml = FakeNvml({UUID: whole(), "GPU-of-others": whole()})
    sampler = GpuSampler(lambda: nvml, lambda: 1.0, threads.append, lambda _: sampler.gpus(()))

    async def use(engine: Engine) -> tuple[Families, Families]:
        server = ServerCollector(choose(ServerConfig(model_repository=tmp_path)), lambda: True)
        source = ProcessSource(EngineCollector(engine), server, sampler)
        first = await source.families()
        threads.pop()()
        return first, await source.families()

    first, second = on_engine(tmp_path, use)
    assert first["nv_gpu_utilization"].values == {}
    assert second["nv_gpu_utilization"].values == {(UUID,): 0.91}
    assert second["tensorferry_gpu_info"].values == {(UUID, "cuda:0", "NVIDIA H200"): 1}
    assert nvml.calls == [UUID]


def test_a_lost_gpu_is_told_of_the_version_that_was_on_it(device, tmp_path):
    async def use(engine: Engine) -> tuple[Families, Families]:
        before = await EngineCollector(engine).collect()
        device.lose()
        with pytest.raises(DeviceLost):
            await call(engine, times=1)
        return before, await EngineCollector(engine).collect()

    before, after = on_engine(tmp_path, use)
    assert before["tensorferry_device_lost"].values == {KEY: False}
    assert after["tensorferry_device_lost"].values == {KEY: True}
    assert after["tensorferry_model_ready"].values == {KEY: False, ("on_cpu", "1"): True}
