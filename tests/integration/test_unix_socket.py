"""gRPC on a unix socket: its file comes, is replaced when it is stale, and goes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from tests.integration.support import PATIENCE_S, fetch, x_request, y_of

from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.testing.models import write_raising
from tensorferry.testing.process import SERVE, ServerProcess
from tensorferry.transport.listening import UnixSocket
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of ``raising``."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket shall be."""
    return tmp_path / "s"


def ask(address: str) -> list[float]:
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        return y_of(stub.ModelInfer(x_request("raising", 3.0), timeout=PATIENCE_S))


def refused(repository: Path, transport: str, *flags: str) -> str:
    """Run a server that must refuse to start; return what it says."""
    ended = subprocess.run(
        [*SERVE, "--model-repository", str(repository), "--http-port", "0", "--transport", transport, *flags],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "ready" not in ended.stdout
    return ended.stderr


def test_serves_there_and_removes_the_file_at_the_end(launch: Launch, models: Path, path: Path):
    process = launch(models, "--host", f"unix:{path}")
    assert process.wait_ready() == "ready"
    assert process.grpc_address == f"unix:{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert ask(process.grpc_address) == [6.0]
    assert process.http_address.startswith("127.0.0.1:")
    assert fetch(process.http_address, "/healthz/ready")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not path.exists()


def test_the_umask_says_who_may_connect(launch: Launch, models: Path, path: Path):
    before = os.umask(0o077)
    try:
        process = launch(models, "--host", f"unix:{path}")
    finally:
        os.umask(before)
    process.wait_ready()
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_the_file_of_a_killed_server_is_replaced(launch: Launch, models: Path, path: Path):
    killed = launch(models, "--host", f"unix:{path}")
    killed.wait_ready()
    killed.kill()
    assert path.exists()
    process = launch(models, "--host", f"unix:{path}")
    assert process.wait_ready() == "ready"
    assert ask(process.grpc_address) == [6.0]


def test_a_socket_that_somebody_listens_on_is_left_alone(
    launch: Launch, models: Path, path: Path, transport: str
):
    first = launch(models, "--host", f"unix:{path}")
    first.wait_ready()
    said = refused(models, transport, "--host", f"unix:{path}")
    assert f"unix:{path}" in said
    assert "another server listens there" in said
    assert ask(first.grpc_address) == [6.0]


def test_a_file_that_is_no_socket_is_left_alone(models: Path, path: Path, transport: str):
    path.write_text("precious")
    assert "isn't a socket" in refused(models, transport, "--host", f"unix:{path}")
    assert path.read_text() == "precious"


def test_a_directory_that_is_missing(models: Path, path: Path, transport: str):
    said = refused(models, transport, "--host", f"unix:{path.parent}/missing/s")
    assert f"unix:{path.parent}/missing/s" in said


# -- settings, and the file alone -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "unix:relative"}, "--host must give the socket's absolute path"),
        ({"host": "unix:"}, "--host must give the socket's absolute path"),
        ({"host": "unix:/" + 107 * "x"}, "--host names a socket by 108 bytes"),
        ({"host": "unix:/s", "processes": 2}, "--processes 2 can't share the unix socket"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], says: str):
    with pytest.raises(SettingsError, match=says):
        ServerConfig(**settings)


def test_http_stays_on_tcp():
    config = ServerConfig(host="unix:/run/tensorferry.sock")
    assert (config.unix_path, config.http_host) == ("/run/tensorferry.sock", "127.0.0.1")
    config = ServerConfig(host="0.0.0.0")
    assert (config.unix_path, config.http_host) == ("", "0.0.0.0")


def test_the_file_of_a_successor_is_not_removed(path: Path):
    ours = UnixSocket(str(path))
    with ours.bind():
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            ours.remove()
            assert path.exists()
