from __future__ import annotations

import asyncio
import threading

import pytest
from tests.unit.support import PythonModel, bytes_spec, run

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.errors import ModelFailed
from tensorferry.execution.drift import BLOCKED_S, DriftWatch
from tensorferry.execution.placement import Clocks, Placement
from tensorferry.execution.pool import Pool
from tensorferry.execution.stream import Conduct, ThreadStream
from tensorferry.execution.warmup import WarmupReport
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor
from tensorferry.testing.puppet import echo

SPEC = bytes_spec(max_batch_size=4)
QUICK_S = 20e-6


class ScriptedModel(PythonModel):
    """Says that a run took ``run_s``, and moves the clock ``now`` on by ``pace_s``; notes its threads."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.run_s = QUICK_S
        self.pace_s = 0.0
        self.now = self.cpu_s = 0.0
        self.threads: list[threading.Thread] = []
        self.fails = False

    def run(self, inputs):
        assert not self.is_closed
        self.threads.append(threading.current_thread())
        self.now += self.pace_s
        self.cpu_s += self.run_s
        if self.fails:
            raise ModelFailed("it does")
        return RunResult(echo(inputs), 0, round(self.run_s * 1e9), 0)


def batch_of(data: bytes) -> Batch:
    bound = SPEC.bind([Tensor("x", "UINT8", (1, len(data)), data)])
    return Batch(SPEC, [Pending(bound, print)], 0.0)


async def pool_of(model: ScriptedModel, is_inline: bool, threads: int = 3) -> Pool:
    stream = ThreadStream(
        "m/1#0",
        lambda: model,
        threads,
        asyncio.get_running_loop(),
        WarmupReport({}),
        Conduct(cpu_clock=lambda: model.cpu_s),
    )
    await stream.opened
    watch = DriftWatch(is_inline, may_return=True)
    clocks = Clocks(lambda: model.now, lambda: model.cpu_s)
    placement = Placement(model, stream, WarmupReport({}), watch, threads, clocks)
    return Pool([placement.stream], SPEC, WarmupReport({}), placement)


async def ran(pool: Pool, data: bytes = b"a") -> bytes:
    """Run one batch; return the answer, or raise its error."""
    future = asyncio.get_running_loop().create_future()
    assert pool.idle == 1, "no batch has to wait for a move"
    pool.start(batch_of(data), future.set_result)
    outcome = await future
    if outcome.error is not None:
        raise outcome.error
    return bytes(outcome.result.outputs[0].data)


async def run_for_long(pool: Pool, model: ScriptedModel) -> None:
    model.pace_s = 0.1
    for _ in range(120):
        await ran(pool)
    model.pace_s = 0.0


def test_model_that_becomes_slow_moves_to_a_thread_and_back_when_it_is_quick_again():
    async def main():
        model = ScriptedModel()
        pool = await pool_of(model, is_inline=True)
        assert pool.is_inline
        model.run_s = BLOCKED_S / 2
        answers = [await ran(pool, bytes([number])) for number in range(8)]
        assert answers == [bytes([number]) for number in range(8)]
        assert not pool.is_inline
        model.run_s = QUICK_S
        await run_for_long(pool, model)
        assert pool.is_inline
        assert await ran(pool, b"last") == b"last"
        assert model.threads[-1] is threading.main_thread()
        assert model.attached == [3, 1, 3, 1], "each place has its own number of intra-op threads"
        await pool.close()
        assert model.is_closed

    run(main())


def test_moved_model_runs_on_one_thread_of_its_own_and_the_loop_turns_meanwhile():
    async def main():
        model = ScriptedModel()
        pool = await pool_of(model, is_inline=True)
        model.run_s = BLOCKED_S
        await ran(pool)
        await ran(pool)
        assert set(model.threads) == {threading.main_thread()}
        model.threads.clear()
        await ran(pool)
        await ran(pool)
        (thread,) = set(model.threads)
        assert thread.name == "m/1#0"
        await pool.close()
        thread.join(20)
        assert not thread.is_alive()

    run(main())


def test_thread_that_the_model_left_is_over_when_the_pool_is_closed():
    async def main():
        model = ScriptedModel()
        before = set(threading.enumerate())
        pool = await pool_of(model, is_inline=False)
        await run_for_long(pool, model)
        assert pool.is_inline
        await pool.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(20)
            assert not thread.is_alive()

    run(main())


def test_move_that_a_batch_handed_over_at_once_follows_loses_no_batch():
    async def main():
        model = ScriptedModel()
        pool = await pool_of(model, is_inline=True)
        model.run_s = BLOCKED_S
        answers: list[bytes] = []
        over = asyncio.get_running_loop().create_future()

        def refill(outcome):
            # As the batcher does: the next batch starts within the callback of the one before.
            answers.append(bytes(outcome.result.outputs[0].data))
            if len(answers) == 6:
                over.set_result(None)
            else:
                pool.start(batch_of(bytes([len(answers)])), refill)

        pool.start(batch_of(bytes([0])), refill)
        await over
        assert answers == [bytes([number]) for number in range(6)]
        assert not pool.is_inline
        await pool.close()

    run(main())


def test_batch_that_failed_says_nothing_about_the_run_time():
    async def main():
        model = ScriptedModel()
        pool = await pool_of(model, is_inline=True)
        model.run_s, model.fails = BLOCKED_S, True
        for _ in range(5):
            with pytest.raises(ModelFailed):
                await ran(pool)
        assert pool.is_inline
        await pool.close()

    run(main())


def test_move_is_logged_with_its_figures(capsys):
    async def main():
        model = ScriptedModel()
        pool = await pool_of(model, is_inline=True)
        model.run_s = BLOCKED_S
        await ran(pool)
        await ran(pool)
        await pool.close()

    run(main())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "model moved" in line]
    assert "execution=thread" in line
    assert "last_run_ms=20.0" in line
    assert "mean_cpu_ms=" in line
