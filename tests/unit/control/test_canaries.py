"""Canaries from step to step, and back."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.live_support import (
    ALL,
    CONFIG,
    ask,
    back,
    canary,
    label,
    outcome,
    settle,
    shadow,
    until,
    with_server,
    write_version,
)

from tensorferry.control.canaries import Canaries
from tensorferry.errors import InvalidRequest
from tensorferry.rollout import changes
from tensorferry.rollout.state import CanaryState
from tensorferry.rollout.store import RolloutStore
from tensorferry.testing.models import MARKER


class Watch:
    """A server's canaries, on a time that the test sets."""

    def __init__(self, server) -> None:
        self.server = server
        self.now_s = 100.0
        self.canaries = Canaries(server.coordinator, server.fleet, lambda: self.now_s)
        self.sent = 0

    @property
    def canary(self):
        return self.server.coordinator.rollout("m").canary

    async def send(self, count, value=1.0):
        """Send requests by version, so that both arms get as many."""
        for _ in range(count):
            await outcome(ask(self.server.engine, version="1"))
            await outcome(ask(self.server.engine, version="2", value=value))

    async def look(self):
        """Look, and wait until what came of it is done."""
        self.canaries.look("m")
        await self.quiet()

    async def quiet(self):
        """Wait until every change is in force, and written down."""
        await until(lambda: not (self.canaries._changing or self.server.coordinator.is_changing))

    async def step(self):
        await self.look()
        return self.canary.step


def with_canary(root, use, *changes_, factor=2.0, **wishes):
    """Run ``use`` with a watch; version 1 is stable and 2 is the canary, 1 % and 50 % at first."""
    write_version(root, 1, config=CONFIG + ALL)
    write_version(root, 2, factor)

    async def watched(server):
        wishes_ = {"steps": (0.01, 0.5, 1.0), "max_score_shift": 1.0, "max_p99_ratio": 1e6} | wishes
        await server.change(label(1), *changes_, canary(2, **wishes_))
        await use(Watch(server))

    with_server(root, watched)


def test_a_step_is_over_after_its_requests(tmp_path):
    async def use(watch):
        assert await watch.step() == 0
        await watch.send(9)
        assert await watch.step() == 0
        await watch.send(1)
        assert await watch.step() == 1
        assert await watch.step() == 1  # the next step's requests count from its start
        await watch.send(10)
        assert await watch.step() == 2

    with_canary(tmp_path, use)


def test_a_step_lasts_its_time_too(tmp_path):
    async def use(watch):
        await watch.step()
        await watch.send(20)
        watch.now_s += 59
        assert await watch.step() == 0
        watch.now_s += 1
        assert await watch.step() == 1
        watch.now_s += 60
        assert await watch.step() == 1  # time alone is not enough
        await watch.send(10)
        watch.now_s += 60
        assert await watch.step() == 2

    with_canary(tmp_path, use, step_s=60.0)


def test_after_the_last_step_the_canary_is_promoted(tmp_path):
    async def use(watch):
        await watch.look()
        for _ in range(3):
            await watch.send(10)
            await watch.look()
            await watch.look()
        rollout = watch.server.coordinator.rollout("m")
        assert (rollout.canary.state, rollout.stable, rollout.previous_stable) == (CanaryState.PROMOTED, 2, 1)
        assert await ask(watch.server.engine) == 2
        stored = RolloutStore(tmp_path / "m").read()
        assert stored == rollout == watch.server.engine.rollout("m")

    with_canary(tmp_path, use)


def test_a_version_that_raises_is_taken_back_at_once(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(20)
        for _ in range(24):
            await watch.send(1, value=MARKER)
            watch.canaries.look("m")
            await settle()
            if watch.server.engine.rollout("m").running is None:
                break
        else:
            pytest.fail("24 failures of 24 were not enough")
        assert await ask(watch.server.engine) == 1
        await watch.quiet()
        assert watch.canary.state is CanaryState.ROLLED_BACK
        assert "error rate" in watch.canary.reason
        assert RolloutStore(tmp_path / "m").read().canary == watch.canary

    with_canary(tmp_path, use, factor=0.0, step_requests=1000)


def test_a_version_with_other_scores_is_taken_back_and_says_why(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(120)
        await watch.look()
        assert watch.canary.state is CanaryState.ROLLED_BACK
        assert "score shift" in watch.canary.reason

    with_canary(tmp_path, use, factor=500.0, step_requests=1000, max_score_shift=0.2)


def test_a_guard_that_breaks_as_a_step_ends_takes_the_canary_back(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(200)
        await watch.look()
        assert watch.canary.state is CanaryState.ROLLED_BACK

    with_canary(tmp_path, use, factor=500.0, step_requests=200, max_score_shift=0.2)


def test_answers_that_are_no_numbers_take_the_canary_back(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(40)
        await watch.look()
        assert "NaN" in watch.canary.reason

    with_canary(tmp_path, use, factor=float("inf"), step_requests=1000)


@pytest.mark.parametrize("meanwhile", ["advanced", "taken back", "promoted", "another"])
def test_a_canary_that_was_changed_meanwhile_is_left_alone(tmp_path, meanwhile):
    change = {
        "advanced": [lambda rollout: changes.advance(rollout, 1)],
        "taken back": [back],
        "promoted": [lambda rollout: changes.promote(rollout, 1)],
        "another": [back, canary(3)],
    }[meanwhile]
    write_version(tmp_path, 3, config=CONFIG + ALL)

    async def use(watch):
        await watch.look()
        await watch.send(10)
        watch.canaries.look("m")  # the step is over; its change begins with the next tick
        assert watch.canaries._changing
        for each in change:
            rollout = each(watch.server.coordinator.rollout("m"))
            order = watch.server.coordinator._orders["m"]
            watch.server.coordinator._orders["m"] = order.__class__(
                order.name, order.directory, order.config, rollout
            )
        before = watch.server.coordinator.rollout("m")
        await watch.quiet()
        assert watch.server.coordinator.rollout("m") == before

    with_canary(tmp_path, use)


def test_looks_while_a_change_is_under_way_begin_no_other(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(10)
        for _ in range(5):
            watch.canaries.look("m")
        await watch.quiet()
        assert watch.canary.step == 1

    with_canary(tmp_path, use)


def test_a_canary_that_is_started_again_is_not_judged_by_what_it_did_before(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(120)
        await watch.look()
        assert watch.canary.state is CanaryState.ROLLED_BACK
        await watch.server.change(canary(2, step_requests=1000, max_score_shift=0.2))
        await watch.look()
        assert watch.canary.is_running

    with_canary(tmp_path, use, factor=500.0, step_requests=1000, max_score_shift=0.2)


def test_progress_looks_now_and_then_and_a_tick_always(tmp_path):
    async def use(watch):
        await watch.look()
        watch.canaries.progress("m")
        await watch.send(10)
        watch.canaries.progress("m")  # looked just now
        assert not watch.canaries._changing
        watch.canaries.tick()
        await watch.quiet()
        assert watch.canary.step == 1
        await watch.look()
        await watch.send(10)
        watch.now_s += 1.0
        watch.canaries.progress("m")
        await watch.quiet()
        assert watch.canary.step == 2

    with_canary(tmp_path, use)


def taken_back(watch):
    found = watch.server.coordinator.rollbacks.counts(["m"])
    return {reason: count for (_, reason), count in found.items()}


def test_what_a_guard_takes_back_is_counted_and_there_is_a_0_before(tmp_path):
    async def use(watch):
        await watch.look()
        assert taken_back(watch) == {"guard": 0, "process_died": 0, "asked": 0}
        await watch.send(120)
        await watch.look()
        assert watch.canary.state is CanaryState.ROLLED_BACK
        assert taken_back(watch) == {"guard": 1, "process_died": 0, "asked": 0}
        await watch.look()
        assert taken_back(watch)["guard"] == 1

    with_canary(tmp_path, use, factor=500.0, step_requests=1000, max_score_shift=0.2)


def test_what_is_taken_back_for_a_death_or_because_somebody_asks_is_counted_apart(tmp_path):
    async def use(watch):
        watch.canaries.process_died(3)
        await watch.quiet()
        assert taken_back(watch) == {"guard": 0, "process_died": 1, "asked": 0}
        await watch.server.change(canary(2))
        await watch.server.coordinator.rollback("m", back)
        assert taken_back(watch) == {"guard": 0, "process_died": 1, "asked": 1}
        assert isinstance(await outcome(watch.server.coordinator.rollback("m", back)), InvalidRequest)
        assert taken_back(watch)["asked"] == 1

    with_canary(tmp_path, use)


def test_a_canary_that_goes_on_is_not_counted_as_taken_back(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(10)
        assert await watch.step() == 1
        assert not any(taken_back(watch).values())

    with_canary(tmp_path, use)


def test_a_guard_takes_back_while_another_change_of_the_model_is_under_way(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(120)
        write_version(tmp_path, 3)
        loading = asyncio.create_task(watch.server.coordinator.load("m"))
        await until(lambda: 3 in watch.server.versions)
        watch.canaries.look("m")
        await settle()
        assert watch.server.engine.rollout("m").running is None
        await loading
        await watch.quiet()
        assert watch.canary.state is CanaryState.ROLLED_BACK
        assert watch.server.engine.rollout("m") == RolloutStore(tmp_path / "m").read()

    with_canary(tmp_path, use, factor=500.0, step_requests=1000, max_score_shift=0.2)


def test_models_that_are_withdrawn_or_have_no_canary_are_passed_over(tmp_path):
    async def use(watch):
        await watch.server.coordinator.withdraw("m")
        watch.canaries.look("m")
        watch.canaries.tick()
        assert not watch.canaries._changing

    with_canary(tmp_path, use)


def test_a_canary_that_was_a_shadow_is_taken_on(tmp_path):
    async def use(watch):
        await watch.look()
        await watch.send(10)
        assert await watch.step() == 1

    with_canary(tmp_path, use, shadow(2))
