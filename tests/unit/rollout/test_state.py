"""Who answers, and which versions that takes."""

from __future__ import annotations

import pytest
from tests.unit.rollout.support import NOW_MS, stable_at, start, with_canary

from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY, CanaryState, Shadow, Share


def test_an_empty_rollout_leaves_the_answering_to_the_version_policy():
    assert EMPTY.arms == ()
    assert EMPTY.versions == frozenset()
    assert EMPTY.stable == 0


def test_stable_answers_alone():
    assert stable_at(3).arms == ((3, 1.0),)


def test_a_label_that_is_not_stable_answers_nobody_who_does_not_name_it():
    rollout = changes.set_label(EMPTY, "candidate", 4, NOW_MS)
    assert rollout.arms == ()
    assert rollout.versions == {4}


def test_a_canary_comes_before_stable_so_that_it_keeps_its_keys_as_it_grows():
    rollout = with_canary()
    assert rollout.arms == ((4, 0.01), (3, 0.99))
    assert changes.advance(rollout, NOW_MS).arms == ((4, 0.1), (3, 0.9))


def test_a_canary_of_all_requests_is_the_only_arm_and_stable_stays_loaded():
    rollout = start(stable_at(3), steps=(1.0,))
    assert rollout.arms == ((4, 1.0),)
    assert rollout.versions == {3, 4}


@pytest.mark.parametrize("end", [changes.promote, lambda rollout, now: changes.rollback(rollout, "", now)])
def test_a_canary_that_has_ended_has_no_share(end):
    rollout = end(with_canary(), NOW_MS)
    assert rollout.canary is not None
    assert rollout.canary.share == 0.0
    assert rollout.running is None
    assert len(rollout.arms) == 1


def test_a_split_has_the_shares_of_its_weights_in_its_order():
    rollout = changes.set_split(stable_at(3), [Share("stable", 3), Share("5", 1)], NOW_MS)
    assert rollout.arms == ((3, 0.75), (5, 0.25))


@pytest.mark.parametrize(("target", "version"), [("3", 3), ("stable", 3), ("nobody", 0), ("٣", 0), ("", 0)])
def test_a_target_is_a_number_or_a_label(target, version):
    assert stable_at(3).version_of(target) == version


def test_the_version_before_stays_loaded_for_a_rollback_but_may_be_gone():
    rollout = stable_at(2, 3)
    assert rollout.versions == {2, 3}
    assert rollout.needed == {3}


def test_a_shadow_is_loaded_and_no_arm():
    rollout = changes.set_shadow(stable_at(3), Shadow("5", 0.1), NOW_MS)
    assert rollout.shadow_version == 5
    assert rollout.versions == {3, 5}
    assert rollout.arms == ((3, 1.0),)


def test_states_have_the_numbers_of_the_proto_file():
    from tensorferry.wire import rollout_pb2 as pb

    assert {state.name: state.value for state in CanaryState} == dict(pb.Canary.State.items())
