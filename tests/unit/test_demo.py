"""The demonstration's parts, without its server: transactions, training, judging, the report."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from demo.evaluate import TOLERANCE, Agreement, agreement, roc_auc
from demo.outcome import MAX_FAILURES, Outcome, Record
from demo.process import OwnProcessError, in_own_process
from demo.progress import Steps
from demo.report import Report, as_json, batch_chart, render
from demo.train import export, offline_scores, train
from demo.transactions import FEATURES, TransactionFileError, Transactions, generate, read_csv, split
from rich.console import Console

from tensorferry.testing.process import Limits, ServerProcess, ServerProcessError, parse_listening

HEADER = ",".join([*FEATURES, "Class"])


class TestGenerate:
    def test_shape_share_of_fraud_and_dtype(self):
        made = generate(5_000, seed=1)
        assert made.features.shape == (5_000, 30)
        assert made.features.dtype == np.float32
        assert made.frauds == 50
        assert np.isfinite(made.features).all()

    def test_same_seed_gives_the_same_and_another_seed_does_not(self):
        first, again, other = generate(500, seed=1), generate(500, seed=1), generate(500, seed=2)
        assert np.array_equal(first.features, again.features)
        assert np.array_equal(first.is_fraud, again.is_fraud)
        assert not np.array_equal(first.features, other.features)

    def test_time_ascends_over_two_days_and_is_quiet_at_night(self):
        time = generate(20_000, seed=1).features[:, 0]
        assert (np.diff(time) >= 0).all()
        assert 0 <= time[0] < 3600
        assert 47 * 3600 < time[-1] < 48 * 3600
        hour = time / 3600 % 24
        assert 4 * ((hour >= 3) & (hour < 5)).sum() < ((hour >= 15) & (hour < 17)).sum()

    def test_components_are_centred_and_of_falling_variance(self):
        made = generate(20_000, seed=1)
        ordinary = made.features[~made.is_fraud, 1:29]
        assert np.abs(ordinary.mean(axis=0) / ordinary.std(axis=0)).max() < 0.05
        assert (ordinary.std(axis=0)[:-4] > ordinary.std(axis=0)[4:]).all()

    def test_amounts_are_log_normal_in_cents(self):
        made = generate(20_000, seed=1)
        amounts = made.features[~made.is_fraud, 29].astype(np.float64)
        assert amounts.min() >= 0
        assert np.allclose(amounts * 100, np.round(amounts * 100), atol=0.1)
        logarithms = np.log(amounts[amounts > 1])
        assert abs(np.median(logarithms) - np.log(22)) < 0.3
        assert amounts.mean() > 2 * np.median(amounts)


class TestSplit:
    def test_every_transaction_lands_on_one_side_with_the_same_share_of_fraud(self):
        made = generate(4_000, seed=1)
        training, test = split(made, seed=1)
        assert (len(training), len(test)) == (2_800, 1_200)
        assert (training.frauds, test.frauds) == (28, 12)
        both = np.concatenate((training.features, test.features))
        assert np.array_equal(np.unique(both, axis=0), np.unique(made.features, axis=0))

    def test_test_side_is_bounded(self):
        training, test = split(generate(4_000, seed=1), seed=1, max_test_rows=400)
        assert (len(training), len(test)) == (3_600, 400)
        assert test.frauds == 4


def csv_of(transactions: Transactions, path: Path) -> Path:
    rows = zip(transactions.features, transactions.is_fraud, strict=True)
    lines = [",".join([*map(repr, row.tolist()), str(int(label))]) for row, label in rows]
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return csv_of(generate(300, seed=3, fraud_share=0.1), tmp_path / "cards.csv")


def edited(path: Path, line: int, edit) -> Path:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = edit(lines[line - 1])
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def cell(column: str, value: str):
    def edit(line: str) -> str:
        cells = line.split(",")
        cells[HEADER.split(",").index(column)] = value
        return ",".join(cells)

    return edit


class TestReadCsv:
    def test_reads_back_what_was_written(self, csv_file: Path):
        made = generate(300, seed=3, fraud_share=0.1)
        read = read_csv(csv_file)
        assert np.array_equal(read.features, made.features)
        assert np.array_equal(read.is_fraud, made.is_fraud)

    def test_columns_may_stand_in_any_order_quoted_and_among_others(self, csv_file: Path):
        expected = read_csv(csv_file)
        lines = [line.split(",") for line in csv_file.read_text(encoding="utf-8").splitlines()]
        text = "\n".join(",".join(f'"{value}"' for value in [*line[::-1], "x"]) for line in lines)
        csv_file.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
        assert np.array_equal(read_csv(csv_file).features, expected.features)

    @pytest.mark.parametrize(
        ("line", "edit", "message"),
        [
            (1, lambda header: header.replace("V17,", ""), r"cards.csv:1: column 'V17' is missing"),
            (1, lambda header: header.replace("V17", "V16"), r"cards.csv:1: column 'V16' stands there twice"),
            (1, lambda header: header.replace(",Class", ""), r"column 'Class' is missing"),
            (5, cell("V3", "n/a"), r"cards.csv:5: column 'V3' holds 'n/a', which is no number"),
            (5, cell("Amount", ""), r"cards.csv:5: column 'Amount' holds '', which is no number"),
            (6, cell("V4", "nan"), r"cards.csv:6: column 'V4' holds nan, which is no finite float32"),
            (6, cell("V4", "1e39"), r"cards.csv:6: column 'V4' holds 1e\+39, which is no finite float32"),
            (7, cell("Class", "2"), r"cards.csv:7: column 'Class' holds 2; it must be 0, or 1"),
            (301, lambda row: row[: row.rindex(",")], r"cards.csv:301: 30 cells, and the header names 31"),
        ],
    )
    def test_names_line_and_column_of_what_is_wrong(self, csv_file: Path, line, edit, message):
        with pytest.raises(TransactionFileError, match=message):
            read_csv(edited(csv_file, line, edit))

    @pytest.mark.parametrize(
        ("rows", "fraud_share", "message"),
        [
            (199, 0.1, "199 transactions; at least 200 are needed"),
            (300, 0.0, "no frauds"),
            (300, 0.01, "3 frauds among 300 transactions; at least 10"),
            (300, 0.99, "297 frauds among 300 transactions; at least 10"),
        ],
    )
    def test_refuses_what_no_model_can_learn_from(self, tmp_path: Path, rows, fraud_share, message):
        path = csv_of(generate(rows, seed=3, fraud_share=fraud_share), tmp_path / "cards.csv")
        with pytest.raises(TransactionFileError, match=message):
            read_csv(path)

    def test_says_when_there_is_no_file_no_text_or_nothing(self, tmp_path: Path):
        with pytest.raises(TransactionFileError, match=r"absent\.csv: no such file"):
            read_csv(tmp_path / "absent.csv")
        with pytest.raises(TransactionFileError, match="can't be read: Is a directory"):
            read_csv(tmp_path)
        path = tmp_path / "cards.csv"
        path.write_bytes(b"")
        with pytest.raises(TransactionFileError, match="no header"):
            read_csv(path)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(TransactionFileError, match="is no CSV text"):
            read_csv(path)


class TestAuc:
    @pytest.mark.parametrize("distinct", [2, 5, 10_000])
    def test_equals_the_share_of_pairs_in_order_with_ties_counting_half(self, distinct: int):
        rng = np.random.default_rng(distinct)
        scores = rng.integers(distinct, size=90).astype(np.float32)
        positive = rng.random(90) < 0.3
        pairs = list(product(scores[positive], scores[~positive]))
        expected = sum(1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs) / len(pairs)
        assert roc_auc(scores, positive) == pytest.approx(expected, abs=1e-12)

    def test_is_one_for_perfect_order_and_half_for_none(self):
        positive = np.array([False, False, True, True])
        assert roc_auc(np.array([1, 2, 3, 4], dtype=np.float32), positive) == 1.0
        assert roc_auc(np.array([4, 3, 2, 1], dtype=np.float32), positive) == 0.0
        assert roc_auc(np.zeros(4, dtype=np.float32), positive) == 0.5

    def test_refuses_one_kind_alone(self):
        with pytest.raises(ValueError, match="0 positives, 3 negatives"):
            roc_auc(np.zeros(3, dtype=np.float32), np.zeros(3, dtype=np.bool_))


class TestAgreement:
    def test_counts_identical_bits_and_measures_the_rest(self):
        offline = np.array([0.25, 0.5, 0.75], dtype=np.float32)
        served = offline.copy()
        served[1] = np.nextafter(served[1], np.float32(1))
        found = agreement(served, offline)
        assert (found.compared, found.identical) == (3, 2)
        assert 0 < found.max_difference < 1e-7
        assert found.holds

    @pytest.mark.parametrize("wrong", [0.5 + 2 * TOLERANCE, np.nan])
    def test_does_not_hold_beyond_the_tolerance_or_for_nan(self, wrong: float):
        offline = np.array([0.5, 0.5], dtype=np.float32)
        assert not agreement(np.array([0.5, wrong], dtype=np.float32), offline).holds

    def test_does_not_hold_for_nothing(self):
        nothing = np.zeros(0, dtype=np.float32)
        assert not agreement(nothing, nothing).holds


class TestTrain:
    def test_exported_model_takes_raw_features_and_ranks_unseen_fraud(self, tmp_path: Path):
        training, test = split(generate(6_000, seed=5, fraud_share=0.03), seed=5)
        steps_seen = []
        model = train(training, seed=5, steps=60, on_step=steps_seen.append)
        path = export(model, tmp_path)
        scores = offline_scores(path, test.features)
        assert steps_seen == list(range(1, 61))
        assert scores.shape == (len(test),)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()
        assert roc_auc(scores, test.is_fraud) > 0.9

    def test_same_seed_gives_the_same_model(self, tmp_path: Path):
        training, test = split(generate(1_000, seed=5, fraud_share=0.05), seed=5)
        models = [export(train(training, seed=5, steps=3), tmp_path / name) for name in ("one", "two")]
        first, second = (offline_scores(path, test.features) for path in models)
        assert np.array_equal(first, second)

    def test_repository_has_the_layout_that_the_server_reads(self, tmp_path: Path):
        training, _ = split(generate(1_000, seed=5, fraud_share=0.05), seed=5)
        path = export(train(training, seed=5, steps=1), tmp_path)
        assert path == tmp_path / "fraud" / "1" / "model.pt"
        config = (tmp_path / "fraud" / "config.pbtxt").read_text(encoding="utf-8")
        assert 'name: "fraud"' in config
        assert "max_batch_size: 64" in config


def outcome(answers: int = 4, failures: int = 0, batches: dict[int, int] | None = None) -> Outcome:
    record = Record()
    for row in range(answers):
        record.answered(row, 0.5, elapsed_ns=2_000_000 * (row + 1))
        record.decisions["decline" if row else "approve"] += 1
    for _ in range(failures):
        record.failed("UNAVAILABLE: gone")
    return record.outcome(elapsed_s=2.0, batches=batches or {1: 4})


def report(**changes) -> Report:
    fields = {
        "source": "generated, seed 7",
        "transactions": 40_000,
        "frauds": 400,
        "trained_on": 28_000,
        "served": 12_000,
        "in_flight": 64,
        "stream": outcome(),
        "burst": outcome(batches={1: 1, 3: 2, 4: 2, 64: 20}),
        "auc": 0.95,
        "offline_auc": 0.95,
        "agreement": Agreement(compared=8, identical=8, max_difference=0.0),
    }
    return Report(**{**fields, **changes})


class TestOutcome:
    def test_latency_percentiles_in_milliseconds(self):
        latency = outcome(answers=1000).latency
        assert latency.count == 1000
        assert latency.p50_ms == pytest.approx(1000, rel=2e-3)
        assert latency.p99_ms == pytest.approx(1980, rel=2e-3)
        assert latency.p999_ms == pytest.approx(1998, rel=2e-3)
        assert latency.max_ms == pytest.approx(2000, rel=2e-3)

    def test_rate_counts_answers_and_not_failures(self):
        assert outcome(answers=4, failures=9).requests_per_s == 2.0

    def test_is_hopeless_once_too_many_calls_have_failed(self):
        record = Record()
        for _ in range(MAX_FAILURES - 1):
            record.failed("UNAVAILABLE: gone")
        assert not record.is_hopeless
        record.failed("another reason")
        assert record.is_hopeless


class TestReport:
    def test_shows_rates_latencies_auc_and_verdict_in_aligned_columns(self):
        text = render(report())
        lines = text.splitlines()
        head = next(line for line in lines if "p99.9 ms" in line)
        rows = [line for line in lines if line.startswith(("one by one", "burst, 64 in flight"))]
        assert [len(row) for row in rows] == [len(head)] * 2
        assert rows[0].split() == ["one", "by", "one", "4", "2", "4.00", "8.00", "8.00"]
        assert "40,000 transactions (generated, seed 7), 400 frauds" in text
        assert "0.9500  (offline 0.9500)" in text
        assert "yes: all 8 bit for bit" in text
        assert "1 approve, 3 decline" in text
        assert lines[-1].split() == ["verdict", "passed"]
        assert max(map(len, lines)) <= 100

    def test_states_difference_and_tolerance_where_bits_differ(self):
        text = render(report(agreement=Agreement(8, 5, 6e-8)))
        assert "yes: 5 of 8 bit for bit, largest difference 6.0e-08 (tolerance 1e-06)" in text

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"agreement": Agreement(8, 5, 2e-6)}, "differ from offline ones by more than 1e-06"),
            ({"agreement": Agreement(0, 0, 0.0)}, "nothing to compare"),
            ({"stream": outcome(failures=3)}, "one by one: 3 x UNAVAILABLE: gone"),
            ({"burst": outcome(failures=2)}, "burst: 2 x UNAVAILABLE: gone"),
            ({"auc": None, "offline_auc": None}, "too few answers for an AUC"),
        ],
    )
    def test_fails_and_says_why(self, changes, problem):
        failed = report(**changes)
        assert failed.problems
        assert "verdict                   FAILED" in render(failed)
        assert problem in render(failed)
        assert as_json(failed)["passed"] is False

    def test_json_has_every_figure(self):
        written = as_json(report())
        assert written["passed"] is True
        assert written["burst"]["batches"] == {"1": 1, "3": 2, "4": 2, "64": 20}
        assert written["one_by_one"]["latency"]["p99_ms"] == pytest.approx(8, rel=2e-3)
        assert written["agreement"] == {
            "compared": 8,
            "identical": 8,
            "max_difference": 0.0,
            "tolerance": 1e-6,
        }

    def test_chart_groups_sizes_by_powers_of_two_and_keeps_empty_groups(self):
        lines = batch_chart({1: 1, 3: 2, 4: 2, 9: 40}).splitlines()
        assert [line.split()[:2] for line in lines[1:-1]] == [
            ["1", "1"],
            ["2", "0"],
            ["3-4", "4"],
            ["5-8", "0"],
            ["9-16", "40"],
        ]
        bars = [line.count("#") for line in lines[1:-1]]
        assert bars == [1, 0, 3, 0, 32]
        assert lines[-1].split()[:2] == ["mean", f"{(1 + 6 + 8 + 360) / 45:.1f}"]


class TestSteps:
    def test_prints_plain_lines_where_there_is_no_terminal(self):
        written = StringIO()
        with Steps(Console(file=written)) as steps, steps.step("Train", total=3) as step:
            step.at(3)
            step.detail = "[fine]"
        first, last = written.getvalue().splitlines()
        assert first == "Train ..."
        assert last.startswith("Train: [fine] (")

    def test_shows_bars_on_a_terminal_and_leaves_a_line(self):
        written = StringIO()
        console = Console(file=written, force_terminal=True, width=100)
        with Steps(console) as steps, steps.step("Train", total=3) as step:
            step.at(5)
            step.detail = "done early"
        assert "Train: done early (" in written.getvalue()


def server_that(behaviour: str, tmp_path: Path, stop_s: float = 30.0) -> ServerProcess:
    """A stand-in for the server's program: it says where it listens, then behaves."""
    program = (sys.executable, "-u", "-c", "import os, signal, sys, time\n" + behaviour)
    limits = Limits(start_s=60.0, stop_s=stop_s)
    return ServerProcess(tmp_path, tmp_path / "server.log", program=program, limits=limits)


LISTENING = "print('grpc listening on 127.0.0.1:4001\\nhttp listening on 127.0.0.1:4002')\n"
STOPS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\nprint('ready')\nsignal.pause()\n"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestServerProcess:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("grpc listening on 127.0.0.1:8001\n", ("grpc", "127.0.0.1:8001")),
            ("http listening on [::1]:8002", ("http", "[::1]:8002")),
            ("grpc listening on 127.0.0.1:8001 (grpcio)\n", ("grpc", "127.0.0.1:8001")),
            ("ready", None),
            ("grpc listening on nothing", None),
        ],
    )
    def test_reads_where_it_listens(self, line, expected):
        assert parse_listening(line) == expected

    def test_is_ready_inside_the_block_and_gone_after(self, tmp_path: Path):
        with server_that(LISTENING + STOPS.format(code=0), tmp_path) as server:
            assert server.grpc_address == "127.0.0.1:4001"
            assert server.http_address == "127.0.0.1:4002"
            assert is_running(server.pid)
        assert not is_running(server.pid)

    def test_shows_the_log_of_a_server_that_dies_before_it_is_ready(self, tmp_path: Path):
        server = server_that("sys.exit('no such model: fraud')", tmp_path)
        with pytest.raises(
            ServerProcessError, match=r"code 1 before it was ready(?s:.)*no such model: fraud"
        ):
            server.__enter__()

    def test_refuses_one_that_does_not_say_where_it_listens(self, tmp_path: Path):
        server = server_that(STOPS.format(code=0), tmp_path)
        with pytest.raises(
            ServerProcessError, match=r"without having said where it listens for \['grpc', 'http'\]"
        ):
            server.__enter__()
        assert not is_running(server.pid)

    def test_refuses_one_that_does_not_serve_every_model(self, tmp_path: Path):
        server = server_that(LISTENING + "print('ready, except fraud')\nsignal.pause()\n", tmp_path)
        with pytest.raises(ServerProcessError, match="says 'ready, except fraud'"):
            server.__enter__()
        assert not is_running(server.pid)

    def test_requires_exit_code_0(self, tmp_path: Path):
        server = server_that(LISTENING + STOPS.format(code=3), tmp_path)
        with pytest.raises(ServerProcessError, match="code 3 after SIGTERM"), server:
            pass

    def test_kills_one_that_does_not_stop(self, tmp_path: Path):
        ignores = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready')\nsignal.pause()\n"
        server = server_that(LISTENING + ignores, tmp_path, stop_s=0.01)
        with pytest.raises(ServerProcessError, match=r"didn't end within 0\.01 s"), server:
            pass
        assert not is_running(server.pid)

    def test_says_when_it_died_inside_the_block(self, tmp_path: Path):
        dies = "print('ready')\nsys.exit('out of memory')\n"
        server = server_that(LISTENING + dies, tmp_path)
        server.__enter__()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ServerProcessError, match=r"died with code 1(?s:.*)out of memory"):
            server.__exit__(None, None, None)

    def test_an_error_in_the_block_comes_first_and_the_server_still_stops(self, tmp_path: Path):
        server = server_that(LISTENING + STOPS.format(code=3), tmp_path)
        with pytest.raises(KeyError, match="mine"), server:
            raise KeyError("mine")
        assert not is_running(server.pid)


def test_error_in_a_process_of_its_own_comes_back_with_its_message():
    with pytest.raises(OwnProcessError, match="sleep: TypeError"):
        in_own_process(asyncio.sleep, ("soon",), on_progress=lambda done: None)


def test_process_that_hangs_is_given_up_and_ended(monkeypatch):
    monkeypatch.setattr("demo.process.STALLED_AFTER_S", 0.01)
    with pytest.raises(OwnProcessError, match="no progress for"):
        in_own_process(asyncio.sleep, (3600,), on_progress=lambda done: None)
    assert not multiprocessing.active_children()
