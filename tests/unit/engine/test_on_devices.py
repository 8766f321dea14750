"""Models on a GPU, which is emulated: what the engine makes of them, and of a GPU that is lost."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from tests.unit.support import run

from tensorferry.engine import Engine, ModelState
from tensorferry.engine.on_devices import described
from tensorferry.errors import DeviceLost, ModelNotReady, Unavailable
from tensorferry.execution.backends import torch_gpu
from tensorferry.execution.launching import DeviceStatus
from tensorferry.repository import read_model, scan
from tensorferry.rollout.state import EMPTY
from tensorferry.tensors import array_of, tensor_of
from tensorferry.testing.emulated_gpu import EmulatedDevice, EmulatedGpu
from tensorferry.testing.models import write_identity

ON_GPU = "dynamic_batching { }\ninstance_group { count: 2 kind: KIND_GPU gpus: 0 }"


@pytest.fixture
def device():
    """The one device that models on any GPU are on."""
    emulated = EmulatedDevice("cuda:0")
    with torch_gpu.opened_by(lambda _: EmulatedGpu(emulated)):
        yield emulated


def x(*values):
    return [tensor_of("x", np.array(values, np.float32).reshape(-1, 1))]


def on_gpu(root, name="identity"):
    return write_identity(root, name, options=ON_GPU)


async def loaded(root, processes=1) -> Engine:
    engine = Engine(1000, 2**30, processes=processes)
    await engine.load_all(scan(root))
    return engine


def stream_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if "#" in each.name]


def test_model_on_a_gpu_answers_and_tells_what_it_has_and_did_there(device, tmp_path, capsys):
    on_gpu(tmp_path)

    async def main():
        engine = await loaded(tmp_path)
        assert engine.is_ready, engine.unready()
        answers = await asyncio.gather(*(engine.infer("identity", x(float(n), n + 0.5)) for n in range(100)))
        assert [array_of(each[0]).ravel().tolist() for each in answers] == [[n, n + 0.5] for n in range(100)]
        live = engine.resolve("identity", "")
        execution = live.execution()
        await engine.close()
        return execution, live.execution()

    execution, after = run(main())
    assert (execution.streams, execution.busy, execution.is_inline) == (2, 0, False)
    assert [status.device for status in execution.devices] == ["cuda:0", "cuda:0"]
    counts = execution.device_counts["cuda:0"]
    assert counts.batches > 0
    assert counts.bytes_in >= 100 * 2 * 4
    assert (after.devices, after.device_counts) == ((), {})
    log = capsys.readouterr().out
    assert "cuda:0: " in log
    assert "graphs of 1, 2, 4, 8, 16, 32, 64 rows" in log
    assert device.races == []
    assert stream_threads() == []


def test_streams_on_several_gpus_count_apart(device, tmp_path):
    others = {"cuda:0": device, "cuda:1": EmulatedDevice("cuda:1")}
    write_identity(tmp_path, options="dynamic_batching { }\ninstance_group { kind: KIND_GPU gpus: [ 0, 1 ] }")

    async def main():
        engine = await loaded(tmp_path)
        await asyncio.gather(*(engine.infer("identity", x(float(n))) for n in range(100)))
        execution = engine.resolve("identity", "").execution()
        await engine.close()
        return execution

    with torch_gpu.opened_by(lambda name: EmulatedGpu(others[name])):
        execution = run(main())
    assert [status.device for status in execution.devices] == ["cuda:0", "cuda:1"]
    batches = {name: counts.batches for name, counts in execution.device_counts.items()}
    assert batches == {"cuda:0": 1, "cuda:1": 1}, "64 rows and 36"


def test_log_names_what_is_on_the_device_and_why_there_are_no_graphs():
    assert described(DeviceStatus("cuda:1", no_graphs="it synchronises")) == (
        "cuda:1: 0.0 MiB (weights 0.0, staging 0.0, graphs 0.0, workspace 0.0); no graphs (it synchronises)"
    )


def test_model_on_a_gpu_in_one_of_several_processes_is_refused_and_says_how_to_serve_it(device, tmp_path):
    on_gpu(tmp_path)
    write_identity(tmp_path, "on_cpu")

    async def main():
        engine = await loaded(tmp_path, processes=2)
        reasons = engine.unready()
        assert list(reasons) == ["identity/1"], "the other serves"
        await engine.close()
        return reasons["identity/1"]

    reason = run(main())
    assert "is on cuda:0, and the server has 2 processes" in reason
    assert "--processes 1" in reason
    assert "KIND_CPU" in reason


def test_lost_gpu_takes_the_server_out_of_its_balancer_and_its_models_with_it(device, tmp_path, capsys):
    on_gpu(tmp_path)
    write_identity(tmp_path, "on_cpu")

    async def main():
        engine = await loaded(tmp_path)
        live = engine.resolve("identity", "")
        device.lose()
        with pytest.raises(DeviceLost):
            await engine.infer("identity", x(1.0))
        assert not engine.is_ready
        assert engine.served() == {"identity": False, "on_cpu": True}
        (reason,) = engine.unready().values()
        assert "cuda:0" in reason
        assert live.state is ModelState.UNAVAILABLE
        with pytest.raises(ModelNotReady, match=r"is UNAVAILABLE: .*cuda:0"):
            await engine.infer("identity", x(1.0))
        with pytest.raises(ModelNotReady, match=r"is UNAVAILABLE: .*cuda:0"):
            await engine.infer("identity", x(1.0), version="1")
        assert array_of((await engine.infer("on_cpu", x(2.0)))[0]).tolist() == [[2.0]]
        await engine.close()

    run(main())
    assert capsys.readouterr().out.count("model lost its GPU") == 1
    assert stream_threads() == []


def test_lost_gpu_is_one_error_with_a_traceback_however_many_copies_find_it_so(device, tmp_path, capsys):
    on_gpu(tmp_path)
    on_gpu(tmp_path, "another")

    async def main():
        engine = await loaded(tmp_path)
        device.lose()
        for name in ("identity", "another"):
            requests = [engine.infer(name, x(*[1.0] * 64)) for _ in range(4)]  # for both streams
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            assert {type(each) for each in outcomes} == {DeviceLost}
        await engine.close()

    run(main())
    log = capsys.readouterr().out
    assert log.count("GPU lost") == 1
    assert log.count("model lost its GPU") == 2, "a line for each version, without a traceback"


def test_requests_that_are_in_when_the_gpu_is_lost_are_unavailable_all_of_them(device, tmp_path):
    on_gpu(tmp_path)

    async def main():
        engine = await loaded(tmp_path)
        requests = [asyncio.ensure_future(engine.infer("identity", x(*[1.0] * 60))) for _ in range(20)]
        device.lose()
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert {isinstance(each, Unavailable) for each in outcomes} == {True}
        await engine.wait_idle()
        await engine.close()

    run(main())


def test_who_follows_readiness_hears_of_a_lost_gpu(device, tmp_path):
    on_gpu(tmp_path)

    async def main():
        engine = await loaded(tmp_path)
        told = []
        engine.on_lost = lambda: told.append((engine.is_ready, bool(engine.why_dead)))
        assert not engine.why_dead
        device.lose()
        with pytest.raises(DeviceLost):
            await engine.infer("identity", x(1.0))
        assert told == [(False, True)]
        await engine.close()

    run(main())


def test_model_that_came_later_and_lost_its_gpu_makes_the_server_unready_too(device, tmp_path):
    later = on_gpu(tmp_path)

    async def main():
        engine = Engine(1000, 2**30)
        await engine.load_all([])
        engine.commit(await engine.prepare(read_model(later), EMPTY))
        assert engine.is_ready
        device.lose()
        with pytest.raises(DeviceLost):
            await engine.infer("identity", x(1.0))
        assert list(engine.unready()) == ["identity/1"]
        assert not engine.is_ready
        engine.unload("identity")
        await engine.wait_retired()
        assert stream_threads() == [], "it had streams yet, and they are gone"
        assert engine.is_ready
        assert "cuda:0" in engine.why_dead, "no model will run there again in this process"
        await engine.close()

    run(main())


def test_model_for_a_gpu_that_was_lost_is_refused_and_says_how_to_have_it_back(device, tmp_path, capsys):
    directory = on_gpu(tmp_path)

    async def main():
        engine = await loaded(tmp_path)
        device.lose()
        with pytest.raises(DeviceLost):
            await engine.infer("identity", x(1.0))
        engine.unload("identity")
        await engine.wait_retired()
        engine.commit(await engine.prepare(read_model(directory), EMPTY))
        with pytest.raises(ModelNotReady, match=r"asks for cuda:0, which has failed .*start the server anew"):
            await engine.infer("identity", x(1.0))
        await engine.close()

    run(main())
    assert "failed unexpectedly" not in capsys.readouterr().out


def test_ensemble_of_a_model_that_lost_its_gpu_is_not_ready(device, tmp_path):
    on_gpu(tmp_path)
    directory = tmp_path / "both"
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(
        'platform: "ensemble"\nmax_batch_size: 64\n'
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
        'ensemble_scheduling { step { model_name: "identity" model_version: -1\n'
        'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }\n'
    )

    async def main():
        engine = await loaded(tmp_path)
        assert engine.is_ready, engine.unready()
        device.lose()
        with pytest.raises(Unavailable):
            await engine.infer("both", x(1.0))
        assert engine.served() == {"both": False, "identity": False}
        await engine.close()

    run(main())


def test_model_that_does_not_fit_on_its_gpu_says_what_to_lower(device, tmp_path):
    on_gpu(tmp_path)
    device.memory.budget.capacity = 700

    async def main():
        engine = await loaded(tmp_path)
        (reason,) = engine.unready().values()
        await engine.close()
        return reason

    reason = run(main())
    assert "cuda:0 has no room for 2 copies of" in reason
    assert "max_batch_size" in reason
    assert stream_threads() == []
