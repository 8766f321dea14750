"""The command line with emulated GPUs: what it does, and what it says of races at the end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tensorferry.execution.backends import torch_gpu
from tensorferry.testing import emulated_server
from tensorferry.testing.emulated_control import EmulatedControl
from tensorferry.testing.emulated_gpu import EmulatedGpu, emulated_device


@pytest.fixture
def device():
    """A device that the process has used by name; afterwards devices are opened as before."""
    with torch_gpu.opened_by(EmulatedGpu):
        device = emulated_device("cuda:7")
        yield device
        device.races.clear()


def test_a_command_without_races_ends_as_it_would(device, capsys):
    assert emulated_server.main(["info", "--json"]) == 0
    assert not torch_gpu.is_real()
    assert "race" not in capsys.readouterr().err


def test_races_are_told_at_the_end(device, capsys):
    device.races.append("zero on lane 1 writes what copy out reads")
    assert emulated_server.main(["info", "--json"]) == 3
    assert "emulated GPU: race: zero on lane 1" in capsys.readouterr().err


def test_a_device_is_changed_and_looked_at_from_outside(device, capsys):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "control"
        assert emulated_server.main(["--control", str(path), "info", "--json"]) == 0
        control = EmulatedControl(path)
        kept = EmulatedGpu(device).pinned(8), device.memory.take(512, "a tensor", None)
        assert control.ask("cuda:7", capacity_bytes=4096)["allocated"] == 512
        assert device.memory.budget.capacity == 4096
        del kept
        told = control.ask("cuda:7", bytes_per_row=3, lose=True)
        assert (told["allocated"], told["is_lost"], told["races"]) == (0, True, [])
        assert device.call_bytes(5) == 15
        device.is_lost = False


def test_a_command_that_fails_keeps_its_status(device, tmp_path):
    device.races.append("anything")
    assert emulated_server.main(["check", str(tmp_path / "nowhere")]) == 2
