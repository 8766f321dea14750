from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.repository.conftest import BASE

from tensorferry.errors import ConfigurationError
from tensorferry.repository import manifest, read_model
from tensorferry.repository.manifest import About
from tensorferry.repository.parcel import Parcel, pack
from tensorferry.repository.publish import INCOMING_PREFIX, STALE_S, Published, publish

NOW = datetime(2030, 1, 31, tzinfo=UTC)
ABOUT = About(model="fraud", created=NOW)

# Publishes the file in argv[2] into the repository argv[1] once for each step that publishing has, in
# a child that kills itself at that step, and prints what is visible after each.
KILLED_AT_EVERY_STEP = """
import os, signal, sys
from datetime import datetime, UTC
from pathlib import Path
from tensorferry.repository import manifest
from tensorferry.repository.manifest import About
from tensorferry.repository.parcel import pack
from tensorferry.repository.publish import publish

source, case = Path(sys.argv[2]), sys.argv[3]
about = About("fraud", datetime(2030, 1, 31, tzinfo=UTC))
options = (source.with_name("config.pbtxt"), True) if case == "configured" else (None, False)

def push(repository, dies_at, options):
    steps = iter(range(1000))
    def on_step(step):
        if next(steps) == dies_at:
            print(step, end=" ", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    publish(pack(source, repository / "fraud", *options), repository, about, on_step=on_step)

for dies_at in range(1000):
    repository = Path(sys.argv[1]) / str(dies_at)
    repository.mkdir()
    if case != "new":
        push(repository, None, (None, False))
    child = os.fork()
    if child == 0:
        push(repository, dies_at, options)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(flush=True)
    if status == 0:
        break
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model's file, and a configuration beside it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.pbtxt").write_text(BASE)
    path = tmp_path / "source" / "score.pt"
    path.write_bytes(b"model" * 1000)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


def push(source: Path, repository: Path, *options: Path | bool | None, **more: object) -> Published:
    return publish(pack(source, repository / "fraud", *options), repository, ABOUT, **more)


def visible(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def incoming(repository: Path) -> list[Path]:
    return [*repository.glob(f"{INCOMING_PREFIX}*"), *repository.glob(f"*/{INCOMING_PREFIX}*")]


def test_new_model_comes_with_its_first_version_and_configuration(source, repository):
    published = push(source, repository, source.with_name("config.pbtxt"))
    assert published.version == 1
    assert published.config == repository / "fraud" / "config.pbtxt"
    assert visible(repository / "fraud") == ["1", "config.pbtxt"]
    assert (published.directory / "model.pt").read_bytes() == source.read_bytes()
    assert manifest.read(published.directory) == published.manifest
    manifest.verify(published.directory)
    model = read_model(repository / "fraud")
    assert model.error is None
    assert incoming(repository) == []


def test_versions_count_up_from_the_highest_number_there(source, repository):
    for name in ("3", "10", "not a number", "0"):
        (repository / "fraud" / name).mkdir(parents=True)
    (repository / "fraud" / "11").touch()  # no version, but a name that is taken
    assert push(source, repository).version == 12
    assert push(source, repository).version == 13
    assert push(source, repository, above=20).version == 21


def test_number_above_the_given_holds_for_a_new_model_too(source, repository):
    published = push(source, repository, above=4)
    assert (published.version, visible(repository / "fraud")) == (5, ["5"])


def test_pushes_at_once_each_get_a_number_of_their_own(source, repository):
    # Of the present time, so that none takes another's directory for an old one.
    about = About("fraud", datetime.now(UTC))
    parcel = pack(source, repository / "fraud")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: publish(parcel, repository, about).version, range(24)))
    assert sorted(found) == list(range(1, 25))
    for version in found:
        manifest.verify(repository / "fraud" / str(version))
    assert incoming(repository) == []


def test_number_taken_between_choice_and_rename_is_not_overwritten(source, repository):
    other = repository / "fraud" / "2"

    def take_it(step: str) -> None:
        if step == "rename version" and not other.exists():
            other.mkdir()
            (other / "model.pt").write_text("another push's")

    push(source, repository)
    assert push(source, repository, on_step=take_it).version == 3
    assert (other / "model.pt").read_text() == "another push's"


def test_model_made_between_look_and_rename_gets_the_version_added(source, repository):
    def make_it(step: str) -> None:
        if step == "rename model":
            publish(pack(source, repository / "fraud"), repository, ABOUT)

    config = source.with_name("config.pbtxt")
    published = push(source, repository, config, True, on_step=make_it)
    assert published.version == 2
    assert visible(repository / "fraud") == ["1", "2", "config.pbtxt"]


@pytest.mark.parametrize("case", ["new", "existing", "configured"])
def test_killed_at_any_step_nothing_half_is_visible_and_the_next_push_works(
    case, source, repository, tmp_path
):
    config = source.with_name("config.pbtxt")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, repository, source, case],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    steps = done.stdout.splitlines()
    assert len(steps) >= 10, "the steps were not taken"
    assert ("rename configuration " in steps) == (case == "configured")
    expected = (config, True) if case == "configured" else (None, False)
    for number, step in enumerate(steps):
        root = repository / str(number)
        before = visible(root / "fraud") if (root / "fraud").is_dir() else []
        versions = [name for name in before if name.isdecimal()]
        assert versions in ([], ["1"]) if case == "new" else (["1"], ["1", "2"]), step
        assert bool(before) == (root / "fraud").exists(), step
        for version in versions:
            manifest.verify(root / "fraud" / version)
            assert (root / "fraud" / version / "model.pt").read_bytes() == source.read_bytes()
            assert (root / "fraud" / version / manifest.FILENAME).exists()
        if before:
            assert read_model(root / "fraud").error is None, step
        assert push(source, root, *expected).version == len(versions) + 1, step


def make_stale(repository: Path) -> Path:
    directory = repository / "fraud" / f"{INCOMING_PREFIX}old"
    (directory / "model" / "1").mkdir(parents=True)
    (directory / ".lock").touch()
    os.utime(directory, (NOW.timestamp() - STALE_S - 1,) * 2)
    return directory


def test_what_a_killed_push_left_an_hour_ago_is_removed(source, repository):
    old = make_stale(repository)
    push(source, repository)
    assert not old.exists()


def test_what_is_younger_than_an_hour_is_left(source, repository):
    old = make_stale(repository)
    os.utime(old, (NOW.timestamp() - STALE_S + 10,) * 2)
    push(source, repository)
    assert old.exists()


def test_what_a_push_holds_is_left_however_old(source, repository):
    old = make_stale(repository)
    with (old / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        push(source, repository)
    assert old.exists()


def test_full_disk_leaves_nothing_behind_and_says_so(source, repository):
    script = (
        "import resource, sys; from tensorferry.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(main(['push', sys.argv[1], '--name', 'fraud', '--repository', sys.argv[2]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, source, repository], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no room for the version (File too large); make some; nothing was published" in done.stderr
    assert os.listdir(repository) == []


def test_source_that_vanishes_leaves_nothing_behind(source, repository):
    parcel = pack(source, repository / "fraud")
    source.unlink()
    with pytest.raises(ConfigurationError, match=r"score\.pt: No such file or directory; nothing was"):
        publish(parcel, repository, ABOUT)
    assert os.listdir(repository) == []


def test_repository_that_is_not_there_is_refused(source, tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere: no such directory; create it"):
        push(source, tmp_path / "nowhere")


class TestConfiguration:
    @pytest.fixture
    def config(self, source: Path) -> Path:
        return source.with_name("config.pbtxt")

    def test_the_same_again_is_no_change(self, source, repository, config):
        push(source, repository, config)
        assert push(source, repository, config).config is None

    def test_another_is_refused_unless_it_is_to_replace_the_first(self, source, repository, config):
        push(source, repository, config)
        config.write_text(BASE.replace("8", "16", 1))
        with pytest.raises(ConfigurationError, match=r"config\.pbtxt differs from .*--replace-config"):
            push(source, repository, config)
        assert visible(repository / "fraud") == ["1", "config.pbtxt"]
        published = push(source, repository, config, True)
        assert published.config is not None
        assert published.config.read_text() == config.read_text()

    def test_versions_served_without_one_do_not_get_one_unasked(self, source, repository, config):
        push(source, repository)
        with pytest.raises(ConfigurationError, match="served without a configuration; give --replace"):
            push(source, repository, config)
        push(source, repository, config, True)
        assert visible(repository / "fraud") == ["1", "2", "config.pbtxt"]

    def test_the_other_syntax_is_refused(self, source, repository, config):
        push(source, repository, config)
        other = source.with_name("config.yaml")
        other.write_text(
            "input: [{name: x, data_type: TYPE_FP32, dims: [3]}]\n"
            "output: [{name: y, data_type: TYPE_FP32, dims: [1]}]\n"
        )
        with pytest.raises(ConfigurationError, match=r"the model has a config\.pbtxt"):
            push(source, repository, other, True)

    def test_an_invalid_one_is_refused_with_its_line(self, source, repository, config):
        config.write_text(BASE + "max_batchsize: 1\n")
        with pytest.raises(ConfigurationError, match=r"config\.pbtxt:4: .*max_batchsize"):
            push(source, repository, config)
        assert os.listdir(repository) == []

    def test_its_file_name_is_the_one_that_the_version_gets(self, source, repository, config):
        config.write_text(BASE + 'default_model_filename: "scorer.pt"\n')
        published = push(source, repository, config)
        assert sorted(published.manifest.files) == ["scorer.pt"]
        assert sorted(push(source, repository).manifest.files) == ["scorer.pt"]
        assert read_model(repository / "fraud").error is None

    def test_format_that_contradicts_it_is_refused(self, source, repository, config):
        config.write_text(BASE + 'platform: "onnxruntime_onnx"\n')
        with pytest.raises(ConfigurationError, match=r"pytorch_libtorch by its suffix, and .* onnx"):
            push(source, repository, config)


class TestPacking:
    @pytest.mark.parametrize(
        ("name", "target"),
        [
            ("a.pt", "model.pt"),
            ("b.pt2", "model.pt2"),
            ("c.onnx", "model.onnx"),
            ("d.py", "model.py"),
        ],
    )
    def test_the_suffix_says_the_format(self, tmp_path, name, target):
        (tmp_path / name).touch()
        assert list(pack(tmp_path / name, tmp_path / "fraud").files) == [target]

    def test_another_suffix_is_refused_with_those_there_are(self, tmp_path):
        (tmp_path / "a.pth").touch()
        with pytest.raises(ConfigurationError, match=r"'\.pth' is none of \.pt \(.*\.py \(python\)"):
            pack(tmp_path / "a.pth", tmp_path / "fraud")

    def test_directory_brings_its_files_but_hidden_ones_and_its_old_manifest(self, tmp_path):
        source = tmp_path / "source"
        for name in ("model.py", "lib/a.py", ".env", "__pycache__/model.pyc", "manifest.json", "golden.npz"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).touch()
        assert list(pack(source, tmp_path / "fraud").files) == ["golden.npz", "lib/a.py", "model.py"]

    def test_directory_without_a_model_is_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"holds no model\.pt or .* or model\.py"):
            pack(tmp_path, tmp_path / "fraud")

    def test_golden_file_gets_its_name(self, source, tmp_path):
        for suffix in (".npz", ".json"):
            golden = tmp_path / f"expected{suffix}"
            golden.touch()
            parcel = pack(source, tmp_path / "fraud", golden=golden)
            assert parcel.files == {f"golden{suffix}": golden, "model.pt": source}
        (tmp_path / "expected.csv").touch()
        with pytest.raises(ConfigurationError, match=r"a golden file is \.npz or \.json"):
            pack(source, tmp_path / "fraud", golden=tmp_path / "expected.csv")

    @pytest.mark.parametrize("name", ["", ".fraud", "a/b", "..", "a\nb", "a\\b"])
    def test_name_that_is_no_directory_is_refused(self, source, repository, name):
        parcel = Parcel({"model.pt": source}, pack(source, repository / "fraud").format)
        with pytest.raises(ConfigurationError, match="the model's name is"):
            publish(parcel, repository, About(model=name, created=NOW))
        assert os.listdir(repository) == []
