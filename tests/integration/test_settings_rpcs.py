"""LogSettings and TraceSetting by the unmodified tritonclient, in one process and in several."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tests.integration.support import wait_until
from tests.integration.test_processes import children, is_ready
from tritonclient.utils import InferenceServerException

from tensorferry.testing.models import write_raising
from tensorferry.testing.process import ServerProcess

Launch = Callable[..., ServerProcess]

#: So many connections all go to one of two processes once in 2^23 times.
CONNECTIONS = 24
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root


@contextmanager
def client_of(process: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(process.grpc_address, channel_args=OWN_CONNECTION) as client:
        yield client


def log_settings(client: triton.InferenceServerClient) -> dict[str, object]:
    settings = client.get_log_settings(as_json=True)["settings"]
    return {name: next(iter(value.values())) for name, value in settings.items()}


def test_log_settings_are_told_and_changed(launch: Launch, models: Path):
    process = launch(models, "--log-format", "json")
    process.wait_ready()
    with client_of(process) as client:
        assert log_settings(client) == {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "json",
        }
        client.update_log_settings({"log_verbose_level": 1, "log_info": False, "log_format": "default"})
        changed = log_settings(client)
        assert (changed["log_verbose_level"], changed["log_info"]) == (1, False)
        assert changed["log_format"] == "default"
        client.update_log_settings({"log_info": True, "log_format": "ISO8601"})
        wait_until(lambda: "settings changed" in process.log(), "the change is in the log")
        with pytest.raises(InferenceServerException, match="standard error"):
            client.update_log_settings({"log_info": False, "log_file": "/tmp/log"})
        with pytest.raises(InferenceServerException, match="no log setting 'colour'"):
            client.update_log_settings({"colour": True})
        assert log_settings(client)["log_info"] is True


def test_without_a_collector_traces_stay_off(launch: Launch, models: Path):
    process = launch(models)
    process.wait_ready()
    with client_of(process) as client:
        settings = client.get_trace_settings("raising", as_json=True)["settings"]
        assert settings["trace_level"]["value"] == ["OFF"]
        with pytest.raises(InferenceServerException, match="--trace-endpoint"):
            client.update_trace_settings("raising", {"trace_level": ["TIMESTAMPS"]})
        client.update_trace_settings(settings={"trace_level": None})
        with pytest.raises(InferenceServerException, match="nowhere"):
            client.get_trace_settings("nowhere")


def test_both_extensions_are_announced(launch: Launch, models: Path):
    process = launch(models)
    process.wait_ready()
    with client_of(process) as client:
        assert {"trace", "logging"} <= set(client.get_server_metadata().extensions)


def test_all_processes_have_the_level_and_one_that_is_started_again_too(launch: Launch, models: Path):
    process = launch(models, "--processes", "2", "--log-format", "json")
    process.wait_ready()
    try:
        with client_of(process) as client:
            client.update_log_settings({"log_verbose_level": 1})
        everywhere(process, lines=3)
        before = children(process.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(process.pid)) - set(before)) == 1, "it is started again")
        wait_until(lambda: is_ready(process), "it is ready again")
        everywhere(process, lines=4)
    finally:
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)


def everywhere(process: ServerProcess, lines: int) -> None:
    """Check that every connection finds the change, and that so many processes have logged it."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            client = stack.enter_context(client_of(process))
            assert log_settings(client)["log_verbose_level"] == 1
    logged = [text for text in process.log().splitlines() if '"settings changed"' in text]
    assert len(logged) == lines
    assert all(json.loads(text)["change"] == {"log_verbose_level": 1} for text in logged)
