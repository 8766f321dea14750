"""``tensorferry info``, as a person and as a script see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

from tensorferry import __version__
from tensorferry.transport import available


def info(*flags: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tensorferry", "info", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_json_holds_every_version_that_matters():
    said = json.loads(info("--json"))
    assert said["tensorferry"] == __version__
    assert said["transports"] == list(available())
    for name in ("grpcio", "protobuf", "numpy", "uvloop"):
        assert said[name] == metadata.version(name)
    assert said["protobuf_implementation"] in ("upb", "cpp", "python")
    assert said["torch"]["version"].split("+")[0] == metadata.version("torch").split("+")[0]
    assert said["torch"]["threads"] >= 1
    assert isinstance(said["torch"]["cuda_devices"], list)
    assert said["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert os.uname().release in said["kernel"]
    assert said["cores"] == {
        "usable": len(os.sched_getaffinity(0)),
        "of_the_machine": os.cpu_count(),
    }


def test_an_extension_is_built_where_its_transport_is_there_and_nghttp2_is_named():
    said = json.loads(info("--json"))
    is_there = "http2" in said["transports"]
    assert (said["extensions"]["tensorferry.transport._http2"] == "built") == is_there
    assert (said["nghttp2"] is not None) == is_there
    if is_there:
        from tensorferry.transport._http2 import nghttp2_version_text

        assert said["nghttp2"].startswith(nghttp2_version_text() + " (")


def test_the_lines_say_the_same():
    said, lines = json.loads(info("--json")), info()
    for value in (said["grpcio"], said["torch"]["version"], said["kernel"], ", ".join(said["transports"])):
        assert str(value) in lines
    assert "{" not in lines
