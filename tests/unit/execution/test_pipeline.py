from __future__ import annotations

import asyncio
import threading

import pytest
from tests.unit.execution.launching_support import SPEC, LaunchingPuppet, batch_of
from tests.unit.support import model_spec, run, tensor_spec

from tensorferry.batching.batch import Batch
from tensorferry.errors import DeviceLost, ModelFailed, ModelLoadError, OutOfDeviceMemory
from tensorferry.execution.launching import LaunchingModel
from tensorferry.execution.stream import ThreadStream


class Line:
    """An opened stream of a puppet, and the outcomes in the order in which they were told."""

    def __init__(self, model: LaunchingPuppet) -> None:
        self.model = model
        self.outcomes = []
        self._told = asyncio.Event()
        self.stream = ThreadStream("m/1#0", lambda: model, 1, asyncio.get_running_loop())

    def start(self, *data: bytes) -> None:
        for each in data:
            self.stream.start(batch_of(each), self._done)

    async def until(self, count: int) -> None:
        while len(self.outcomes) < count:
            self._told.clear()
            await self._told.wait()

    async def close(self) -> None:
        self.stream.close()
        await self.stream.wait_closed()

    def _done(self, outcome) -> None:
        self.outcomes.append(outcome)
        self._told.set()

    @property
    def data(self) -> list[bytes]:
        return [b"" if each.error else bytes(each.result.outputs[0].data) for each in self.outcomes]

    @property
    def errors(self) -> list[type | None]:
        return [each.error and type(each.error) for each in self.outcomes]


async def line_of(model: LaunchingPuppet) -> Line:
    line = Line(model)
    assert (await line.stream.opened)[0] is model
    return line


def stream_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if "#" in each.name]


def test_the_puppet_is_a_launching_model():
    assert isinstance(LaunchingPuppet(), LaunchingModel)


def test_next_batch_is_launched_while_the_one_before_runs():
    async def main():
        line = await line_of(LaunchingPuppet())
        line.start(b"a", b"bb")
        first, second = await line.model.ride(), await line.model.ride()
        assert line.outcomes == [], "both are under way"
        first.end()
        await line.until(1)
        second.end()
        await line.until(2)
        assert line.data == [b"a", b"bb"]
        assert line.outcomes[1].result.device is not None
        await line.close()

    run(main())


def test_outcomes_come_in_the_order_of_their_batches_whichever_is_done_first():
    async def main():
        line = await line_of(LaunchingPuppet())
        line.start(b"a", b"b", b"c")
        rides = [await line.model.ride() for _ in range(3)]
        for ride in reversed(rides):
            ride.end()
        await line.until(3)
        assert line.data == [b"a", b"b", b"c"]
        await line.close()

    run(main())


@pytest.mark.parametrize("slots", [1, 2])
def test_no_more_batches_are_launched_than_there_are_slots(slots):
    async def main():
        line = await line_of(LaunchingPuppet(slots=slots))
        line.start(b"a", b"b", b"c", b"d", b"e")  # more than a pool would start
        for _ in range(5):
            (await line.model.ride()).end()
        await line.until(5)
        assert line.errors == [None] * 5, "the puppet refuses a launch without a slot"
        assert line.data == [b"a", b"b", b"c", b"d", b"e"]
        await line.close()

    run(main())


def test_launches_are_made_on_one_thread_and_waited_for_on_another():
    async def main():
        line = await line_of(LaunchingPuppet())
        line.start(b"a")
        ride = await line.model.ride()
        assert len(stream_threads()) == 2
        assert {thread.name for thread in line.model.threads} == {"m/1#0"}
        ride.end()
        await line.close()
        assert {thread.name for thread in line.model.threads} == {"m/1#0"}, "it is closed there too"
        assert stream_threads() == []

    run(main())


def test_error_at_launch_is_told_in_order_and_costs_no_slot(capsys):
    async def main():
        line = await line_of(LaunchingPuppet(slots=2))
        line.start(b"a")
        first = await line.model.ride()
        line.model.refusals = [OutOfDeviceMemory("no room for a row"), ValueError("4111 1111")]
        line.start(b"b")
        first.end()
        await line.until(2)
        line.start(b"c", b"d", b"e")
        fourth, fifth = await line.model.ride(), await line.model.ride()
        fourth.end()
        fifth.end()
        await line.until(5)
        assert line.errors == [None, OutOfDeviceMemory, ModelFailed, None, None]
        assert line.data == [b"a", b"", b"", b"d", b"e"]
        await line.close()
        return str(line.outcomes[2].error)

    message = run(main())
    assert "4111" not in message
    log = capsys.readouterr().out
    assert message.split("error id ")[1].split()[0] in log
    assert "4111" in log


def test_error_while_waiting_fails_that_batch_alone(capsys):
    async def main():
        line = await line_of(LaunchingPuppet())
        line.start(b"a", b"b", b"c")
        rides = [await line.model.ride() for _ in range(3)]
        rides[0].end(ModelFailed("wrong shape"))
        rides[1].end(RuntimeError("kernel"))
        rides[2].end()
        await line.until(3)
        assert line.errors == [ModelFailed, ModelFailed, None]
        assert str(line.outcomes[0].error) == "wrong shape"
        await line.close()

    run(main())
    assert capsys.readouterr().out.count("model raised") == 1


def test_inputs_that_can_not_be_joined_fail_their_batch_and_not_the_stream(capsys):
    class Broken(Batch):
        def inputs(self):
            raise MemoryError

    async def main():
        line = await line_of(LaunchingPuppet())
        line.stream.start(Broken(SPEC, batch_of(b"a").requests, 0.0), line._done)
        line.start(b"b")
        (await line.model.ride()).end()
        await line.until(2)
        assert line.errors == [ModelFailed, None]
        await line.close()

    run(main())


def test_device_lost_at_launch_is_never_launched_on_again():
    async def main():
        line = await line_of(LaunchingPuppet())
        line.start(b"a")
        first = await line.model.ride()
        line.model.refusals = [DeviceLost("cuda:0 fell off the bus")]
        line.start(b"b", b"c", b"d", b"e")
        first.end()
        await line.until(5)
        assert line.errors == [None] + [DeviceLost] * 4
        assert line.model.launches == 2
        assert "fell off the bus" in str(line.outcomes[4].error)
        await line.close()
        assert line.model.is_closed

    run(main())


def test_device_lost_while_waiting_fails_what_is_under_way_without_waiting_for_it():
    async def main():
        line = await line_of(LaunchingPuppet(slots=2))
        line.start(b"a", b"b")
        first, _ = await line.model.ride(), await line.model.ride()
        first.end(DeviceLost("cuda:0 fell off the bus"))
        await line.until(2)  # the second never ends
        line.start(b"c", b"d", b"e")
        await line.until(5)
        assert line.errors == [DeviceLost] * 5
        assert (line.model.launches, line.model.waits) == (2, 1)
        await line.close()

    run(main())


def test_close_waits_for_what_was_handed_over():
    async def main():
        line = await line_of(LaunchingPuppet(slots=2))
        line.start(b"a", b"b", b"c")
        rides = [await line.model.ride(), await line.model.ride()]
        line.stream.close()
        assert not line.model.is_closed
        for ride in rides:
            ride.end()
        (await line.model.ride()).end()
        await line.stream.wait_closed()
        assert line.data == [b"a", b"b", b"c"]
        assert line.model.is_closed
        assert stream_threads() == []

    run(main())


def test_model_that_can_not_be_closed_after_its_device_is_lost_ends_its_threads(capsys):
    class Stubborn(LaunchingPuppet):
        def close(self):
            raise RuntimeError("CUDA error")

    async def main():
        line = await line_of(Stubborn())
        await line.close()
        assert stream_threads() == []

    run(main())
    assert "closing a model failed" in capsys.readouterr().out


def test_graphs_are_captured_after_warm_up_and_the_model_is_served_by_the_thread_that_warmed_it():
    async def main():
        model = LaunchingPuppet(model_spec([tensor_spec("x", "UINT8", (1,))], max_batch_size=2))
        line = await line_of(model)
        report = (await line.stream.opened)[1]
        assert set(report.run_s) == {1, 2}
        assert model.story == ["attach", "run", "prepare", "run"]
        assert len(model.threads) == 1
        await line.close()

    run(main())


def test_the_thread_that_waits_has_the_model_s_device_too():
    async def main():
        line = await line_of(LaunchingPuppet())
        line.start(b"a")
        ride = await line.model.ride()
        ride.end()
        await line.close()
        assert line.model.attached == ["m/1#0", "m/1#0 completing"]

    run(main())


def refused(model: LaunchingPuppet) -> str:
    async def main():
        stream = ThreadStream("m/1#0", lambda: model, 1, asyncio.get_running_loop())
        with pytest.raises(ModelLoadError) as caught:
            await stream.opened
        await stream.wait_closed()
        return str(caught.value)

    message = run(main())
    assert stream_threads() == []
    assert model.is_closed
    return message


def test_model_that_can_not_be_prepared_opens_no_stream_and_leaves_no_thread():
    assert refused(LaunchingPuppet(prepare_error=ModelLoadError("no graph"))) == "no graph"


def test_fault_in_setting_the_pipeline_up_opens_no_stream_and_leaves_no_thread(capsys):
    assert "unexpectedly: TypeError" in refused(LaunchingPuppet(slots="three"))


def test_loop_that_closed_meanwhile_does_not_keep_the_threads():
    model = LaunchingPuppet()

    async def main():
        line = await line_of(model)
        line.start(b"a")
        line.stream.close()
        return await model.ride()

    ride = run(main())
    threads = stream_threads()
    ride.end()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert model.is_closed
