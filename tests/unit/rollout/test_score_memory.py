"""Labels find the scores that were given, the newest first."""

from __future__ import annotations

from tensorferry.rollout.score_memory import ScoreMemory


def memory_of(*scores, max_scores=4) -> ScoreMemory:
    memory = ScoreMemory(max_scores)
    for key, score in scores:
        memory.remember(key, score)
    return memory


def test_labels_find_their_scores_in_the_order_of_the_labels():
    memory = memory_of((b"a", 0.1), (b"b", 0.2))
    assert memory.match([(b"b", 1), (b"x", 1), (b"a", 0)]) == [(0.2, 1), (0.1, 0)]


def test_nothing_is_found_in_an_empty_memory():
    assert memory_of().match([(b"a", 1)]) == []
    assert memory_of((b"a", 0.1)).match([]) == []


def test_the_newest_score_of_a_key_is_found():
    assert memory_of((b"a", 0.1), (b"a", 0.9)).match([(b"a", 1)]) == [(0.9, 1)]


def test_the_newest_of_a_key_is_found_after_the_ring_went_round():
    # The newest lies before the older one in the ring.
    memory = memory_of((b"p", 0.0), (b"q", 0.0), (b"r", 0.0), (b"a", 0.1), (b"a", 0.9))
    assert memory.match([(b"a", 1)]) == [(0.9, 1)]


def test_the_oldest_are_forgotten():
    memory = memory_of(*[(b"%d" % number, number / 10) for number in range(9)])
    assert len(memory) == 4
    found = memory.match([(b"%d" % number, 1) for number in range(9)])
    assert found == [(0.5, 1), (0.6, 1), (0.7, 1), (0.8, 1)]


def test_learned_pairs_stay_when_their_scores_are_forgotten():
    memory = memory_of((b"a", 0.1))
    assert memory.learn([(b"a", 1), (b"b", 0)]) == 1
    for number in range(4):
        memory.remember(b"%d" % number, 0.5)
    assert memory.match([(b"a", 1)]) == []
    assert memory.pairs == [(0.1, 1)]


def test_a_label_that_comes_again_replaces_the_first():
    memory = memory_of((b"a", 0.1))
    memory.learn([(b"a", 1)])
    assert memory.learn([(b"a", 0)]) == 1
    assert memory.pairs == [(0.1, 0)]


def test_learned_pairs_are_bounded_and_the_newest_kept():
    memory = ScoreMemory(3)
    for number in range(5):
        memory.remember(b"%d" % number, number / 10)
        memory.learn([(b"%d" % number, 1)])
    assert memory.pairs == [(0.2, 1), (0.3, 1), (0.4, 1)]
