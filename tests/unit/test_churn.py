"""What the churn test makes of a run: a growth, a lost call or a lost descriptor must not pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loadtests.churn.cycles import Cycle
from loadtests.churn.figures import THRESHOLDS, WINDOWS, figures_of, windows_of
from loadtests.churn.footprint import Footprint
from loadtests.churn.measure import Calls, Outcome
from loadtests.churn.models import SWAPPED, SWAPS, Changes, guest_of
from loadtests.verdict import judge

CYCLES = 100
CYCLE_S = 0.1
CALLS_PER_CYCLE = 20
GUESTS = ("torchscript", "large")
REST = Footprint(400 * 2**20, 11, 20, 1)


def cycle(number: int) -> Cycle:
    return Cycle(
        number,
        SWAPS[number % 3],
        GUESTS[number % 2],
        began_s=number * CYCLE_S,
        ended_s=(number + 1) * CYCLE_S,
        swap_ms=20.0,
        first_ms=1.0,
        load_ms=15.0,
        unload_ms=0.5,
        rss_bytes=REST.rss_bytes,
        threads=12,
        descriptors=25,
        faults=(),
    )


def calls() -> Calls:
    """Calls of 1 ms, all along the cycles, to one model and the other in turn."""
    count = CYCLES * CALLS_PER_CYCLE
    intended_s = np.arange(count) * CYCLE_S / CALLS_PER_CYCLE
    steady = np.arange(count) % 2 == 0
    return Calls(intended_s, np.full(count, 1e-3), np.zeros(count), np.ones(count, bool), steady, {})


@pytest.fixture
def flat() -> Outcome:
    """A run in which nothing changes."""
    cycles = [cycle(number) for number in range(CYCLES)]
    return Outcome("http2", GUESTS, cycles, calls(), calls(), calls(), REST, REST)


def missed(outcome: Outcome, wanted: int = CYCLES) -> set[str]:
    checks = judge(THRESHOLDS, figures_of(outcome, wanted))
    return {check.threshold.split()[0] for check in checks if not check.ok}


def changed(outcome: Outcome, **by_number) -> Outcome:
    """Return the outcome with fields of its cycles set; each is a function of the cycle's number."""
    cycles = [
        replace(each, **{field: of(each.number) for field, of in by_number.items()})
        for each in outcome.cycles
    ]
    return replace(outcome, cycles=cycles)


def slower(all_calls: Calls, is_steady: bool) -> Calls:
    """Return the calls with those to one model taking ever longer."""
    latency_s = all_calls.latency_s.copy()
    theirs = all_calls.is_steady == is_steady
    latency_s[theirs] *= np.linspace(1.0, 3.0, int(theirs.sum()))
    return replace(all_calls, latency_s=latency_s)


def test_a_run_in_which_nothing_changes_passes(flat: Outcome):
    assert missed(flat) == set()
    assert figures_of(flat, CYCLES)["rss.bytes_per_cycle"] == pytest.approx(0.0, abs=1.0)


def test_memory_that_grows_with_each_cycle_is_found_and_measured(flat: Outcome):
    grown = changed(flat, rss_bytes=lambda number: REST.rss_bytes + number * 200_000)
    assert missed(grown) == {"rss.growth_mib"}
    assert figures_of(grown, CYCLES)["rss.bytes_per_cycle"] == pytest.approx(200_000)


def test_memory_that_grows_in_the_first_tenth_only_passes(flat: Outcome):
    warm = changed(flat, rss_bytes=lambda number: REST.rss_bytes + min(number, 9) * 2**20)
    assert missed(warm) == set()


@pytest.mark.parametrize(
    ("field", "figure"),
    [("swap_ms", "swap.last_ms"), ("first_ms", "first_call.last_ms"), ("load_ms", "load.last_ms")],
)
def test_a_duration_that_grows_is_found(flat: Outcome, field: str, figure: str):
    assert missed(changed(flat, **{field: lambda number: 1.0 + number / 50})) == {figure}


@pytest.mark.parametrize(("is_steady", "name"), [(True, "steady"), (False, "swapped")])
def test_latency_that_grows_is_found_for_the_model_that_it_is_of(flat: Outcome, is_steady: bool, name: str):
    grown = replace(flat, during=slower(flat.during, is_steady))
    assert missed(grown) == {f"{name}.p50_last_ms", f"{name}.p99_last_ms"}


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_one_failed_call_in_any_part_is_too_many(flat: Outcome, when: str):
    part = getattr(flat, when)
    is_ok, latency_s = part.is_ok.copy(), part.latency_s.copy()
    is_ok[7], latency_s[7] = False, np.nan
    failed = replace(part, is_ok=is_ok, latency_s=latency_s, failures={"UNAVAILABLE: gone": 1})
    assert missed(replace(flat, **{when: failed})) == {"calls.failed"}


def test_faults_and_cycles_that_were_not_made_are_found(flat: Outcome):
    faulty = changed(flat, faults=lambda number: ("load guest: gone",) if number == 3 else ())
    assert missed(faulty) == {"cycles.faults"}
    assert missed(flat, wanted=CYCLES + 1) == {"cycles.missing"}


@pytest.mark.parametrize(
    ("held", "figure"),
    [
        (replace(REST, threads=16), "threads.more"),
        (replace(REST, descriptors=25), "descriptors.more"),
        (replace(REST, processes=2), "processes.more"),
    ],
)
def test_what_is_left_at_the_end_is_found(flat: Outcome, held: Footprint, figure: str):
    assert missed(replace(flat, at_end=held)) == {figure}


def test_windows_hold_every_cycle_once_in_order(flat: Outcome):
    windows = windows_of(changed(flat, swap_ms=float))
    assert [window["to_cycle"] for window in windows] == [10.0 * n for n in range(1, WINDOWS + 1)]
    assert [window["swap"] for window in windows] == [10.0 * n + 4.5 for n in range(WINDOWS)]
    assert all(window["steady.p50"] == pytest.approx(1.0) for window in windows)


def test_every_guest_has_its_turn_and_slow_ones_rarely():
    guests = ("torchscript", "large", "onnx", "program", "python")
    turns = [guest_of(number, guests) for number in range(100)]
    assert set(turns) == set(guests)
    assert turns.count("program") == turns.count("python") == 2
    assert min(turns.count(each) for each in guests[:3]) >= 30


def test_changes_leave_one_version_whose_file_is_the_one_that_is_expected(tmp_path):
    (tmp_path / "variants").mkdir()
    for number in range(4):
        (tmp_path / "variants" / f"{number}.pt").write_text(str(number))
    (tmp_path / SWAPPED / "1").mkdir(parents=True)
    changes = Changes(tmp_path, tmp_path / "variants")
    before = None
    for number in range(7):
        swap = changes.make(number)
        (version,) = (tmp_path / SWAPPED).iterdir()
        assert version.name == str(swap.version)
        assert (version / "model.pt").read_text() == str(swap.variant)
        assert (swap.kind == "config") == (swap.config is not None)
        if before is not None:
            assert (swap.variant != before.variant) == (swap.kind != "config")
            assert swap.version - before.version == (swap.kind == "version")
        before = swap
