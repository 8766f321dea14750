"""The search for the highest throughput: on servers that are functions, quiet and noisy ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tensorferry.benchmark.sweep import Range, Step, search


@dataclass(frozen=True)
class Outcome:
    is_within: bool
    calls_per_s: float


def swept(server: Callable[[float, int], Outcome | None], levels: Range) -> tuple[Step | None, list[float]]:
    """The answer, and the levels that were run, in order."""
    steps: list[Step] = []
    best = search(server, levels, steps.append)
    return best, [each.level for each in steps]


def up_to(limit: float) -> Callable[[float, int], Outcome]:
    """A server that keeps the objective up to a level, and whose throughput grows with it."""
    return lambda level, attempt: Outcome(level <= limit, 100 * level)


CONCURRENCY = Range(1, 64, is_whole=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 20, 33, 47, 63])
def test_the_highest_concurrency_within_the_objective_is_found(limit):
    best, _ = swept(up_to(limit), CONCURRENCY)
    assert limit * 0.9 <= best.level <= limit


def test_a_server_that_keeps_it_everywhere_is_run_at_the_highest_level_twice():
    best, levels = swept(up_to(1000), CONCURRENCY)
    assert best.level == 64
    assert levels == [1, 2, 4, 8, 16, 32, 64, 64]


def test_a_server_that_never_keeps_it_is_given_up_after_three_levels():
    best, levels = swept(up_to(0), CONCURRENCY)
    assert best is None
    assert levels == [1, 1, 2, 2, 4, 4]


def test_rates_are_narrowed_to_the_resolution():
    best, levels = swept(up_to(7777), Range(1000, 64_000, is_whole=False))
    assert 7777 * 0.95 <= best.level <= 7777
    assert len(levels) < 24


def test_one_disturbed_step_does_not_end_the_search():
    def disturbed(level: float, attempt: int) -> Outcome:
        return Outcome(level <= 40 and not (level == 4 and attempt == 1), level)

    best, _ = swept(disturbed, CONCURRENCY)
    assert best.level >= 36


def test_low_levels_may_miss_where_higher_ones_keep_it():
    # As with a batcher that waits for more calls.
    best, _ = swept(lambda level, _: Outcome(4 <= level <= 16, level), CONCURRENCY)
    assert best.level == 16


def test_the_answer_is_the_highest_throughput_and_not_the_highest_level():
    best, _ = swept(lambda level, _: Outcome(True, 1000 - abs(level - 8)), CONCURRENCY)
    assert best.level == 8


def test_an_answer_that_misses_when_run_again_gives_way_to_the_next():
    def lucky_once(level: float, attempt: int) -> Outcome:
        return Outcome(level <= 16 and not (level == 16 and attempt > 1), level)

    best, levels = swept(lucky_once, CONCURRENCY)
    assert best.level == 8
    assert levels[-2:] == [16, 8]


def test_an_interrupted_search_answers_with_the_best_so_far():
    best, levels = swept(lambda level, _: Outcome(True, level) if level < 16 else None, CONCURRENCY)
    assert best.level == 8
    assert levels == [1, 2, 4, 8]


def test_an_interruption_before_the_first_step_has_no_answer():
    assert swept(lambda level, _: None, CONCURRENCY) == (None, [])
