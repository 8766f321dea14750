"""``tensorferry simulate``, as a user calls it."""

from __future__ import annotations

import csv
import importlib.util

import pytest

from tensorferry import cli
from tensorferry.testing.models import write_mlp

QUICK = ["simulate", "--run-ms", "1:0.08,64:0.25", "--loads", "0.5,2", "--max-requests", "3000"]


def simulate(capsys, *more: str) -> tuple[int, str, str]:
    status = cli.main([*QUICK, *more])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_it_prints_a_row_for_each_load(capsys):
    status, out, _ = simulate(capsys)
    lines = out.splitlines()
    assert status == 0
    assert "capacity 256000 rows/s" in out
    assert [line.split()[0] for line in lines[-3:]] == ["load", "0.50", "2.00"]
    assert "in time/s" not in out
    assert len({len(line) for line in lines[-3:]}) == 1


def test_with_an_objective_it_says_what_a_machine_carries(capsys):
    _, out, _ = simulate(capsys, "--objective-ms", "2")
    assert "answered within 2 ms up to load 0." in out
    assert "rows/s, p99" in out.splitlines()[-1]


def test_it_says_if_no_limit_was_reached_or_none_holds(capsys):
    _, out, _ = simulate(capsys, "--objective-ms", "2", "--loads", "0.5")
    assert "give higher --loads" in out
    _, out, _ = simulate(capsys, "--objective-ms", "0.1", "--loads", "0.9")
    assert "No load that was tried" in out


def test_the_csv_holds_the_same_points(capsys, tmp_path):
    path = tmp_path / "points.csv"
    simulate(capsys, "--csv", str(path), "--objective-ms", "10")
    half, double = csv.DictReader(path.read_text().splitlines())
    assert float(half["offered_rows_per_s"]) == pytest.approx(128_000)
    assert float(half["refused_percent"]) == 0.0
    assert float(double["p99_ms"]) <= 10.0


@pytest.mark.parametrize("kind", ["bursty", "step", "file"])
def test_arrivals_may_be_of_other_kinds(capsys, tmp_path, kind):
    if kind == "file":
        path = tmp_path / "times"
        path.write_text("\n".join(str(0.1 * number) for number in range(500)))
        kind = str(path)
    status, out, _ = simulate(capsys, "--arrivals", kind)
    assert status == 0
    assert "2.00" in out


def test_a_model_on_the_loop_is_slower_for_what_the_loop_does(capsys, tmp_path):
    paths = [tmp_path / name for name in ("free", "busy")]
    simulate(capsys, "--csv", str(paths[0]))
    simulate(capsys, "--inline", "--loop-us", "10,10,20", "--csv", str(paths[1]))
    free, busy = (next(csv.DictReader(path.read_text().splitlines())) for path in paths)
    assert float(busy["p50_ms"]) > float(free["p50_ms"])


def test_slots_and_copies_change_what_a_stream_carries(capsys):
    copies = ["--copy-in-ms", "1:0.05,64:0.05", "--copy-out-ms", "64:0.2"]
    _, out, _ = simulate(capsys, *copies)
    assert "capacity 128000 rows/s" in out
    _, out, _ = simulate(capsys, *copies, "--slots", "3")
    assert "1 stream(s) of 3 slots, capacity 256000 rows/s" in out
    assert "64: 0.5" in out.splitlines()[0]


def test_a_real_model_is_measured(capsys, tmp_path):
    write_mlp(tmp_path)
    arguments = ["simulate", "--model", str(tmp_path / "mlp"), "--loads", "0.5", "--max-requests", "500"]
    assert cli.main(arguments) == 0
    assert "run ms by rows: 1: " in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib isn't installed")
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_a_picture(capsys, tmp_path, suffix):
    path = tmp_path / f"load.{suffix}"
    status, _, _ = simulate(capsys, "--plot", str(path), "--objective-ms", "2")
    assert status == 0
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--run-ms", "1"], "ROWS:MILLISECONDS"),
        (["--loads", "half"], "--loads 'half'"),
        (["--loads", "0,1"], "more than 0"),
        (["--objective-ms", "0"], "--objective-ms must be more than 0"),
        (["--objective-ms", "0.01"], "allow more"),
        (["--seconds", "-1"], "--seconds"),
        (["--streams", "0"], "--streams"),
        (["--noise", "-1"], "--noise"),
        (["--request-rows", "65"], "don't fit"),
        (["--inline", "--streams", "2"], "--inline"),
        (["--inline", "--slots", "2"], "--inline"),
        (["--inline", "--copy-in-ms", "1:1"], "--inline"),
        (["--slots", "0"], "--slots"),
        (["--copy-out-ms", "1"], "--copy-out-ms: '1' isn't ROWS:MILLISECONDS"),
        (["--loop-us", "1,2"], "three numbers"),
        (["--loop-us", "1,2,-3"], "negative"),
        (["--arrivals", "no-such-file"], "No such file"),
        (["--csv", "/no/such/folder/points.csv"], "can't be written"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(capsys, arguments, what):
    status, _, error = simulate(capsys, *arguments)
    assert status == 2
    assert what in error


def test_a_directory_without_a_model_is_refused(capsys, tmp_path):
    for path, what in ((tmp_path / "gone", "isn't a directory"), (tmp_path, "has no version directory")):
        assert cli.main(["simulate", "--model", str(path)]) == 2
        assert what in capsys.readouterr().err
