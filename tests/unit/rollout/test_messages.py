"""A rollout's messages hold all of it."""

from __future__ import annotations

import pytest
from tests.unit.rollout.support import NOW_MS, stable_at, start, with_canary

from tensorferry.rollout import changes, messages
from tensorferry.rollout.state import EMPTY, Guards, Shadow, Share
from tensorferry.wire import rollout_pb2 as pb

ROLLOUTS = {
    "empty": EMPTY,
    "stable": stable_at(2, 3),
    "canary": start(stable_at(2, 3), steps=(0.3, 0.7), step_s=2.5, max_p99_ratio=2.0, score_output="score"),
    "rolled back": changes.rollback(with_canary(), "scores shifted by 0.4", NOW_MS),
    "split": changes.set_split(stable_at(3), [Share("stable", 9), Share("4", 1)], NOW_MS),
    "shadow": changes.set_shadow(stable_at(3), Shadow("5", 0.25), NOW_MS),
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_a_rollout_comes_back_as_it_was(name):
    rollout = ROLLOUTS[name]
    assert messages.rollout_from(messages.rollout_message(rollout)) == rollout
    assert messages.from_hex(messages.to_hex(rollout)) == rollout


def test_guards_left_out_have_their_defaults():
    assert messages.guards_from(pb.Guards()) == Guards()
    assert messages.guards_from(pb.Guards(max_score_shift=0.4)) == Guards(max_score_shift=0.4)


def test_a_shadow_left_out_is_none():
    assert messages.rollout_from(pb.Rollout()) == EMPTY
