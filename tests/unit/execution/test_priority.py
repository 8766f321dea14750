from __future__ import annotations

import asyncio
import os
import threading

import pytest
from tests.unit.support import PythonModel, bytes_spec, run

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.execution.priority import MOST_NICE, NICER_BY, SLOW_RUN_S, Priority, run_aside
from tensorferry.execution.stream import Conduct, ThreadStream
from tensorferry.execution.warmup import WarmupReport
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor
from tensorferry.testing.puppet import echo

SPEC = bytes_spec()
LONG_S = 10 * SLOW_RUN_S
SHORT_S = SLOW_RUN_S / 4


def niceness_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


class PooledModel(PythonModel):
    """Says that a run took ``run_s`` of CPU time. Its first run starts a thread, as OpenMP does."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.run_s = SHORT_S
        self.cpu_s = 0.0
        self.threads: list[int] = []
        self._over = threading.Event()

    def run(self, inputs):
        if not self.threads:
            helper = threading.Thread(target=self._over.wait, args=(20,))
            helper.start()
            self.threads = [threading.get_native_id(), helper.native_id]
        self.cpu_s += self.run_s
        return RunResult(echo(inputs), 0, 10**12, 0)  # however long it seemed to take

    def close(self) -> None:
        super().close()
        self._over.set()

    @property
    def niceness(self) -> list[int]:
        return [niceness_of(thread) - niceness_of(0) for thread in self.threads]


def with_stream(use, slowest_s=SHORT_S, gives_way=True):
    """Run ``use(model, ran)`` with a stream whose warm-up measured ``slowest_s``; ``ran`` runs batches."""

    async def main():
        model, loop = PooledModel(), asyncio.get_running_loop()
        report = WarmupReport({1: slowest_s})
        conduct = Conduct(gives_way, lambda: model.cpu_s)
        stream = ThreadStream("m/1#0", lambda: model, 1, loop, report, conduct)

        async def ran(run_s: float, times: int) -> list[int]:
            model.run_s = run_s
            for _ in range(times):
                future = loop.create_future()
                bound = SPEC.bind([Tensor("x", "UINT8", (1, 1), b"a")])
                stream.start(Batch(SPEC, [Pending(bound, print)], 0.0), future.set_result)
                assert (await future).error is None
            return model.niceness

        try:
            await use(ran)
        finally:
            stream.close()
            await stream.wait_closed()

    run(main())


def test_stream_of_short_runs_keeps_its_priority():
    async def use(ran):
        assert await ran(SHORT_S, 100) == [0, 0]

    with_stream(use)


def test_stream_whose_runs_become_long_gives_way_with_the_threads_that_it_started():
    async def use(ran):
        assert await ran(SHORT_S, 20) == [0, 0]
        assert await ran(LONG_S, 20) == [NICER_BY, NICER_BY]
        assert await ran(SHORT_S, 100) == [NICER_BY, NICER_BY], "for ever, and once"
        assert niceness_of(threading.get_native_id()) == niceness_of(0), "the loop's thread doesn't"

    with_stream(use)


def test_one_long_run_changes_nothing():
    async def use(ran):
        await ran(SHORT_S, 20)
        assert await ran(1000 * LONG_S, 1) == [0, 0]
        assert await ran(SHORT_S, 20) == [0, 0]

    with_stream(use)


def test_stream_that_was_slow_at_warm_up_gives_way_from_the_first_batch():
    async def use(ran):
        assert await ran(LONG_S, 1) == [NICER_BY, NICER_BY]

    with_stream(use, slowest_s=LONG_S)


@pytest.mark.parametrize("slowest_s", [SHORT_S, LONG_S])
def test_stream_that_does_not_give_way_keeps_its_priority(slowest_s):
    async def use(ran):
        assert await ran(LONG_S, 40) == [0, 0]

    with_stream(use, slowest_s, gives_way=False)


def test_other_streams_of_the_same_model_keep_theirs():
    async def use_slow(ran):
        await ran(SHORT_S, 1)

        async def use_quick(ran_quick):
            await ran_quick(SHORT_S, 1)
            assert await ran(LONG_S, 40) == [NICER_BY, NICER_BY]
            assert await ran_quick(SHORT_S, 1) == [0, 0]

        model, loop = PooledModel(), asyncio.get_running_loop()
        conduct = Conduct(cpu_clock=lambda: model.cpu_s)
        quick = ThreadStream("m/1#0", lambda: model, 1, loop, WarmupReport({1: SHORT_S}), conduct)

        async def ran_quick(run_s: float, times: int) -> list[int]:
            model.run_s = run_s
            for _ in range(times):
                future = loop.create_future()
                bound = SPEC.bind([Tensor("x", "UINT8", (1, 1), b"a")])
                quick.start(Batch(SPEC, [Pending(bound, print)], 0.0), future.set_result)
                await future
            return model.niceness

        await use_quick(ran_quick)
        quick.close()
        await quick.wait_closed()

    with_stream(use_slow)


def test_work_aside_gives_way_with_its_threads_and_the_caller_keeps_its_priority():
    def work():
        inherited = []
        helper = threading.Thread(target=lambda: inherited.append(niceness_of(threading.get_native_id())))
        helper.start()
        helper.join()
        return threading.current_thread(), niceness_of(threading.get_native_id()), inherited

    own = niceness_of(threading.get_native_id())
    expected = min(own + NICER_BY, MOST_NICE)
    thread, niceness, inherited = run_aside(work, "aside")
    assert (niceness, inherited) == (expected, [expected])
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    assert niceness_of(threading.get_native_id()) == own


def test_work_aside_raises_what_it_raised():
    with pytest.raises(ZeroDivisionError):
        run_aside(lambda: 1 / 0, "aside")


def test_background_is_as_nice_as_can_be_from_the_start():
    def main():
        Priority("m/1#0", background=True)
        return niceness_of(threading.get_native_id())

    assert run_aside(main, "background") == MOST_NICE
