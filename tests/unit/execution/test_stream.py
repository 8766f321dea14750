from __future__ import annotations

import asyncio
import os
import threading

import pytest
from tests.unit.support import PythonModel, bytes_spec, model_spec, run

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.priority import MOST_NICE, NICER_BY
from tensorferry.execution.stream import Conduct, InlineStream, ThreadStream
from tensorferry.execution.warmup import WarmupReport
from tensorferry.tensors import Tensor
from tensorferry.testing.puppet import echo

SPEC = bytes_spec(max_batch_size=4)


def batch_of(data: bytes) -> Batch:
    bound = SPEC.bind([Tensor("x", "UINT8", (len(data), 1), data)])
    return Batch(SPEC, [Pending(bound, print)], 0.0)


def explode(inputs):
    if b"!" in inputs[0].parts:
        raise ValueError("card number 4111 1111 1111 1111")
    if b"?" in inputs[0].parts:
        raise ModelFailed("wrong shape")
    return echo(inputs)


class Threads:
    """A model's behaviour that notes the threads it runs on, and waits at a gate if there is one."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.seen: list[threading.Thread] = []
        self.niceness: list[int] = []
        self._gate = gate

    def __call__(self, inputs):
        self.seen.append(threading.current_thread())
        self.niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        if self._gate is not None:
            self._gate.wait(20)
        return echo(inputs)


async def opened(model, threads=1) -> ThreadStream:
    stream = ThreadStream("m/1#0", lambda: model, threads, asyncio.get_running_loop())
    assert (await stream.opened)[0] is model
    return stream


async def outcome(stream, batch):
    future = asyncio.get_running_loop().create_future()
    stream.start(batch, future.set_result)
    return await future


async def closed(stream) -> None:
    stream.close()
    await stream.wait_closed()


def data_of(outcome) -> bytes:
    assert outcome.error is None
    return bytes(outcome.result.outputs[0].data)


def test_inline_stream_runs_before_start_returns():
    stream = InlineStream(PythonModel(SPEC))
    outcomes = []
    batch = batch_of(b"ab")
    stream.start(batch, outcomes.append)
    assert outcomes[0].batch is batch
    assert data_of(outcomes[0]) == b"ab"


def test_inline_stream_asks_for_the_cpu_time_of_one_run_in_so_many():
    ticks = iter(range(100))
    stream = InlineStream(PythonModel(SPEC), Conduct(cpu_clock=lambda: float(next(ticks)), cpu_every=3))
    measured = []
    for _ in range(6):
        stream.start(batch_of(b"a"), lambda _: measured.append(stream.last_cpu_s))
    assert measured == [-1.0, -1.0, 1.0, -1.0, -1.0, 1.0]


def test_closing_an_inline_stream_frees_its_model():
    model = PythonModel(SPEC)
    stream = InlineStream(model)
    run(closed(stream))
    assert model.is_closed


def test_model_that_raises_as_it_closes_keeps_nobody_waiting(recwarn):
    class Stubborn(PythonModel):
        def close(self) -> None:
            super().close()
            raise RuntimeError("device is lost")

    model = Stubborn(SPEC)
    run(closed(InlineStream(model)))
    assert model.is_closed


def test_model_loaded_aside_is_warm_and_attached_to_the_thread_that_serves_it():
    async def main():
        threads = Threads()
        model = PythonModel(model_spec(), threads)
        stream = ThreadStream(
            "m/1#0", lambda: model, 3, asyncio.get_running_loop(), conduct=Conduct(loads_aside=True)
        )
        assert (await stream.opened)[0] is model
        assert model.attached == [3, 3]
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        (loader,) = set(threads.seen)
        warm = len(threads.seen)
        await outcome(stream, batch_of(b"a"))
        assert set(threads.niceness[:warm]) == {min(own + NICER_BY, MOST_NICE)}
        assert set(threads.niceness[warm:]) == {own}
        (server,) = set(threads.seen[warm:])
        assert server is not loader
        assert not loader.is_alive()
        await closed(stream)

    run(main())


def test_model_that_does_not_load_aside_opens_no_stream_either():
    async def main():
        stream = ThreadStream(
            "m", lambda: 1 / 0, 1, asyncio.get_running_loop(), conduct=Conduct(loads_aside=True)
        )
        with pytest.raises(ModelLoadError, match="unexpectedly: ZeroDivisionError"):
            await stream.opened
        await stream.wait_closed()

    run(main())


def test_thread_stream_runs_its_batches_in_order_on_one_thread_of_its_own():
    async def main():
        threads = Threads()
        stream = await opened(PythonModel(SPEC, threads))
        outcomes = []
        for data in (b"a", b"bb", b"c"):
            stream.start(batch_of(data), lambda each: outcomes.append((each, threading.current_thread())))
        last = await outcome(stream, batch_of(b"d"))
        await closed(stream)
        assert [data_of(each) for each, _ in outcomes] == [b"a", b"bb", b"c"]
        assert data_of(last) == b"d"
        assert {thread for _, thread in outcomes} == {threading.main_thread()}
        assert len(set(threads.seen)) == 1
        assert threads.seen[0].name == "m/1#0"

    run(main())


def test_loop_turns_while_a_batch_runs():
    async def main():
        gate = threading.Event()
        model = PythonModel(SPEC)
        stream = await opened(model)
        model._behaviour = Threads(gate)
        waiting = asyncio.create_task(outcome(stream, batch_of(b"a")))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        assert data_of(await waiting) == b"a"
        await closed(stream)

    run(main())


def test_thread_is_attached_with_its_share_of_threads_before_the_first_run():
    async def main():
        model = PythonModel(model_spec())
        stream = await opened(model, threads=3)
        assert model.attached == [3]
        assert model.rows_run != [], "it was warmed up"
        await closed(stream)

    run(main())


@pytest.mark.parametrize("inline", [True, False])
def test_model_that_raises_fails_its_batch_and_not_the_stream(inline, capsys):
    async def main():
        model = PythonModel(SPEC, explode)
        stream = InlineStream(model) if inline else await opened(model)
        raised = await outcome(stream, batch_of(b"!"))
        refused = await outcome(stream, batch_of(b"?"))
        well = await outcome(stream, batch_of(b"a"))
        await closed(stream)
        return raised, refused, well

    raised, refused, well = run(main())
    assert data_of(well) == b"a"
    assert (raised.result, refused.result) == (None, None)
    assert isinstance(raised.error, ModelFailed)
    assert str(refused.error) == "wrong shape"
    message = str(raised.error)
    assert "'m' version 1 raised ValueError; error id " in message
    assert "4111" not in message
    log = capsys.readouterr().out
    assert message.split("error id ")[1].split()[0] in log
    assert "4111" in log, "the log has what the model said"


def test_only_a_request_that_stands_alone_is_worth_a_traceback(capsys):
    first, second = batch_of(b"!"), batch_of(b"!")
    both = Batch(SPEC, first.requests + second.requests, 0.0)
    outcomes = []
    InlineStream(PythonModel(SPEC, explode)).start(both, outcomes.append)
    assert isinstance(outcomes[0].error, ModelFailed)
    log = capsys.readouterr().out
    assert "ValueError" in log
    assert "Traceback" not in log


def test_model_that_does_not_load_opens_no_stream_and_ends_the_thread():
    async def main():
        def load():
            raise ModelLoadError("no such file")

        stream = ThreadStream("m", load, 1, asyncio.get_running_loop())
        with pytest.raises(ModelLoadError, match="no such file"):
            await stream.opened
        await stream.wait_closed()

    run(main())


def test_unexpected_fault_in_loading_is_a_load_error_too():
    async def main():
        stream = ThreadStream("m", lambda: 1 / 0, 1, asyncio.get_running_loop())
        with pytest.raises(ModelLoadError, match="unexpectedly: ZeroDivisionError: division by zero"):
            await stream.opened
        await stream.wait_closed()

    run(main())


def test_model_that_fails_its_warm_up_opens_no_stream():
    async def main():
        def never(inputs):
            raise RuntimeError("not on this machine")

        stream = ThreadStream("m", lambda: PythonModel(model_spec(), never), 1, asyncio.get_running_loop())
        with pytest.raises(ModelLoadError, match="raises on a batch of 1 rows of zeros: not on this machine"):
            await stream.opened
        await stream.wait_closed()

    run(main())


def test_close_lets_the_batches_that_were_handed_over_finish_first():
    async def main():
        gate = threading.Event()
        model = PythonModel(SPEC)
        stream = await opened(model)
        model._behaviour = Threads(gate)
        outcomes = []
        for data in (b"a", b"b"):
            stream.start(batch_of(data), outcomes.append)
        stream.close()
        assert not model.is_closed
        gate.set()
        await stream.wait_closed()
        assert [data_of(each) for each in outcomes] == [b"a", b"b"]
        assert model.is_closed

    run(main())


def test_released_model_is_open_and_its_thread_is_over():
    async def main():
        model = PythonModel(SPEC)
        stream = await opened(model)
        stream.release()
        await stream.wait_closed()
        assert not model.is_closed

    run(main())


def test_stream_that_takes_a_warm_model_over_runs_the_batches_it_is_given_at_once():
    async def main():
        model = PythonModel(model_spec())
        report = WarmupReport({1: 1e-3})
        stream = ThreadStream("m/1#0", lambda: model, 2, asyncio.get_running_loop(), report)
        assert data_of(await outcome(stream, batch_of(b"a"))) == b"a"
        assert await stream.opened == (model, report)
        assert model.attached == [2]
        assert model.rows_run == [1], "it isn't warmed up again"
        await closed(stream)

    run(main())


def test_loop_that_closed_meanwhile_does_not_break_the_thread():
    gate = threading.Event()
    model = PythonModel(SPEC)

    async def main():
        stream = await opened(model)
        model._behaviour = Threads(gate)
        stream.start(batch_of(b"a"), print)
        stream.close()
        return stream

    before = set(threading.enumerate())
    run(main())
    (thread,) = set(threading.enumerate()) - before
    gate.set()
    thread.join(20)
    assert not thread.is_alive()
    assert model.is_closed
