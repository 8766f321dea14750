from __future__ import annotations

import asyncio
import os

import pytest
import uvloop
from tests.unit.support import PATIENCE_S

from tensorferry.clock import LoopClock
from tensorferry.testing.clock import VirtualClock


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def on_loop(request):
    """Run a coroutine function with a clock of the loop that the test runs on."""

    def run(use):
        async def main():
            clock = LoopClock()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await use(clock)
            finally:
                clock.close()

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main())

    return run


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_timers_fire_in_order_and_none_before_its_instant(on_loop):
    async def use(clock):
        fired = []
        over = asyncio.get_running_loop().create_future()
        start = clock.now()
        clock.call_at(start + 0.002, lambda: (fired.append(("late", clock.now())), over.set_result(None)))
        clock.call_at(start + 0.0005, lambda: fired.append(("early", clock.now())))
        await over
        return start, fired

    start, fired = on_loop(use)
    assert [name for name, _ in fired] == ["early", "late"]
    assert fired[0][1] >= start + 0.000499999
    assert fired[1][1] >= start + 0.001999999


def test_instant_that_has_passed_is_called_back_on_the_next_tick(on_loop):
    async def use(clock):
        fired = []
        clock.call_at(clock.now() - 1.0, lambda: fired.append("past"))
        clock.call_at(float("-inf"), lambda: fired.append("long past"))
        assert fired == []
        await asyncio.sleep(0)
        return fired

    assert on_loop(use) == ["past", "long past"]


def test_cancelled_timer_does_not_fire_and_cancelling_again_is_harmless(on_loop):
    async def use(clock):
        fired = []
        over = asyncio.get_running_loop().create_future()
        start = clock.now()
        cancelled = clock.call_at(start + 0.0005, lambda: fired.append("cancelled"))
        other = clock.call_at(start + 0.002, lambda: over.set_result(None))
        cancelled.cancel()
        cancelled.cancel()
        await over
        other.cancel()
        return fired

    assert on_loop(use) == []


def test_timer_that_reuses_a_cancelled_ones_descriptor_keeps_its_own_instant(on_loop):
    async def use(clock):
        over = asyncio.get_running_loop().create_future()
        clock.call_at(clock.now() + 0.0001, lambda: over.set_exception(AssertionError("cancelled"))).cancel()
        when = clock.now() + 0.001
        clock.call_at(when, lambda: over.set_result(clock.now()))
        return when, await over

    when, fired = on_loop(use)
    assert fired >= when - 1e-9


def test_callback_may_arm_a_timer_of_its_own(on_loop):
    async def use(clock):
        over = asyncio.get_running_loop().create_future()

        def again(left):
            if left:
                clock.call_at(clock.now() + 0.0001, lambda: again(left - 1))
            else:
                over.set_result(None)

        again(20)
        await over

    on_loop(use)


def test_descriptors_are_used_again_and_closed_in_the_end(on_loop):
    async def use(clock):
        before = open_descriptors()
        for _ in range(50):
            clock.call_at(clock.now() + 60.0, lambda: None).cancel()
        assert open_descriptors() == before + 1
        for _ in range(5):
            clock.call_at(clock.now() + 60.0, lambda: None)
        assert open_descriptors() == before + 5
        clock.close()
        assert open_descriptors() == before

    on_loop(use)


@pytest.mark.parametrize("when", [1e300, 2.0**63, float("inf")])
def test_instant_beyond_what_the_kernel_counts_is_accepted(on_loop, when):
    async def use(clock):
        clock.call_at(when, lambda: None).cancel()

    on_loop(use)


def test_virtual_time_stands_still_until_it_is_advanced():
    clock = VirtualClock()
    fired = []
    clock.call_at(1.0, lambda: fired.append(clock.now()))
    clock.call_soon(lambda: fired.append("soon"))
    assert (clock.now(), fired) == (0.0, [])
    clock.tick()
    assert (clock.now(), fired) == (0.0, ["soon"])
    clock.advance(0.5)
    assert (clock.now(), fired) == (0.5, ["soon"])
    clock.advance(2.0)
    assert (clock.now(), fired) == (2.5, ["soon", 1.0])


def test_virtual_timers_fire_in_order_each_at_its_instant():
    clock = VirtualClock()
    fired = []
    for when in (3.0, 1.0, 2.0):
        clock.call_at(when, lambda: fired.append(clock.now()))
    clock.call_at(1.0, lambda: clock.call_at(1.5, lambda: fired.append(clock.now())))
    cancelled = clock.call_at(2.5, lambda: fired.append("cancelled"))
    cancelled.cancel()
    assert clock.next_timer() == 1.0
    clock.advance(10.0)
    assert fired == [1.0, 1.5, 2.0, 3.0]
    assert clock.next_timer() is None
