"""What asking may cost, on virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.support import run

from tensorferry.monitoring.pacing import PAUSES, Paced, Rounds, Turns
from tensorferry.testing.clock import VirtualClock

EVERY_S = 0.1


class Maker:
    """Makes 1, 2, 3 and so on, each in two turns of ``cost_s`` together, with others' work between."""

    def __init__(self, clock: VirtualClock, cost_s: float) -> None:
        self.clock = clock
        self.cost_s = cost_s
        self.made = 0
        self.begun: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, turns: Turns) -> int:
        self.begun.append(self.clock.now())
        turns.begin()
        self.clock.sleep(self.cost_s / 2)
        turns.end()
        await self.gate.wait()
        self.clock.sleep(1.0)  # another task's
        turns.begin()
        self.clock.sleep(self.cost_s / 2)
        turns.end()
        self.made += 1
        return self.made


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_turn_counts_and_what_comes_between_two_does_not():
    clock = VirtualClock()

    async def main() -> Turns:
        turns = Turns(clock)
        for cost_s in (0.25, 0.5):
            clock.sleep(cost_s)
            turns.end()
            clock.sleep(8.0)
            turns.begin()
        return turns

    turns = run(main())
    assert (turns.spent_s, turns.longest_s) == (0.75, 0.5)


def test_a_scraper_every_100_ms_costs_a_twentieth_of_the_time():
    async def main() -> None:
        clock = VirtualClock()
        maker = Maker(clock, cost_s=0.5)
        text = Paced(maker, clock)
        seen = []
        for _ in range(1000):
            clock.advance(EVERY_S)
            seen.append((await text.get()).value)
        assert seen == sorted(seen)
        assert maker.made * maker.cost_s <= clock.now() / PAUSES + maker.cost_s
        assert maker.made > 5
        gaps = [later - earlier for earlier, later in zip(maker.begun, maker.begun[1:], strict=False)]
        assert min(gaps) >= PAUSES * maker.cost_s

    run(main())


def test_what_is_served_again_says_how_old_it_is():
    async def main() -> None:
        clock = VirtualClock()
        text = Paced(Maker(clock, cost_s=0.5), clock)
        first = await text.get()
        clock.advance(4.0)
        again = await text.get()
        assert (first.value, first.age_s) == (1, 1.5)
        assert (again.value, again.age_s) == (1, 5.5)
        clock.advance(6.0)
        assert (await text.get()).value == 2

    run(main())


def test_all_who_ask_at_once_share_one_making():
    async def main() -> None:
        clock = VirtualClock()
        maker = Maker(clock, cost_s=0.0)
        text = Paced(maker, clock)
        asked = await asyncio.gather(*(text.get() for _ in range(20)))
        assert {made.value for made in asked} == {1}
        assert maker.made == 1

    run(main())


@pytest.mark.parametrize("kind", ["paced", "rounds"])
def test_one_who_gives_up_takes_it_from_nobody(kind: str):
    async def main() -> None:
        clock = VirtualClock()
        maker = Maker(clock, cost_s=0.0)
        maker.gate.clear()
        shared = Paced(maker, clock) if kind == "paced" else Rounds(maker, clock, 0.0, 0.0)
        impatient, patient = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
        await settle()
        clock.advance(0.0)
        await settle()
        impatient.cancel()
        await settle()
        maker.gate.set()
        answer = await patient
        assert (answer if isinstance(answer, int) else answer.value) == 1
        assert impatient.cancelled()

    run(main())


@pytest.mark.parametrize("kind", ["paced", "rounds"])
def test_a_making_that_fails_fails_those_who_wait_and_the_next_one_is_made_anew(kind: str):
    async def main() -> None:
        clock = VirtualClock()
        answers = [ValueError("once"), 7]

        async def make(turns: Turns) -> int:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        shared = Paced(make, clock) if kind == "paced" else Rounds(make, clock, 0.0, 0.0)
        for expected in ("once", ""):
            asked = asyncio.create_task(shared.get())
            await settle()
            clock.advance(0.0)
            if expected:
                with pytest.raises(ValueError, match=expected):
                    await asked
            else:
                answer = await asked
                assert (answer if isinstance(answer, int) else answer.value) == 7

    run(main())


def test_who_asks_while_a_round_is_on_gets_the_next_and_rounds_keep_their_distance():
    async def main() -> None:
        clock = VirtualClock()
        maker = Maker(clock, cost_s=0.0)
        maker.gate.clear()
        rounds = Rounds(maker, clock, 4.0, 0.5)
        first = asyncio.create_task(rounds.get())
        await settle()
        clock.advance(0.0)
        await settle()
        assert maker.begun == [0.0]
        later = [asyncio.create_task(rounds.get()) for _ in range(3)]
        await settle()
        maker.gate.set()
        assert await first == 1  # at 1.0
        await settle()
        clock.advance(0.4)
        await settle()
        assert maker.made == 1
        clock.advance(0.1)
        assert [await each for each in later] == [2, 2, 2]
        assert maker.begun == [0.0, 1.5]

    run(main())


def test_closing_ends_a_making_that_would_not_end():
    async def main() -> None:
        clock = VirtualClock()
        maker = Maker(clock, cost_s=0.0)
        maker.gate.clear()
        shared = Paced(maker, clock)
        asked = asyncio.create_task(shared.get())
        await settle()
        await shared.close()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(main())
