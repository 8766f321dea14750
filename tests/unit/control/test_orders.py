"""An order, on its way to another process and as the repository fills it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.live_support import ALL, CONFIG, canary, entry_of, label, made, shadow, write_version

from tensorferry.control.orders import Order, read_order, read_rollout
from tensorferry.errors import ModelConfigError
from tensorferry.rollout.state import EMPTY

JSON = '{"max_batch_size": 2, "backend": "pytorch"}'


@pytest.mark.parametrize(
    "order",
    [
        Order("m", Path("/models/m")),
        Order("m", Path("/models/m"), JSON, made(label(1), label(2, "b"), shadow(2), canary(3))),
    ],
)
def test_an_order_survives_the_way_to_another_process(order):
    assert Order.from_json(order.to_json()) == order


@pytest.mark.parametrize(
    ("policy", "rollout", "expected"),
    [
        ("", EMPTY, [3]),
        ("", made(label(1)), [1]),
        ("", made(label(1), label(2)), [1, 2]),  # 1 stays warm for a rollback
        ("", made(label(1, "b")), [1, 3]),
        ("", made(label(1), shadow(2)), [1, 2]),
        ("", made(label(1), canary(3)), [1, 3]),
        (ALL, made(label(1)), [1, 2, 3]),
    ],
)
def test_policy_and_rollout_say_together_which_versions_are_served(tmp_path, policy, rollout, expected):
    for version in (1, 2, 3):
        write_version(tmp_path, version, config=CONFIG + policy)
    assert [spec.version for spec in entry_of(tmp_path, rollout).versions] == expected


def test_a_version_before_that_was_deleted_is_no_fault(tmp_path):
    write_version(tmp_path, 2)
    entry = entry_of(tmp_path, made(label(1), label(2)))
    assert [spec.version for spec in entry.versions] == [2]
    assert entry.faults == {}


def test_a_labelled_version_that_was_deleted_is_a_fault_of_its_own(tmp_path):
    write_version(tmp_path, 2)
    entry = entry_of(tmp_path, made(label(2), label(1, "b")))
    assert [spec.version for spec in entry.versions] == [2]
    assert set(entry.faults) == {1}


def test_a_configuration_given_with_the_order_stands_in_for_the_files(tmp_path):
    write_version(tmp_path, 1)
    entry = read_order(Order("m", tmp_path / "m", JSON))
    assert entry.error is None
    assert entry.versions[0].max_batch_size == 2


def test_a_given_configuration_that_is_none_is_the_models_error(tmp_path):
    write_version(tmp_path, 1)
    entry = read_order(Order("m", tmp_path / "m", "{"))
    assert isinstance(entry.error, ModelConfigError)
    assert entry.versions == ()


def test_a_directory_that_is_gone_is_the_models_error(tmp_path):
    assert isinstance(read_order(Order("m", tmp_path / "m")).error, ModelConfigError)


def test_a_rollout_that_can_not_be_read_says_where(tmp_path):
    assert read_rollout(tmp_path) == EMPTY
    (tmp_path / "rollout.json").write_text("{")
    with pytest.raises(ModelConfigError, match=r"rollout\.json"):
        read_rollout(tmp_path)
