"""The state file: whole whenever it is read, whoever writes it and whenever a writer is killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from tests.unit.rollout.support import NOW_MS, stable_at, with_canary

from tensorferry.errors import InvalidRequest, ModelConfigError, Unavailable
from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY
from tensorferry.rollout.store import FILENAME, HISTORY, RolloutStore

STEPS = ["lock", "open", "write", "flush", "sync", "replace", "sync directory", "unlock"]


def set_stable(version: int):
    return lambda rollout: changes.set_label(rollout, "stable", version, NOW_MS)


def written(directory, version: int = 3) -> RolloutStore:
    store = RolloutStore(directory)
    store.update(set_stable(version))
    return store


def test_without_a_file_nothing_is_rolled_out(tmp_path):
    assert RolloutStore(tmp_path).read() == EMPTY
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_read_with_a_generation_more(tmp_path):
    store = RolloutStore(tmp_path)
    first = store.update(set_stable(3))
    second = store.update(set_stable(4))
    assert (first.generation, second.generation) == (1, 2)
    assert RolloutStore(tmp_path).read() == second


def test_the_file_is_json_with_the_names_of_the_proto_file(tmp_path):
    RolloutStore(tmp_path).update(lambda _: with_canary())
    values = json.loads((tmp_path / FILENAME).read_text())
    assert values["labels"] == {"canary": "4", "stable": "3"}
    assert values["canary"]["state"] == "RUNNING"
    assert values["canary"]["guards"]["max_p99_ratio"] == 1.5


def test_what_is_hidden_beside_it_is_not_taken_for_a_version(tmp_path):
    written(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {FILENAME}


def test_only_the_latest_events_are_kept(tmp_path):
    store = RolloutStore(tmp_path)
    for version in range(1, HISTORY + 11):
        rollout = store.update(set_stable(version))
    assert len(rollout.history) == HISTORY
    assert rollout.history[-1].what.endswith(f"to {HISTORY + 10}")
    assert store.read() == rollout


def test_a_change_that_changes_nothing_or_is_refused_writes_nothing(tmp_path):
    store = written(tmp_path)
    before = (tmp_path / FILENAME).stat().st_ino
    assert store.update(set_stable(3)).generation == 1
    with pytest.raises(InvalidRequest):
        store.update(lambda rollout: changes.promote(rollout, NOW_MS))
    assert (tmp_path / FILENAME).stat().st_ino == before


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "Expecting value"),
        ("{", "JSON"),
        ('{"labels": {"stable": 3}, "lables": {}}', '"lables"'),
        ('{"canary": {"state": "RUNNING", "stepp": 1}}', '"stepp"'),
        ('{"canary": {"state": "WALKING"}}', "WALKING"),
        ('{"canary": {"state": 7}}', "7"),
        ('{"labels": {"stable": "three"}}', "three"),
        ('{"labels": {"stable": -3}}', "no version -3"),
        ('{"labels": {"3rd": 3}}', "'3rd' can't be a label"),
        ('{"split": [{"target": "gone", "weight": 1}]}', "'gone'"),
        ('{"split": [{"target": "3", "weight": "NaN"}]}', "weight of 3"),
        ('{"shadow": {"target": "3"}}', "shadow's share"),
        ('{"previous_stable": -1}', "previous_stable"),
        ('{"canary": {"state": "RUNNING", "version": 4, "stable_version": 3, "steps": [0.1], '
         '"step_requests": 100}}', "the label stable is not on it"),
        ('{"canary": {"state": "PROMOTED", "version": 4, "stable_version": 3, "steps": [0.1], '
         '"step_requests": 100, "step": 1}}', "it has 1 steps"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_an_error_that_names_it_and_the_fault(tmp_path, text, wrong):
    path = tmp_path / FILENAME
    path.write_text(text)
    store = RolloutStore(tmp_path)
    for call in (store.read, lambda: store.update(set_stable(3))):
        with pytest.raises(ModelConfigError) as caught:
            call()
        assert str(caught.value).startswith(f"{path}: ")
        assert wrong in str(caught.value)
        assert "correct it, or remove the file" in str(caught.value)
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_an_error_that_names_the_file(tmp_path):
    (tmp_path / FILENAME).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelConfigError, match=FILENAME):
        RolloutStore(tmp_path).read()


KILLED = """
import os, signal, sys
from pathlib import Path
from tensorferry.rollout import changes
from tensorferry.rollout.store import RolloutStore

def on_step(step):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

RolloutStore(Path(sys.argv[1]), on_step).update(lambda rollout: changes.set_label(rollout, "stable", 4, 1))
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_killed_at_any_step_leaves_the_old_state_or_the_new_one(tmp_path, step):
    store = written(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), step], timeout=60)
    assert done.returncode == -signal.SIGKILL
    is_new = STEPS.index(step) > STEPS.index("replace")
    assert store.read().stable == (4 if is_new else 3)
    # The lock and whatever lies about are no hindrance to the next.
    assert store.update(set_stable(5)).generation == (3 if is_new else 2)
    assert store.read().stable == 5


def test_the_steps_are_all_that_there_are(tmp_path):
    steps: list[str] = []
    RolloutStore(tmp_path, steps.append).update(set_stable(3))
    assert steps == STEPS


@pytest.mark.parametrize("step", STEPS[: STEPS.index("replace") + 1])
def test_a_full_disk_leaves_the_old_state_and_is_said(tmp_path, step):
    def fill(at: str) -> None:
        if at == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = written(tmp_path).read()
    with pytest.raises(Unavailable, match="No space left on device") as caught:
        RolloutStore(tmp_path, fill).update(set_stable(4))
    assert str(tmp_path / FILENAME) in str(caught.value)
    assert "Nothing has changed" in str(caught.value)
    assert RolloutStore(tmp_path).read() == old
    assert not (tmp_path / ".rollout.json.tmp").exists()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tensorferry.errors import Unavailable
from tensorferry.rollout import changes
from tensorferry.rollout.store import RolloutStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    RolloutStore(Path(sys.argv[1])).update(lambda rollout: changes.set_label(rollout, "stable", 4, 1))
except Unavailable as error:
    sys.exit(str(error))
"""


def test_a_file_that_can_only_be_written_in_part_leaves_the_old_state(tmp_path):
    old = written(tmp_path).read()
    arguments = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(arguments, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert RolloutStore(tmp_path).read() == old


def test_a_directory_that_is_gone_is_said(tmp_path):
    with pytest.raises(Unavailable, match="No such file or directory"):
        RolloutStore(tmp_path / "gone").update(set_stable(3))


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / ".rollout.json.tmp").write_text("x" * 10_000)
    store = written(tmp_path)
    assert store.read().stable == 3


def test_writers_at_the_same_time_lose_no_change(tmp_path):
    def write(name: str) -> None:
        store = RolloutStore(tmp_path)
        for version in range(1, 11):
            store.update(lambda rollout, v=version: changes.set_label(rollout, name, v, NOW_MS))
            assert store.read().labels[name] == version

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rollout = RolloutStore(tmp_path).read()
    assert rollout.labels == {"a": 10, "b": 10, "c": 10}
    assert rollout.generation == 30


def test_a_state_as_changes_make_it_is_accepted_when_read(tmp_path):
    store = RolloutStore(tmp_path)
    store.update(lambda _: stable_at(2, 3))
    store.update(lambda rollout: changes.set_label(rollout, "other", 9, NOW_MS))
    assert store.read().labels == {"stable": 3, "other": 9}
