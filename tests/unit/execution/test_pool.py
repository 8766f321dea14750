from __future__ import annotations

import asyncio
import math
import os
import re
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.support import PythonModel, bytes_spec, model_spec, run
from torch import nn

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends import opener
from tensorferry.execution.pool import Pool, open_pool
from tensorferry.execution.priority import MOST_NICE
from tensorferry.execution.stream import InlineStream
from tensorferry.execution.warmup import WarmupReport
from tensorferry.repository import read_model
from tensorferry.tensors import Tensor, array_of, tensor_of
from tensorferry.testing.models import write_identity, write_mlp, write_model, write_slow

SPEC = bytes_spec()


@pytest.fixture
def identity(tmp_path):
    def written(options="", **more):
        directory = write_identity(tmp_path, options="dynamic_batching { }\n" + options, **more)
        model = read_model(directory)
        assert model.error is None, model.error
        return model.versions[0]

    return written


def own_threads() -> set[threading.Thread]:
    """Return the threads that are alive, less those that asyncio keeps for ``to_thread``."""
    return {each for each in threading.enumerate() if not each.name.startswith("asyncio_")}


def batch_for(spec, value: float) -> Batch:
    array = np.full((2, 1), value, np.float32)
    return Batch(spec, [Pending(spec.bind([tensor_of("x", array)]), print)], 0.0)


def outcome_of(pool, batch) -> asyncio.Future:
    future = asyncio.get_running_loop().create_future()
    pool.start(batch, future.set_result)
    return future


def test_each_stream_of_the_instance_group_runs_a_batch_at_the_same_time(identity):
    async def main():
        spec = identity("instance_group { count: 3 }")
        pool = await open_pool(spec, inline_below_s=math.inf)
        assert not pool.is_inline, "several streams are the owner's wish for several threads"
        assert pool.idle == 3
        futures = []
        for number in range(3):
            futures.append(outcome_of(pool, batch_for(pool.spec, float(number))))
            assert pool.idle == 2 - number
        outcomes = [await future for future in futures]
        assert sorted(outcome.stream for outcome in outcomes) == [0, 1, 2]
        results = [outcome.result for outcome in outcomes]
        assert [array_of(result.outputs[0]).ravel().tolist() for result in results] == [
            [0, 0],
            [1, 1],
            [2, 2],
        ]
        assert pool.idle == 3
        await pool.close()
        assert pool.idle == 0

    run(main())


def test_stream_is_idle_again_before_the_outcome_is_told():
    async def main():
        pool = Pool([InlineStream(PythonModel(SPEC))], SPEC, WarmupReport({}))
        seen = []
        bound = SPEC.bind([Tensor("x", "UINT8", (1, 1), b"a")])
        pool.start(Batch(SPEC, [Pending(bound, print)], 0.0), lambda _: seen.append(pool.idle))
        assert seen == [1]

    run(main())


def test_quick_model_on_one_cpu_stream_runs_on_the_loop_thread(identity):
    async def main():
        before = own_threads()
        pool = await open_pool(identity(), inline_below_s=math.inf)
        assert pool.is_inline
        assert own_threads() == before, "the thread that loaded it is over"
        assert set(pool.report.run_s) == {1, 2, 4, 8, 16, 32, 64}
        future = outcome_of(pool, batch_for(pool.spec, 7.0))
        assert future.done()
        assert array_of(future.result().result.outputs[0]).ravel().tolist() == [7, 7]
        await pool.close()

    run(main())


def test_slower_model_keeps_its_thread(identity):
    async def main():
        pool = await open_pool(identity(), inline_below_s=0.0)
        assert not pool.is_inline
        future = outcome_of(pool, batch_for(pool.spec, 7.0))
        assert not future.done()
        assert array_of((await future).result.outputs[0]).ravel().tolist() == [7, 7]
        await pool.close()

    run(main())


def test_model_that_is_told_to_keeps_its_thread_however_quick_it_is(identity):
    async def main():
        pool = await open_pool(replace(identity(), execution="thread"), inline_below_s=math.inf)
        assert not pool.is_inline
        await pool.close()

    run(main())


def test_model_that_is_told_to_runs_on_the_loop_thread_though_it_is_above_the_limit(identity):
    async def main():
        pool = await open_pool(replace(identity(), execution="inline"), inline_below_s=0.0)
        assert pool.is_inline
        assert outcome_of(pool, batch_for(pool.spec, 7.0)).done()
        await pool.close()

    run(main())


class Long(nn.Module):
    """Some hundred million multiplications a run: many milliseconds on any machine."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.full((512, 512), 1 / 512)
        for _ in range(20):
            product = product @ product
        return x + product[0, 0]


def long_model(root):
    config = (
        "max_batch_size: 1\n"
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    )
    return read_model(write_model(root, "long", Long(), config)).versions[0]


def refusal_of(spec) -> str:
    """Return why the pool doesn't open; no thread may be left behind."""
    before = own_threads()
    with pytest.raises(ModelLoadError) as caught:
        run(open_pool(spec))
    for thread in own_threads() - before:
        thread.join(20)
        assert not thread.is_alive()
    return str(caught.value)


def test_model_that_would_block_the_loop_is_refused_inline_with_what_was_measured(tmp_path):
    message = refusal_of(replace(long_model(tmp_path), execution="inline"))
    assert re.search(r"its batches of 1 rows ran for [\d.]+ ms at best", message), message
    assert "at most 2 ms is allowed" in message
    assert "set its execution to auto or thread" in message


def test_model_whose_run_time_is_not_known_is_refused_inline(identity):
    message = refusal_of(replace(identity(dims=(-1,)), execution="inline"))
    assert "could not be measured" in message
    assert "model_warmup" in message


def test_model_of_several_instances_is_refused_inline(identity):
    message = refusal_of(replace(identity("instance_group { count: 2 }"), execution="inline"))
    assert "['cpu', 'cpu']" in message
    assert "one CPU instance" in message


def test_slow_test_model_is_never_quick_enough_for_the_loop_thread(tmp_path):
    async def main():
        pool = await open_pool(read_model(write_slow(tmp_path)).versions[0])
        assert not pool.is_inline
        await pool.close()

    run(main())


def test_model_that_could_not_be_warmed_up_keeps_its_thread(identity):
    async def main():
        pool = await open_pool(identity(dims=(-1,)), inline_below_s=math.inf)
        assert not pool.is_inline
        assert pool.report.skipped
        await pool.close()

    run(main())


def test_specification_is_the_one_that_loading_completed(tmp_path):
    directory = write_mlp(tmp_path)
    (directory / "config.pbtxt").unlink()

    async def main():
        pool = await open_pool(read_model(directory).versions[0])
        assert [each.name for each in (*pool.spec.inputs, *pool.spec.outputs)] == ["INPUT__0", "OUTPUT__0"]
        await pool.close()

    run(main())


@pytest.mark.parametrize("count", [1, 3])
def test_pool_that_does_not_open_leaves_no_thread_behind(identity, count):
    async def main():
        spec = identity(f"instance_group {{ count: {count} }}")
        spec.path.write_bytes(b"")
        before = own_threads()
        with pytest.raises(ModelLoadError, match="not a TorchScript model"):
            await open_pool(spec)
        for thread in own_threads() - before:
            thread.join(20)
            assert not thread.is_alive()

    run(main())


def test_stream_that_opened_is_closed_when_another_did_not(identity):
    async def main():
        spec = identity("instance_group [ { count: 1 }, { count: 1, kind: KIND_GPU, gpus: 99 } ]")
        before = own_threads()
        with pytest.raises(ModelLoadError, match="cuda:99"):
            await open_pool(spec)
        for thread in own_threads() - before:
            thread.join(20)
            assert not thread.is_alive()

    run(main())


def test_unknown_platform_is_refused_by_name():
    with pytest.raises(ModelLoadError, match=r"'m': no platform 'caffe2'; known: \['onnxruntime_onnx', "):
        opener(model_spec(platform="caffe2"))


def niceness_of(thread: threading.Thread) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


def stream_thread(before: set[threading.Thread]) -> threading.Thread:
    (thread,) = [each for each in set(threading.enumerate()) - before if each.name.endswith("/1#0")]
    return thread


def test_background_model_runs_on_a_thread_that_everything_goes_before(identity):
    async def main():
        before = set(threading.enumerate())
        spec = replace(identity(), background=True, execution="inline", intra_op_threads=2)
        pool = await open_pool(spec, inline_below_s=math.inf)
        assert not pool.is_inline, "it never holds up the loop"
        thread = stream_thread(before)
        assert niceness_of(thread) == MOST_NICE
        future = outcome_of(pool, batch_for(pool.spec, 7.0))
        assert array_of((await future).result.outputs[0]).ravel().tolist() == [7, 7]
        await pool.close()

    run(main())


def test_thread_that_serves_a_quick_model_is_not_left_giving_way_by_loading(identity):
    async def main():
        before = set(threading.enumerate())
        pool = await open_pool(replace(identity(), execution="thread"))
        assert niceness_of(stream_thread(before)) == niceness_of(threading.main_thread())
        await pool.close()

    run(main())


def test_closing_a_pool_frees_an_inline_model_on_another_thread(identity):
    async def main():
        pool = await open_pool(identity(), inline_below_s=math.inf)
        assert pool.is_inline
        freed_on = []
        model = pool._streams[0]._model
        weakref.finalize(model._call, lambda: freed_on.append(threading.current_thread()))
        await pool.close()
        assert freed_on != []
        assert freed_on[0] is not threading.main_thread()

    run(main())
