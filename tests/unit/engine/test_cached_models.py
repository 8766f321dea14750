"""The response cache as an engine uses it: which models have it, and what becomes of it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.unit.support import run

from tensorferry.engine import Engine
from tensorferry.errors import ModelNotReady
from tensorferry.repository import scan
from tensorferry.tensors import array_of, tensor_of
from tensorferry.testing.models import write_identity

CACHED = "response_cache { enable: true } dynamic_batching { }"


def x(*values):
    return [tensor_of("x", np.array(values, np.float32).reshape(-1, 1))]


def with_cached(root, use, options=CACHED, cache_bytes=2**20):
    """Run ``use`` with an engine that serves ``Identity`` with these options."""
    write_identity(root, options=options)

    async def main():
        engine = Engine(100, 2**20, response_cache_bytes=cache_bytes)
        await engine.load_all(scan(root))
        try:
            return await use(engine, engine.models["identity"][1])
        finally:
            await engine.close()

    return run(main())


async def ask_twice(engine, live):
    for _ in range(2):
        (output,) = await engine.infer("identity", x(1.5, 2.5))
        assert array_of(output).ravel().tolist() == [1.5, 2.5]
    return live.statistics(), live.cache_statistics()


def test_a_model_that_enables_it_runs_an_equal_request_once(tmp_path):
    counts, cache = with_cached(tmp_path, ask_twice)
    assert (counts.success_count, counts.execution_count) == (2, 1)
    assert (cache.hit_count, cache.miss_count) == (1, 1)


@pytest.mark.parametrize(
    ("options", "cache_bytes"),
    [
        ("dynamic_batching { }", 2**20),
        (CACHED, 0),
        ("response_cache { enable: true } dynamic_batching { preserve_ordering: true }", 2**20),
    ],
    ids=["not enabled", "no bytes", "preserve_ordering"],
)
def test_other_models_run_every_request(tmp_path, options, cache_bytes):
    counts, cache = with_cached(tmp_path, ask_twice, options, cache_bytes)
    assert (counts.success_count, counts.execution_count) == (2, 2)
    assert (cache.hit_count, cache.miss_count) == (0, 0)


def test_unloading_a_version_frees_its_answers(tmp_path):
    async def use(engine, live):
        await engine.infer("identity", x(1))
        kept = engine.cache_size
        await live.unload()
        return kept, engine.cache_size

    kept, after = with_cached(tmp_path, use)
    assert kept.count == 1
    assert kept.byte_size > 0
    assert (after.count, after.byte_size) == (0, 0)


def test_a_hit_is_answered_though_the_model_is_unloaded_on_the_same_tick(tmp_path):
    async def use(engine, live):
        await engine.infer("identity", x(1))
        answered = asyncio.Event()
        request = engine.submit(live, x(1), lambda _: answered.set())
        assert live.in_flight == 1
        await live.unload()
        await answered.wait()
        with pytest.raises(ModelNotReady):
            engine.submit(live, x(1), lambda _: None)
        return request, live.in_flight

    request, left = with_cached(tmp_path, use)
    assert request.error is None
    assert left == 0


def test_a_cancelled_caller_leaves_nothing_in_flight(tmp_path):
    async def use(engine, live):
        calls = [asyncio.create_task(engine.infer("identity", x(1))) for _ in range(2)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await live.wait_idle()
        return live.in_flight, engine.in_flight_bytes

    assert with_cached(tmp_path, use) == (0, 0)
