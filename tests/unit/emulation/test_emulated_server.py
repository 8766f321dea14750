"""The command line with emulated GPUs: what it does, and what it says of races at the end."""

from __future__ import annotations

import pytest

from tensorferry.execution.backends import torch_gpu
from tensorferry.testing import emulated_server
from tensorferry.testing.emulated_gpu import EmulatedGpu, emulated_device


@pytest.fixture
def device():
    """A device that the process has used by name; afterwards devices are opened as before."""
    before = torch_gpu.opened_by(EmulatedGpu)
    device = emulated_device("cuda:7")
    yield device
    device.races.clear()
    torch_gpu.opened_by(before)


def test_a_command_without_races_ends_as_it_would(device, capsys):
    assert emulated_server.main(["info", "--json"]) == 0
    assert not torch_gpu.is_real()
    assert "race" not in capsys.readouterr().err


def test_races_are_told_at_the_end(device, capsys):
    device.races.append("zero on lane 1 writes what copy out reads")
    assert emulated_server.main(["info", "--json"]) == 3
    assert "emulated GPU: race: zero on lane 1" in capsys.readouterr().err


def test_a_command_that_fails_keeps_its_status(device, tmp_path):
    device.races.append("anything")
    assert emulated_server.main(["check", str(tmp_path / "nowhere")]) == 2
