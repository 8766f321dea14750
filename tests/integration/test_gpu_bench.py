"""The GPU benchmark as ``make bench-gpu`` runs it, on an emulated device: every step, no real figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loadtests.gpu.__main__ import main
from loadtests.gpu.bench import VARIANTS, cases_of
from loadtests.gpu.clients import Clients, ClientsFailed
from loadtests.gpu.scale import REHEARSAL


def test_a_rehearsal_runs_every_step_and_ends_in_a_table_of_all_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status = main(["--rehearse", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "gpu.json").read_text())
    missing = {row["case"]: row["missing"] for row in written["rows"] if row["missing"]}
    assert missing == {}, printed
    assert status == 0, printed
    table = (tmp_path / "gpu.txt").read_text()
    assert table in printed
    assert table.startswith("rehearsal on an emulated device: no figure means anything\n")
    told = {(row["configuration"], row["case"]): row for row in written["rows"]}
    answered = 0.0
    for variant in VARIANTS:
        for case in cases_of(variant):
            row = told[variant.says, case.name(REHEARSAL)]
            assert row["rows_per_s"] is not None, row
            answered += row["rows_per_s"]
    assert answered > 0
    assert set(written["bare"]) == {"before", "after"}


def test_a_client_that_does_not_end_is_given_up_and_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("loadtests.gpu.clients._PATIENCE_S", 0.0)
    clients = Clients(1)
    with pytest.raises(ClientsFailed, match="doesn't end"), clients:
        pytest.fail("it was waited for")
    assert not clients.count


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--out", str(tmp_path)]) == 2
    assert "there is no GPU here, and nothing was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
