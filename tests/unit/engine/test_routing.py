"""Who answers a request that names a version, a label or nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from tests.unit.live_support import back, canary, label, made, shadow, split
from tests.unit.support import model_spec

from tensorferry.engine.live import LiveModel, ModelState
from tensorferry.engine.routing import Splits, routes_of
from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY

KEYS = [f"card-{number}".encode() for number in range(4000)]


def live(version, state=ModelState.READY):
    found = LiveModel(replace(model_spec(), version=version))
    found.state = state
    return found


def versions(*numbers, failed=()):
    states = {number: live(number) for number in numbers}
    return states | {number: live(number, ModelState.UNAVAILABLE) for number in failed}


def number_of(route):
    return route.live.spec.version


def routes(there, rollout, name="m"):
    return routes_of(name, there, rollout, Splits())


def default(rollout, *numbers, failed=()):
    return routes(versions(*numbers, failed=failed), rollout).get(("m", "", ""))


def shares(route):
    chosen = Counter(route.choose(key).spec.version for key in KEYS)
    return {version: count / len(KEYS) for version, count in chosen.items()}


def test_without_a_rollout_the_highest_ready_version_answers():
    assert number_of(default(EMPTY, 1, 2, 10)) == 10
    assert number_of(default(EMPTY, 1, 2, failed=[10])) == 2


def test_every_ready_version_answers_to_its_number_and_no_other_does():
    found = routes(versions(1, 3, failed=[2]), made(label(1)))
    named = {version for _, version, _ in found if version}
    assert named == {"1", "3"}
    assert number_of(found["m", "3", ""]) == 3


def test_labels_lead_to_their_ready_versions():
    rollout = made(label(1), label(2, "canary"), label(3, "old"))
    found = routes(versions(1, 2, failed=[3]), rollout)
    labelled = {name: number_of(route) for (_, _, name), route in found.items() if name}
    assert labelled == {"stable": 1, "canary": 2}


def test_stable_answers_though_higher_versions_are_ready():
    assert number_of(default(made(label(1)), 1, 2, 3)) == 1


@pytest.mark.parametrize("state", [ModelState.UNAVAILABLE, ModelState.LOADING, ModelState.UNLOADING])
def test_nobody_stands_in_for_a_stable_that_is_not_ready(state):
    there = versions(2, 3) | {1: live(1, state)}
    assert ("m", "", "") not in routes(there, made(label(1)))


def test_nobody_stands_in_for_a_stable_that_is_not_there():
    assert default(made(label(1)), 2, 3) is None


def test_a_shadow_never_answers_unlabelled_requests():
    rollout = made(label(1), shadow(2))
    assert number_of(default(rollout, 1, 2)) == 1
    # Not even where nobody has said who is stable, and it is the highest version.
    assert number_of(default(made(shadow(2)), 1, 2)) == 1
    assert default(made(shadow(2)), 2) is None


def test_a_split_divides_by_weight_and_is_sticky():
    route = default(made(split(v1=3, v2=1)), 1, 2, 3)
    assert {arm.spec.version for arm in route.arms} == {1, 2}
    assert shares(route) == pytest.approx({1: 0.75, 2: 0.25}, abs=0.03)
    again = default(made(split(v1=3, v2=1)), 1, 2, 3)
    assert [route.choose(key).spec.version for key in KEYS] == [
        again.choose(key).spec.version for key in KEYS
    ]


def test_a_request_without_a_key_goes_to_one_of_the_arms():
    route = default(made(split(v1=1, v2=1)), 1, 2)
    assert {route.choose(b"").spec.version for _ in range(200)} == {1, 2}


def test_the_arms_of_a_split_that_are_ready_take_over_from_one_that_is_not():
    route = default(made(split(v1=2, v2=1, v3=1)), 1, 2, failed=[3])
    assert shares(route) == pytest.approx({1: 2 / 3, 2: 1 / 3}, abs=0.03)


def test_a_split_whose_arms_are_all_away_is_answered_by_nobody():
    assert default(made(split(v1=1, v2=1)), 3, failed=[1, 2]) is None


def test_stable_stands_for_a_divided_model():
    route = default(made(label(1), label(2, "b"), split(v1=1, v2=9)), 1, 2)
    assert number_of(route) == 1


def test_who_has_got_the_canary_keeps_it_as_the_canary_grows():
    rollout = made(label(1), canary(2, steps=(0.01, 0.1, 0.5, 1.0)))
    had: set[bytes] = set()
    for share in (0.01, 0.1, 0.5):
        route = default(rollout, 1, 2)
        has = {key for key in KEYS if route.choose(key).spec.version == 2}
        assert had <= has
        assert len(has) / len(KEYS) == pytest.approx(share, abs=0.03)
        had = has
        rollout = changes.advance(rollout, 1)
    assert number_of(default(rollout, 1, 2)) == 2  # the last step leaves stable nothing


def test_a_canary_that_is_not_ready_leaves_all_to_stable():
    rollout = made(label(1), canary(2))
    assert default(rollout, 1, failed=[2]).arms[0].spec.version == 1
    assert default(rollout, 1, failed=[2]).split is None


def test_a_canary_that_was_taken_back_gets_nothing_unlabelled():
    route = default(made(label(1), canary(2), back), 1, 2)
    assert set(shares(route)) == {1}


def test_two_models_are_divided_independently():
    rollout = made(split(v1=1, v2=1))
    one = routes(versions(1, 2), rollout, "one")["one", "", ""]
    other = routes(versions(1, 2), rollout, "other")["other", "", ""]
    both = sum(one.choose(k).spec.version == other.choose(k).spec.version for k in KEYS) / len(KEYS)
    assert both == pytest.approx(0.5, abs=0.05)


def test_a_canary_does_not_take_over_from_a_stable_that_is_not_ready():
    rollout = made(label(1), canary(2, steps=(0.01, 1.0)))
    found = routes(versions(2, failed=[1]), rollout)
    assert ("m", "", "") not in found
    assert number_of(found["m", "", "canary"]) == 2  # who asks for it gets it


def test_requests_without_a_key_are_dealt_on_when_another_model_changes():
    splits, there, rollout = Splits(), versions(1, 2), made(split(v1=1, v2=1))
    chosen = []
    for _ in range(400):
        # Anew for each request, as when models come and go all the time.
        route = routes_of("m", there, rollout, splits)["m", "", ""]
        chosen.append(route.choose(b"").spec.version)
    assert chosen.count(1) == pytest.approx(200, abs=4)
