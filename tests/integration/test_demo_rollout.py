"""The rollout's demonstration in small, as a person would start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from demo import rollout

ROOT = Path(__file__).parents[2]


def run(output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo.rollout", "--output", str(output), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, cwd=ROOT)


class TestDemoRollout:
    def test_bad_version_is_taken_back_by_itself_and_no_call_fails(self, tmp_path):
        done = run(tmp_path / "out", "--rows", "4000", "--training-steps", "150")
        assert done.returncode == 0, done.stdout + done.stderr
        commands = (rollout.PUSH, rollout.SERVE, rollout.PUSH_NEXT, rollout.CANARY, rollout.REPORT)
        assert all(f"$ {command}" in done.stdout for command in commands)
        assert "canary of version 2 rolled back to stable version 1" in done.stdout
        assert "none failed" in done.stdout

    def test_file_that_is_none_is_an_error_in_words(self, tmp_path):
        done = run(tmp_path / "out", "--csv", str(tmp_path / "missing.csv"))
        assert done.returncode == 1
        assert done.stderr.strip() == f"demo: {tmp_path / 'missing.csv'}: no such file"
