"""Changes of a rollout: what they make, what they refuse, and what they say."""

from __future__ import annotations

import math

import pytest
from tests.unit.rollout.support import NOW_MS, last, stable_at, start, with_canary

from tensorferry.errors import InvalidRequest, NotFound
from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY, CanaryState, Guards, Shadow, Share


def refused(change, *arguments) -> str:
    with pytest.raises(InvalidRequest) as caught:
        change(*arguments, NOW_MS)
    return str(caught.value)


# -- labels


def test_a_label_is_set_moved_and_removed_and_each_is_written_down():
    rollout = changes.set_label(EMPTY, "candidate", 4, NOW_MS)
    assert last(rollout) == "label candidate set to version 4"
    rollout = changes.set_label(rollout, "candidate", 5, NOW_MS)
    assert last(rollout) == "label candidate set to version 5; it was 4"
    rollout = changes.set_label(rollout, "candidate", 0, NOW_MS)
    assert last(rollout) == "label candidate removed; it was version 5"
    assert not rollout.labels
    assert [event.time_ms for event in rollout.history] == [NOW_MS] * 3


@pytest.mark.parametrize("label", ["", "4", "4th", "-x", "a b", "a/b", "ä", "x" * 65, "stable\n"])
def test_a_label_that_is_no_name_is_refused(label):
    assert "can't be a label" in refused(changes.set_label, EMPTY, label, 3)


@pytest.mark.parametrize("label", ["x", "x" * 64, "v1.2_a-b"])
def test_names_are_labels(label):
    assert changes.set_label(EMPTY, label, 3, NOW_MS).labels == {label: 3}


@pytest.mark.parametrize("version", [-1, 10**18])
def test_a_version_that_no_directory_can_have_is_refused(version):
    assert "versions are numbers from 1 up" in refused(changes.set_label, EMPTY, "stable", version)


def test_setting_a_label_where_it_is_changes_nothing():
    rollout = stable_at(2, 3)
    assert changes.set_label(rollout, "stable", 3, NOW_MS) is rollout


def test_a_label_that_is_not_there_cannot_be_removed():
    assert "the labels stable" in refused(changes.set_label, stable_at(3), "old", 0)
    assert "no labels" in refused(changes.set_label, EMPTY, "old", 0)


def test_moving_stable_remembers_where_it_was():
    rollout = stable_at(2, 3)
    assert rollout.previous_stable == 2
    assert last(rollout) == "stable moved from version 2 to 3"


def test_stable_may_be_removed_when_nothing_needs_it():
    assert changes.set_label(stable_at(3), "stable", 0, NOW_MS).arms == ()


@pytest.mark.parametrize("label", ["stable", "canary"])
def test_a_label_that_a_canary_needs_is_not_removed(label):
    assert "needs the label" in refused(changes.set_label, with_canary(), label, 0)


def test_labels_that_a_split_or_a_shadow_names_are_not_removed():
    split = changes.set_split(stable_at(3), [Share("stable", 1), Share("4", 1)], NOW_MS)
    assert "the split needs the label stable" in refused(changes.set_label, split, "stable", 0)
    shadowed = changes.set_label(stable_at(3), "next", 5, NOW_MS)
    shadowed = changes.set_shadow(shadowed, Shadow("next", 1.0), NOW_MS)
    assert "the shadow needs the label next" in refused(changes.set_label, shadowed, "next", 0)


def test_moving_stable_to_the_canary_promotes_it():
    rollout = changes.set_label(with_canary(), "stable", 4, NOW_MS)
    assert rollout.canary.state is CanaryState.PROMOTED
    assert rollout.previous_stable == 3


def test_moving_stable_elsewhere_ends_the_canary_and_says_why():
    rollout = changes.set_label(with_canary(), "stable", 7, NOW_MS)
    assert rollout.canary.state is CanaryState.ROLLED_BACK
    assert rollout.canary.reason == "stable was moved to version 7"
    assert rollout.arms == ((7, 1.0),)
    assert last(rollout) == "canary of version 4 ended: stable moved from version 3 to 7"


def test_the_label_of_a_canary_that_runs_stays_on_it():
    assert "runs as a canary" in refused(changes.set_label, with_canary(), "canary", 9)


# -- splits


def test_a_split_says_versions_and_shares_and_is_cleared():
    rollout = changes.set_split(stable_at(3), [Share("stable", 90), Share("4", 10)], NOW_MS)
    assert last(rollout) == "split set: version 3 (stable) 90 %, version 4 10 %"
    rollout = changes.set_split(rollout, [], NOW_MS)
    assert last(rollout) == "split cleared: all requests to stable version 3"
    assert rollout.arms == ((3, 1.0),)
    assert changes.set_split(rollout, [], NOW_MS) is rollout


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_no_share_is_refused(weight):
    shares = [Share("stable", 1), Share("4", weight)]
    assert "the weight of 4" in refused(changes.set_split, stable_at(3), shares)


def test_weights_whose_sum_no_number_holds_are_refused():
    shares = [Share("stable", 1e308), Share("4", 1e308)]
    assert "give smaller ones" in refused(changes.set_split, stable_at(3), shares)


def test_a_target_that_is_nothing_is_refused_with_the_labels_there_are():
    message = refused(changes.set_split, stable_at(3), [Share("canry", 1)])
    assert message == "'canry' is neither a version number nor a label; there are the labels stable"
    assert "no version 0" in refused(changes.set_split, stable_at(3), [Share("0", 1)])


def test_a_version_is_named_once():
    message = refused(changes.set_split, stable_at(3), [Share("stable", 1), Share("3", 1)])
    assert message == "stable and 3 are both version 3; name each version once"


def test_a_split_beside_a_canary_is_refused():
    message = refused(changes.set_split, with_canary(), [Share("stable", 1), Share("4", 1)])
    assert "a canary of version 4 runs" in message


# -- shadows


def test_a_shadow_is_set_and_ended():
    rollout = changes.set_shadow(stable_at(3), Shadow("5", 0.1), NOW_MS)
    assert last(rollout) == "version 5 shadows 10 % of the requests"
    rollout = changes.set_shadow(rollout, None, NOW_MS)
    assert last(rollout) == "shadow of version 5 ended"
    assert changes.set_shadow(rollout, None, NOW_MS) is rollout


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_a_shadow_of_no_share_is_refused(share):
    assert "the shadow's share" in refused(changes.set_shadow, stable_at(3), Shadow("5", share))


def test_a_version_that_answers_cannot_shadow():
    assert "answers requests already" in refused(changes.set_shadow, with_canary(), Shadow("4", 1.0))


@pytest.mark.parametrize(
    "change",
    [
        lambda rollout: changes.set_label(rollout, "stable", 5, NOW_MS),
        lambda rollout: changes.set_split(rollout, [Share("stable", 1), Share("5", 1)], NOW_MS),
        lambda rollout: start(rollout, "5"),
    ],
)
def test_a_shadow_that_begins_to_answer_shadows_no_more(change):
    rollout = change(changes.set_shadow(stable_at(3), Shadow("5", 0.1), NOW_MS))
    assert rollout.shadow is None
    assert last(rollout).endswith("it no longer shadows, since version 5 answers now")


# -- canaries


def test_a_canary_starts_with_the_defaults_and_the_label():
    rollout = with_canary()
    canary = rollout.canary
    assert (canary.stable_version, canary.version, canary.step) == (3, 4, 0)
    assert canary.steps == (0.01, 0.1, 0.5, 1.0)
    assert canary.step_requests == 100
    assert canary.guards == Guards()
    assert rollout.labels == {"stable": 3, "canary": 4}
    assert last(rollout) == (
        "canary of version 4 started beside stable version 3: step 1 of 4, 1 % of the requests"
    )


def test_a_canary_named_by_a_label_leaves_the_labels_as_they_are():
    rollout = start(changes.set_label(stable_at(3), "next", 6, NOW_MS), "next")
    assert rollout.canary.version == 6
    assert rollout.labels == {"stable": 3, "next": 6}


def test_a_canary_clears_the_split():
    split = changes.set_split(stable_at(3), [Share("stable", 1), Share("4", 1)], NOW_MS)
    rollout = start(split)
    assert rollout.split == ()
    assert last(rollout).endswith("; the split is cleared")


def test_a_canary_needs_stable_another_version_and_no_other_canary():
    guards = Guards()
    begin = changes.start_canary
    assert "set it first" in refused(begin, EMPTY, "4", (), 0, 0.0, guards)
    assert "version 3 is stable already" in refused(begin, stable_at(3), "3", (), 0, 0.0, guards)
    assert "runs already" in refused(begin, with_canary(), "5", (), 0, 0.0, guards)


@pytest.mark.parametrize("steps", [(0.0,), (-0.1, 1.0), (0.1, 1.1), (0.5, 0.5), (0.5, 0.1), (math.nan,)])
def test_steps_that_do_not_grow_within_the_requests_are_refused(steps):
    assert "the canary's steps are" in refused(
        changes.start_canary, stable_at(3), "4", steps, 0, 0.0, Guards()
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_error_rate_increase": 1.1}, "max_error_rate_increase"),
        ({"max_p99_ratio": 0.9}, "max_p99_ratio"),
        ({"max_p99_ratio": math.inf}, "max_p99_ratio"),
        ({"max_score_shift": 1.5}, "max_score_shift"),
        ({"max_score_shift": math.nan}, "max_score_shift"),
        ({"min_requests": -1}, "min_requests"),
    ],
)
def test_guards_that_guard_nothing_are_refused(wrong, named):
    with pytest.raises(InvalidRequest, match=named):
        start(stable_at(3), **wrong)


@pytest.mark.parametrize("step_s", [-1.0, math.inf, math.nan])
def test_a_step_that_lasts_no_time_is_refused(step_s):
    with pytest.raises(InvalidRequest, match="step_s"):
        start(stable_at(3), step_s=step_s)


def test_a_canary_that_would_be_promoted_unjudged_is_refused():
    with pytest.raises(InvalidRequest, match="promoted after 40 answers"):
        start(stable_at(3), step_requests=10)
    assert start(stable_at(3), step_requests=10, min_requests=40).running is not None
    assert start(stable_at(3), step_requests=10, step_s=60.0).running is not None


def test_a_canary_goes_step_by_step_to_stable():
    rollout = with_canary()
    shares = []
    while rollout.running is not None:
        shares.append(rollout.running.share)
        rollout = changes.advance(rollout, NOW_MS)
    assert shares == [0.01, 0.1, 0.5, 1.0]
    assert rollout.canary.state is CanaryState.PROMOTED
    assert (rollout.stable, rollout.previous_stable) == (4, 3)
    assert last(rollout) == "canary of version 4 promoted: stable moved from version 3 to 4"


def test_a_canary_whose_last_step_is_not_all_is_promoted_too():
    rollout = changes.advance(start(stable_at(3), steps=(0.2,)), NOW_MS)
    assert rollout.stable == 4


def test_what_needs_a_canary_is_refused_without_one_and_says_what_became_of_the_last():
    assert refused(changes.promote, EMPTY) == "no canary runs"
    promoted = changes.promote(with_canary(), NOW_MS)
    assert "version 4, was promoted" in refused(changes.advance, promoted)
    back = changes.rollback(with_canary(), "p99 twice stable's", NOW_MS)
    assert "version 4, was rolled back: p99 twice stable's" in refused(changes.promote, back)


# -- rollbacks


def test_a_rollback_ends_a_canary_and_keeps_the_reason():
    rollout = changes.rollback(with_canary(), "p99 twice\nstable's", NOW_MS)
    assert rollout.canary.state is CanaryState.ROLLED_BACK
    assert rollout.canary.reason == "p99 twice stable's"
    assert rollout.arms == ((3, 1.0),)
    assert last(rollout) == "canary of version 4 rolled back to stable version 3: p99 twice stable's"


def test_a_rollback_ends_a_split():
    split = changes.set_split(stable_at(2, 3), [Share("stable", 1), Share("4", 1)], NOW_MS)
    rollout = changes.rollback(split, "", NOW_MS)
    assert rollout.arms == ((3, 1.0),)
    assert last(rollout) == "split rolled back to stable version 3"


def test_a_rollback_takes_stable_to_the_version_before():
    rollout = changes.rollback(stable_at(2, 3), "asked for", NOW_MS)
    assert rollout.stable == 2
    assert last(rollout) == "stable rolled back from version 3 to version 2: asked for"


@pytest.mark.parametrize(
    "rollout",
    [
        stable_at(2, 3),
        start(stable_at(2, 3)),
        changes.set_split(stable_at(2, 3), [Share("stable", 1), Share("4", 1)], NOW_MS),
    ],
    ids=["stable", "canary", "split"],
)
def test_a_second_rollback_does_not_go_back_further(rollout):
    once = changes.rollback(rollout, "a guard", NOW_MS)
    message = refused(changes.rollback, once, "an operator")
    assert "nothing to roll back" in message
    assert last(once) in message


def test_a_rollback_with_nowhere_to_go_says_what_to_do():
    assert "set the label to the version you want" in refused(changes.rollback, stable_at(3), "")
    assert "there is no stable version" in refused(changes.rollback, EMPTY, "")


def test_after_a_rollback_stable_can_be_moved_and_rolled_back_again():
    rollout = changes.rollback(stable_at(2, 3), "", NOW_MS)
    rollout = changes.set_label(rollout, "stable", 4, NOW_MS)
    assert changes.rollback(rollout, "", NOW_MS).stable == 2


# -- versions


def test_versions_that_are_not_there_are_named_with_who_needs_them():
    with pytest.raises(NotFound, match=r"no version 4, for the label canary; there are: 1, 3"):
        changes.check_versions(with_canary(), (3, 1))
    with pytest.raises(NotFound, match="for the shadow"):
        changes.check_versions(changes.set_shadow(stable_at(3), Shadow("9", 1.0), NOW_MS), (3,))
    split = changes.set_split(stable_at(3), [Share("stable", 1), Share("8", 1)], NOW_MS)
    with pytest.raises(NotFound, match="for the split"):
        changes.check_versions(split, (3,))
    changes.check_versions(with_canary(), (3, 4))


def test_the_version_before_may_have_been_deleted():
    changes.check_versions(stable_at(2, 3), (3,))


def test_no_change_touches_the_rollout_that_it_was_given():
    before = with_canary()
    labels = dict(before.labels)
    changes.set_label(before, "other", 9, NOW_MS)
    changes.promote(before, NOW_MS)
    assert dict(before.labels) == labels
    assert before.running is not None
