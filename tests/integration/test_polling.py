"""A server that follows its repository: what is pushed, copied in, changed, broken and removed there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.integration.live import (
    LiveServer,
    Plus,
    push,
    started,
    tensorferry,
    wait_for,
    write_plus,
    write_version,
)
from tests.integration.support import error_of, wait_until

from tensorferry.testing.models import save
from tensorferry.wire import open_inference_pb2 as pb

POLLING = ("--model-control-mode", "poll", "--repository-poll-secs", "0.05")


@pytest.fixture(scope="module")
def live(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that looks at its repository every 50 ms; it starts with one model, ``kept``."""
    directory = tmp_path_factory.mktemp(f"polling-{transport}")
    write_plus(directory / "models", "kept", 1)
    flags = (*POLLING, "--transport", transport)
    with started(directory / "models", directory / "log", *flags) as server:
        yield server


def test_what_is_pushed_is_served_and_the_models_command_says_so(live: LiveServer, tmp_path: Path):
    write_plus(tmp_path, "source", 1)
    source, config = tmp_path / "source" / "1" / "model.pt", tmp_path / "source" / "config.pbtxt"
    assert push(live.root, "pushed", source, "--config", config) == 1
    wait_for(live, "pushed", [1])
    save(Plus(2.0), tmp_path / "better.pt")
    assert push(live.root, "pushed", tmp_path / "better.pt") == 2
    wait_for(live, "pushed", [2])
    assert live.infer("pushed", 1.0).y == 3.0
    rows = json.loads(tensorferry("models", "--repository", live.root, "--server", live.address, "--json"))
    states = {row["version"]: row["state"] for row in rows if row["model"] == "pushed"}
    assert states["2"] == "READY"
    assert states.get("1") != "READY"


def test_what_is_copied_in_is_served_whole(live: LiveServer, tmp_path: Path):
    write_plus(tmp_path, "copied", 1)
    shutil.copytree(tmp_path / "copied", live.root / "copied")
    wait_for(live, "copied", [1])
    assert live.infer("copied", 1.0).y == 2.0
    write_plus(tmp_path, "copied", 2)
    shutil.copytree(tmp_path / "copied" / "2", live.root / "copied" / "2")
    wait_for(live, "copied", [2])
    assert live.infer("copied", 1.0).y == 3.0


def test_a_version_that_is_copied_in_slowly_is_not_taken_half_way(live: LiveServer, tmp_path: Path):
    write_plus(live.root, "slowly", 1)
    wait_for(live, "slowly", [1])
    save(Plus(2.0), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (live.root / "slowly" / "2").mkdir()
    seen = set()
    with (live.root / "slowly" / "2" / "model.pt").open("wb") as file:
        for start in range(0, len(whole), len(whole) // 40 + 1):
            file.write(whole[start : start + len(whole) // 40 + 1])
            file.flush()
            seen.add(live.infer("slowly", 1.0).y)
            seen |= {version for version in live.ready("slowly") if version != 1}
    wait_for(live, "slowly", [2])
    assert seen == {2.0}
    assert live.infer("slowly", 1.0).y == 3.0


def test_what_is_removed_is_withdrawn_and_the_version_before_answers(live: LiveServer):
    write_plus(live.root, "removed", 1, 2)
    wait_for(live, "removed", [2])
    (live.root / "removed" / "2").rename(live.root / "removed" / ".2")
    wait_for(live, "removed", [1])
    assert live.infer("removed", 1.0).y == 2.0
    (live.root / "removed").rename(live.root / ".removed")
    wait_until(lambda: live.index("removed") == {}, "the model is withdrawn")
    assert error_of(lambda: live.infer("removed")).code() is grpc.StatusCode.NOT_FOUND
    (live.root / ".removed").rename(live.root / "removed")
    wait_for(live, "removed", [1])


def test_a_broken_version_keeps_the_good_one_and_its_reason_is_told(live: LiveServer, tmp_path: Path):
    write_plus(live.root, "broken", 1)
    wait_for(live, "broken", [1])
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 cut short")
    assert push(live.root, "broken", tmp_path / "model.pt") == 2
    wait_until(lambda: live.index("broken").get(2, ("",))[0] == "UNAVAILABLE", "version 2 is refused")
    assert "TorchScript" in live.index("broken")[2][1]
    assert live.ready("broken") == [1]
    assert live.infer("broken", 1.0).y == 2.0
    rows = json.loads(tensorferry("models", "--repository", live.root, "--server", live.address, "--json"))
    told = {row["version"]: row for row in rows if row["model"] == "broken"}
    assert told["1"]["state"] == "READY"
    assert told["2"]["state"] == "UNAVAILABLE"
    assert "TorchScript" in told["2"]["reason"]
    assert "TorchScript" in live.process.log()
    write_version(live.root, "broken", 3, Plus(3.0))
    wait_for(live, "broken", [3])
    assert live.infer("broken", 1.0).y == 4.0


def test_a_broken_configuration_keeps_what_is_served_until_it_is_mended(live: LiveServer):
    write_plus(live.root, "configured", 1)
    wait_for(live, "configured", [1])
    config = live.root / "configured" / "config.pbtxt"
    good = config.read_text()
    config.write_text(good + "max_batchsize: 3\n")
    wait_until(lambda: "max_batchsize" in str(live.index("configured")), "the reason is told")
    assert live.infer("configured", 1.0).y == 2.0
    config.write_text(good.replace("16", "32"))
    served = pb.ModelConfigRequest(name="configured")
    wait_until(
        lambda: live.stub.ModelConfig(served).config.max_batch_size == 32, "the new configuration is served"
    )
    wait_until(lambda: "max_batchsize" not in str(live.index("configured")), "the reason is gone")
    assert live.infer("configured", 1.0).y == 2.0


def test_a_label_that_a_push_sets_is_followed(live: LiveServer, tmp_path: Path):
    write_plus(live.root, "labelled", 1)
    save(Plus(2.0), tmp_path / "two.pt")
    save(Plus(3.0), tmp_path / "three.pt")
    wait_for(live, "labelled", [1])
    assert push(live.root, "labelled", tmp_path / "two.pt", "--label", "stable") == 2
    wait_until(lambda: live.infer("labelled").version == 2, "the stable version answers")
    assert push(live.root, "labelled", tmp_path / "three.pt", "--label", "canary") == 3
    wait_until(lambda: 3 in live.ready("labelled"), "the canary is loaded")
    assert live.infer("labelled").version == 2
    assert live.infer("labelled", label="canary") == live.infer("labelled", version="3")
    assert push(live.root, "labelled", tmp_path / "three.pt") == 4
    write_plus(live.root, "after", 1)
    wait_for(live, "after", [1])
    assert live.infer("labelled").version == 2, "nobody has rolled version 4 out"


def test_loading_by_request_is_refused_and_the_message_says_how_to_start(live: LiveServer):
    for call in (
        lambda: live.load("kept"),
        lambda: live.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="kept")),
    ):
        refused = error_of(call)
        assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "--model-control-mode explicit" in refused.details()
    assert live.ready("kept") == [1]
