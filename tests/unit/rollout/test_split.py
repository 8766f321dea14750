"""Splits: sticky, exact within chance, growing without losing anybody, independent of each other."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorferry.rollout.split import Split

COUNT = 100_000
SHARES = (0.01, 0.09, 0.4, 0.5)


def sequential(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def uuids(count: int) -> list[bytes]:
    numbers = random.Random(7)
    return [str(uuid.UUID(int=numbers.getrandbits(128), version=4)).encode() for _ in range(count)]


def cards(count: int) -> list[bytes]:
    """Numbers that share their first digits, as one bank's cards do."""
    return [f"4000{number:012d}".encode() for number in range(0, count * 37, 37)]


def binary(count: int) -> list[bytes]:
    return [number.to_bytes(8, "little") for number in range(count)]


@pytest.mark.parametrize("keys_of", [sequential, uuids, cards, binary])
@pytest.mark.parametrize("salt", [b"fraud/4", b"", b"x" * 300])
def test_each_share_gets_its_part_of_the_keys_within_five_sigma(keys_of, salt):
    split = Split(salt, SHARES)
    counts = [0] * len(SHARES)
    for key in keys_of(COUNT):
        counts[split.choose(key)] += 1
    for count, share in zip(counts, SHARES, strict=True):
        assert abs(count - COUNT * share) <= 5 * math.sqrt(COUNT * share * (1 - share))


@given(
    st.binary(max_size=200), st.binary(max_size=80), st.lists(st.floats(0.01, 100), min_size=1, max_size=5)
)
def test_the_same_key_always_belongs_to_the_same_share(key, salt, shares):
    chosen = Split(salt, shares).choose(key)
    other = Split(salt, shares)
    for _ in range(3):
        other.choose(b"somebody else")
        other.choose_any()
    assert other.choose(key) == chosen
    assert 0 <= chosen < len(shares)


@settings(max_examples=30)
@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.binary(max_size=20))
def test_the_first_share_keeps_its_keys_as_it_grows(one, other, salt):
    small, large = sorted((one, other))
    before = Split(salt, [small, 1 - small])
    after = Split(salt, [large, 1 - large])
    for key in sequential(300):
        if before.choose(key) == 0:
            assert after.choose(key) == 0


def test_shares_are_relative_to_their_sum():
    one, other = Split(b"salt", [90, 10]), Split(b"salt", [0.9, 0.1])
    assert all(one.choose(key) == other.choose(key) for key in sequential(1000))


def test_splits_of_different_salts_are_independent():
    # Chi-square of a two by two table, one degree of freedom: above 10.83 once in a thousand.
    one, other = Split(b"fraud/4", [0.3, 0.7]), Split(b"fraud/5", [0.2, 0.8])
    table = [[0, 0], [0, 0]]
    for key in cards(COUNT):
        table[one.choose(key)][other.choose(key)] += 1
    rows = [sum(row) for row in table]
    columns = [sum(column) for column in zip(*table, strict=True)]
    squares = 0.0
    for row in (0, 1):
        for column in (0, 1):
            expected = rows[row] * columns[column] / COUNT
            squares += (table[row][column] - expected) ** 2 / expected
    assert squares < 10.83


def test_a_key_chooses_the_same_in_another_process():
    script = (
        "from tensorferry.rollout.split import Split\n"
        "split = Split(b'fraud', [0.5, 0.5])\n"
        "print(''.join(str(split.choose(b'%d' % number)) for number in range(64)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    split = Split(b"fraud", [0.5, 0.5])
    assert done.stdout.strip() == "".join(str(split.choose(key)) for key in sequential(64))


@pytest.mark.parametrize("salt", [b"fraud/4", b"fraud/5", b""])
def test_without_a_key_every_share_is_exact_over_any_stretch_of_requests(salt):
    split = Split(salt, SHARES)
    chosen = [split.choose_any() for _ in range(COUNT)]
    for index, share in enumerate(SHARES):
        for start in range(0, COUNT, 9973):
            for length in (100, 1000, COUNT - start):
                part = chosen[start : start + length]
                assert abs(part.count(index) - len(part) * share) <= 6


def test_without_a_key_requests_that_come_in_turns_are_shared_alike():
    # Every third request, say a batch job between two clients, is no share's own.
    split = Split(b"fraud", [0.1, 0.9])
    chosen = [split.choose_any() for _ in range(30_000)]
    for turn in range(3):
        assert abs(chosen[turn::3].count(0) - 1000) <= 10


@pytest.mark.parametrize("shares", [[], [0.0, 1.0], [-1.0], [math.nan]])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="above 0"):
        Split(b"", shares)


def test_one_share_gets_all():
    split = Split(b"fraud", [0.3])
    assert {split.choose(key) for key in sequential(100)} | {split.choose_any()} == {0}
