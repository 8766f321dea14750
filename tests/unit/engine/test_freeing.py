"""Versions that were replaced or withdrawn are gone: nothing holds them, or anything that was theirs."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter

from tests.unit.live_support import entry_of, settle, with_server, write_version, x

from tensorferry.batching.batcher import Batcher
from tensorferry.engine.live import LiveModel
from tensorferry.execution.backends.torch_tensors import TorchModel
from tensorferry.execution.pool import Pool
from tensorferry.rollout.state import EMPTY

#: What a version is made of.
PARTS = (LiveModel, Batcher, Pool, TorchModel)

#: A caller's patience, which must not be how long what answered it is kept.
DAY_S = 86_400.0


def parts_alive() -> Counter[str]:
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in PARTS)


def stream_threads() -> list[str]:
    """Names of the streams' threads: model/version#number. The loop's own thread pool may still grow."""
    return [thread.name for thread in threading.enumerate() if "#" in thread.name]


async def swap(server, version):
    """Serve a new version in place of all others, and wait until those have been freed."""
    write_version(server.root, version)
    server.engine.commit(await server.engine.prepare(entry_of(server.root), EMPTY))
    await server.engine.wait_retired()
    await settle()


def test_a_replaced_version_is_freed_without_the_garbage_collector(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        await server.engine.infer("m", x(), timeout_s=DAY_S)
        replaced = weakref.ref(server.engine.models["m"][1])
        gc.disable()
        try:
            await swap(server, 2)
            return replaced() is None
        finally:
            gc.enable()

    assert with_server(tmp_path, use)


def test_nothing_piles_up_over_swaps_whose_callers_were_patient(tmp_path):
    write_version(tmp_path, 1)

    async def use(server):
        await swap(server, 2)
        before = parts_alive()
        for version in range(3, 8):
            await server.engine.infer("m", x(), timeout_s=DAY_S)
            await swap(server, version)
        return before, parts_alive(), stream_threads()

    before, after, threads = with_server(tmp_path, use)
    assert before["LiveModel"] >= 1
    assert after == before
    assert threads == []


def test_nothing_piles_up_over_models_that_are_loaded_and_withdrawn(tmp_path):
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, name="guest")

    async def use(server):
        before = parts_alive()
        for _ in range(5):
            await server.coordinator.load("guest")
            await server.engine.infer("guest", x(), timeout_s=DAY_S)
            await server.coordinator.unload("guest")
            await server.engine.wait_retired()
            await asyncio.sleep(0)
        return before, parts_alive()

    before, after = with_server(tmp_path, use, load=("m",))
    assert before["LiveModel"] >= 1
    assert after == before
