"""The open-loop generator without sockets: schedules, the wire, requests, and the report's arithmetic."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hpack import Decoder, Encoder
from hyperframe.frame import Frame
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtests.openloop.plots import draw_directory

from tensorferry.benchmark import arrivals
from tensorferry.benchmark.endings import Ending, Endings, Failure, status_name
from tensorferry.benchmark.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    ProtocolError,
    Request,
    frame,
)
from tensorferry.benchmark.report import Bounds, Latencies, analyse, write_runs
from tensorferry.benchmark.requests import infer_message, random_inputs
from tensorferry.benchmark.traffic import Result, Stream
from tensorferry.wire import open_inference_pb2 as pb

RATES = st.floats(1, 3000)
SECONDS = st.floats(0.01, 2)
SEEDS = st.integers(0, 2**32)
MAKERS = {
    "poisson": lambda rate, seconds, seed: arrivals.poisson(rate, seconds, seed),
    "uniform": lambda rate, seconds, seed: arrivals.uniform(rate, seconds),
    "mmpp": lambda rate, seconds, seed: arrivals.mmpp((rate, 5 * rate), (0.1, 0.02), seconds, seed),
    "steps": lambda rate, seconds, seed: arrivals.steps([(rate, seconds / 2), (2 * rate, seconds / 2)], seed),
}


def dispersion(schedule: arrivals.Schedule, window_s: float, seconds: float) -> float:
    """Variance over mean of the counts in windows: 1 for a Poisson process, more for bursts."""
    counts = np.histogram(schedule, np.arange(0, seconds + window_s / 2, window_s))[0]
    return counts.var() / counts.mean()


class TestArrivals:
    @pytest.mark.parametrize("name", MAKERS)
    @given(rate=RATES, seconds=SECONDS, seed=SEEDS)
    @settings(max_examples=30)
    def test_are_sorted_within_the_run_and_the_same_for_the_same_seed(self, name, rate, seconds, seed):
        schedule = MAKERS[name](rate, seconds, seed)
        assert schedule.dtype == np.float64
        assert (np.diff(schedule) >= 0).all()
        assert ((schedule >= 0) & (schedule < seconds * (1 + 1e-12))).all()
        np.testing.assert_array_equal(schedule, MAKERS[name](rate, seconds, seed))

    @pytest.mark.parametrize("name", ["poisson", "mmpp", "steps"])
    def test_differ_with_the_seed(self, name):
        assert not np.array_equal(MAKERS[name](1000, 1, 1)[:100], MAKERS[name](1000, 1, 2)[:100])

    def test_uniform_is_even(self):
        np.testing.assert_allclose(arrivals.uniform(4, 1), [0, 0.25, 0.5, 0.75])

    @pytest.mark.parametrize("seed", range(3))
    def test_poisson_has_its_rate_and_is_as_bursty_as_chance(self, seed):
        schedule = arrivals.poisson(1000, 100, seed)
        assert abs(len(schedule) - 100_000) < 5 * 100_000**0.5
        assert 0.8 < dispersion(schedule, 0.1, 100) < 1.2

    def test_mmpp_has_the_mean_rate_of_its_states_and_is_burstier_than_chance(self):
        schedule = arrivals.mmpp((500, 5000), (0.4, 0.1), 400, 3)
        assert len(schedule) / 400 == pytest.approx(1400, rel=0.1)
        assert dispersion(schedule, 0.1, 400) > 20

    def test_step_goes_up_and_comes_back(self):
        counts = np.histogram(arrivals.step(100, 2000, 10, 10, 10), [0, 10, 20, 30])[0]
        np.testing.assert_allclose(counts, [1000, 20_000, 1000], rtol=0.15)

    def test_a_rate_of_nothing_is_a_pause(self):
        schedule = arrivals.steps([(1000, 1), (0, 1), (1000, 1)])
        assert not ((schedule >= 1) & (schedule < 2)).any()
        assert (schedule >= 2).any()

    def test_replay_begins_at_once_in_order_and_faster(self):
        np.testing.assert_allclose(arrivals.replay([130.0, 100.0, 110.0], speed=10), [0, 1, 3])
        assert len(arrivals.replay([])) == 0

    def test_timestamps_are_read_from_lines_and_from_columns(self, tmp_path):
        (tmp_path / "lines").write_text("1.5\n\n2\n")
        (tmp_path / "table.csv").write_text("Amount,Time\n9,3\n8,4.5\n")
        assert arrivals.read_timestamps(tmp_path / "lines").tolist() == [1.5, 2]
        assert arrivals.read_timestamps(tmp_path / "table.csv", "Time").tolist() == [3, 4.5]

    def test_what_is_no_timestamp_is_refused_with_its_line(self, tmp_path):
        (tmp_path / "lines").write_text("1\nnoon\n")
        with pytest.raises(ValueError, match=r"lines:2: 'noon'"):
            arrivals.read_timestamps(tmp_path / "lines")
        with pytest.raises(ValueError, match=r"no column 'Time'; it has 1"):
            arrivals.read_timestamps(tmp_path / "lines", "Time")

    @pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
    def test_a_rate_that_makes_no_sense_is_refused(self, rate):
        with pytest.raises(ValueError, match="rate is"):
            arrivals.poisson(rate, 1)


REQUEST = Request.unary("/t/Echo", "bench", b"three", [("grpc-timeout", "1S")])


def answered(stream: int, *trailers: tuple[str, str], table_size: int = 0) -> bytes:
    """A server's answer: headers, a message, and trailers."""
    encoder = Encoder()
    encoder.header_table_size = table_size
    headers = encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
    return (
        frame(HEADERS, END_HEADERS, stream, headers)
        + frame(DATA, 0, stream, b"\0\0\0\0\2ok")
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, encoder.encode(trailers))
    )


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def frames(data: bytes) -> list[Frame]:
    found = []
    while data:
        each, length = Frame.parse_frame_header(memoryview(data)[:9])
        each.parse_body(memoryview(data)[9 : 9 + length])
        found.append(each)
        data = data[9 + length :]
    return found


def sent(connection: Connection) -> list[Frame]:
    """Take what is in the outbox."""
    data = b"".join(connection.outbox)
    connection.outbox.clear()
    return frames(data)


@pytest.fixture
def endings() -> Endings:
    return Endings()


@pytest.fixture
def connection(endings: Endings) -> Connection:
    """A connection whose preface has been sent."""
    made = Connection(endings)
    assert b"".join(made.outbox).startswith(PREFACE)
    made.outbox.clear()
    return made


def begin(connection: Connection, calls: int, request: Request = REQUEST) -> None:
    for call in range(calls):
        connection.begin(request, call)


def words(ended: list[tuple[int, int]], endings: Endings) -> dict[int, tuple[str, str]]:
    """The endings by call, in words."""
    known = endings.decoded()
    return {call: (status_name(known[number].status), known[number].message) for call, number in ended}


class TestRequestsOnTheWire:
    def test_every_request_says_the_same_in_fewer_bytes(self, connection):
        begin(connection, 5)
        found = sent(connection)
        decoder = Decoder()
        headers = found[::2]
        assert all(tuple(decoder.decode(each.data)) == REQUEST.fields for each in headers)
        assert all(each.data == b"\0\0\0\0\5three" and "END_STREAM" in each.flags for each in found[1::2])
        assert [each.stream_id for each in found] == [1, 1, 3, 3, 5, 5, 7, 7, 9, 9]
        assert len(headers[4].data) < len(headers[0].data) / 5

    @given(
        order=st.lists(st.integers(0, 3), min_size=1, max_size=30), table_size=st.sampled_from([0, 100, 4096])
    )
    @settings(max_examples=50)
    def test_kinds_of_requests_can_be_mixed(self, order, table_size):
        kinds = [Request.unary(f"/t/{n}", "bench", bytes([n]), [("x-kind", str(n))]) for n in range(4)]
        connection = Connection(Endings())
        connection.receive(setting(1, table_size))
        connection.outbox.clear()
        for call, kind in enumerate(order):
            connection.begin(kinds[kind], call)
        decoder = Decoder()
        found = sent(connection)
        assert [tuple(decoder.decode(each.data)) for each in found[::2]] == [kinds[n].fields for n in order]
        assert [each.data for each in found[1::2]] == [kinds[n].framed for n in order]

    def test_a_large_message_waits_for_the_windows(self, connection):
        large = Request.unary("/t/Echo", "bench", bytes(range(256)) * 400)
        begin(connection, 1, large)
        data = [each for each in sent(connection) if each.type == DATA]
        assert sum(len(each.data) for each in data) == 65_535
        assert max(len(each.data) for each in data) <= 16_384
        connection.receive(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 10**6)))
        assert sent(connection) == []  # the stream's own window is still closed
        connection.receive(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 10**6)))
        data += sent(connection)
        assert b"".join(each.data for each in data) == large.framed
        assert ["END_STREAM" in each.flags for each in data] == [False] * (len(data) - 1) + [True]

    def test_a_larger_initial_window_opens_those_of_open_streams(self, connection):
        connection.receive(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 10**6)))
        large = Request.unary("/t/Echo", "bench", bytes(100_000))
        begin(connection, 2, large)
        connection.receive(setting(4, 200_000))
        ended = [
            each.stream_id for each in sent(connection) if each.type == DATA and "END_STREAM" in each.flags
        ]
        assert ended == [1, 3]

    def test_the_connection_window_is_shared_and_never_overdrawn(self, connection):
        begin(connection, 20, Request.unary("/t/Echo", "bench", bytes(5000)))
        assert sum(len(each.data) for each in sent(connection) if each.type == DATA) == 65_535

    def test_the_server_limits_how_many_may_be_open(self, connection):
        connection.receive(setting(3, 2))
        assert connection.room == 2
        begin(connection, 2)
        assert connection.room == 0
        connection.receive(answered(1, ("grpc-status", "0")))
        assert connection.room == 1

    def test_an_answer_before_the_end_of_the_request_cancels_the_rest(self, connection, endings):
        begin(connection, 1, Request.unary("/t/Echo", "bench", bytes(100_000)))
        connection.outbox.clear()
        ended = connection.receive(answered(1, ("grpc-status", "8")))
        assert words(ended, endings) == {0: ("RESOURCE_EXHAUSTED", "")}
        assert [each.type for each in sent(connection)] == [RST_STREAM]


class TestAnswers:
    @given(data=st.data())
    @settings(max_examples=50)
    def test_are_read_however_they_are_split(self, data):
        endings = Endings()
        connection = Connection(endings)
        begin(connection, 4)
        stream = (
            setting(3, 100)
            + answered(3, ("grpc-status", "0"))
            + frame(PING, 0, 0, b"pingpong")
            + answered(1, ("grpc-status", "14"), ("grpc-message", "full%20up"))
            + answered(7, ("grpc-status", "0"))
        )
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        ended = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            ended += connection.receive(stream[start:end])
        assert [call for call, _ in ended] == [1, 0, 3]
        assert words(ended, endings) == {1: ("OK", ""), 0: ("UNAVAILABLE", "full up"), 3: ("OK", "")}
        assert connection.open == 1

    def test_the_same_ending_has_the_same_number(self, connection):
        begin(connection, 3)
        ended = connection.receive(b"".join(answered(each, ("grpc-status", "0")) for each in (1, 3, 5)))
        assert len({number for _, number in ended}) == 1

    def test_a_refusal_may_come_without_a_message(self, connection, endings):
        begin(connection, 1)
        block = Encoder().encode([(":status", "200"), ("grpc-status", "8"), ("grpc-message", "no")])
        ended = connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        assert words(ended, endings) == {0: ("RESOURCE_EXHAUSTED", "no")}

    def test_trailers_may_come_in_pieces(self, connection, endings):
        begin(connection, 1)
        block = Encoder().encode([("grpc-status", "5"), ("grpc-message", "nothing here")])
        assert connection.receive(frame(HEADERS, END_STREAM, 1, block[:5])) == []
        ended = connection.receive(frame(CONTINUATION, END_HEADERS, 1, block[5:]))
        assert words(ended, endings) == {0: ("NOT_FOUND", "nothing here")}

    def test_what_isnt_grpc_is_no_answer(self, connection, endings):
        begin(connection, 2)
        ended = connection.receive(frame(DATA, END_STREAM, 1, b"hello"))
        ended += connection.receive(
            frame(HEADERS, END_HEADERS | END_STREAM, 3, Encoder().encode([(":status", "502")]))
        )
        found = words(ended, endings)
        assert found[0] == ("UNKNOWN", "no trailers: the answer ended with a DATA frame")
        assert found[1] == ("UNKNOWN", "no grpc-status; HTTP status 502")

    def test_a_reset_is_a_failure_with_its_reason(self, connection, endings):
        begin(connection, 1)
        ended = connection.receive(frame(RST_STREAM, 0, 1, struct.pack(">I", 7)))
        assert words(ended, endings) == {0: ("RESET", "RST_STREAM REFUSED_STREAM")}

    def test_goaway_loses_what_the_server_wont_serve_and_keeps_the_rest(self, connection, endings):
        begin(connection, 3)
        ended = connection.receive(frame(GOAWAY, 0, 0, struct.pack(">II", 3, 11) + b"too many pings"))
        assert words(ended, endings) == {2: ("LOST", "GOAWAY ENHANCE_YOUR_CALM too many pings")}
        assert (connection.room, connection.open) == (0, 2)
        ended = connection.receive(answered(1, ("grpc-status", "0")))
        assert words(ended, endings) == {0: ("OK", "")}

    def test_a_lost_connection_loses_what_is_open(self, connection, endings):
        begin(connection, 3)
        connection.receive(answered(3, ("grpc-status", "0")))
        assert words(connection.lose("gone"), endings) == {0: ("LOST", "gone"), 2: ("LOST", "gone")}
        assert (connection.open, connection.room) == (0, 0)

    def test_a_second_ending_of_a_call_is_ignored(self, connection):
        begin(connection, 1)
        assert len(connection.receive(answered(1, ("grpc-status", "0")) * 2)) == 1

    def test_pings_and_settings_are_acknowledged(self, connection):
        connection.receive(setting(3, 7) + frame(PING, 0, 0, b"01234567"))
        acknowledged = sent(connection)
        assert [(each.type, "ACK" in each.flags) for each in acknowledged] == [(SETTINGS, True), (PING, True)]
        assert acknowledged[1].opaque_data == b"01234567"
        assert connection.greeted

    def test_trailers_that_need_a_forbidden_table_are_named_as_such(self, connection, endings):
        begin(connection, 1)
        ended = connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xbe"))
        assert "HEADER_TABLE_SIZE" in words(ended, endings)[0][1]

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (answered(9, ("grpc-status", "0")), "stream 9, which was never opened"),
            (frame(CONTINUATION, END_HEADERS, 1), "without HEADERS"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "SETTINGS_MAX_FRAME_SIZE"),
            (frame(RST_STREAM, 0, 1, b"\0"), "shorter"),
        ],
    )
    def test_what_no_server_may_send_is_an_error(self, connection, bad, reason):
        begin(connection, 1)
        with pytest.raises(ProtocolError, match=reason):
            connection.receive(bad)


class TestRequestBodies:
    def test_parameters_are_in_the_message(self):
        array = np.ones((2, 3), np.float32)
        message = infer_message("m", {"x": array}, timeout_us=1500, priority=2)
        request = pb.ModelInferRequest.FromString(message)
        assert request.parameters["timeout"].int64_param == 1500
        assert request.parameters["priority"].uint64_param == 2
        assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("FP32", [2, 3])
        assert request.raw_input_contents[0] == array.tobytes()

    def test_random_inputs_have_the_models_types_and_rows(self):
        metadata = pb.ModelMetadataResponse(name="m")
        metadata.inputs.add(name="a", datatype="FP16", shape=[-1, 4])
        metadata.inputs.add(name="b", datatype="INT64", shape=[-1, -1, 2])
        made = random_inputs(metadata, rows=3)
        assert {name: (each.shape, str(each.dtype)) for name, each in made.items()} == {
            "a": ((3, 4), "float16"),
            "b": ((3, 1, 2), "int64"),
        }

    def test_a_datatype_without_random_values_is_refused(self):
        metadata = pb.ModelMetadataResponse(name="m")
        metadata.inputs.add(name="text", datatype="BYTES", shape=[1])
        with pytest.raises(ValueError, match="'text' of 'm' takes BYTES"):
            random_inputs(metadata, rows=1)

    @pytest.mark.parametrize(("timeout_s", "value"), [(0.25, "250000u"), (3600, "3600S"), (1e-9, "1u")])
    def test_a_deadline_is_sent_as_grpc_timeout(self, timeout_s, value):
        stream = Stream("a", np.zeros(1), [b""], timeout_s=timeout_s)
        assert ("grpc-timeout", value) in stream.requests("bench")[0].fields


OK, REFUSED = Ending(0, ""), Ending(8, "queue full")
UNSENT, UNANSWERED = Ending(Failure.UNSENT, "no room"), Ending(Failure.UNANSWERED, "late")
ENDINGS = (OK, REFUSED, UNSENT, UNANSWERED)


def result(intended_s, done_s, endings=None, *, sent_s=None, stream=None) -> Result:
    """A result of hand-made times; all calls are OK and sent when intended unless said otherwise."""
    intended = np.array(intended_s, dtype=np.float64)
    return Result(
        names=("a", "b"),
        stream=np.array(stream if stream is not None else [0] * len(intended), dtype=np.int16),
        intended_s=intended,
        sent_s=np.array(sent_s if sent_s is not None else intended, dtype=np.float64),
        done_s=np.array(done_s, dtype=np.float64),
        ending=np.array([ENDINGS.index(each) for each in endings or [OK] * len(intended)], dtype=np.int32),
        endings=ENDINGS,
    )


NAN = float("nan")


class TestReport:
    def test_a_server_that_stalls_shows_in_the_percentiles(self):
        # 10 s of a call each ms; the server answers in 1 ms, and not at all between 5 s and 6 s.
        # A closed loop of one caller would see one slow call of 9,001, and a p99 of 1 ms.
        intended = np.arange(10_000) / 1000
        done = np.where((intended >= 5) & (intended < 6), 6.001, intended + 0.001)
        latency = analyse(result(intended, done)).total.latency_of_ok
        assert latency.p50_ms == pytest.approx(1, rel=0.01)
        assert latency.p99_ms == pytest.approx(901, rel=0.01)
        assert latency.max_ms == pytest.approx(1001, rel=0.01)

    def test_a_late_generator_doesnt_shorten_latencies(self):
        report = analyse(result([0.0], [0.030], sent_s=[0.020]))
        assert report.total.latency_of_ok.p50_ms == pytest.approx(30, rel=0.001)
        assert report.total.slip.p50_ms == pytest.approx(20)

    def test_refusals_and_failures_are_kept_apart_from_answers(self):
        endings = [OK, OK, REFUSED, UNANSWERED, UNSENT]
        sent_s = [0, 0.1, 0.2, 0.3, NAN]
        times = result([0, 0.1, 0.2, 0.3, 0.4], [0.005, 0.150, 0.201, NAN, NAN], endings, sent_s=sent_s)
        total = analyse(times, Bounds(objective_ms=10), seconds=0.5).total
        assert (total.offered, total.sent, total.ok, total.ok_in_time) == (5, 4, 2, 1)
        assert (total.refused, total.failed) == (1, 2)
        assert total.by_status == {"OK": 2, "RESOURCE_EXHAUSTED": 1, "UNSENT": 1, "UNANSWERED": 1}
        assert total.by_message["RESOURCE_EXHAUSTED: queue full"] == 1
        assert (total.offered_per_s, total.goodput_per_s) == (10, 2)
        assert total.latency_of_ok.max_ms == pytest.approx(50, rel=0.001)
        assert total.latency_of_refused.max_ms == pytest.approx(1, rel=0.001)

    def test_streams_are_told_apart(self):
        report = analyse(result([0, 1, 2], [0.1, 1.2, 2.2], stream=[0, 1, 1]))
        assert [(each.name, each.offered) for each in report.streams] == [("a", 1), ("b", 2)]
        assert report.streams[1].latency_of_ok.p50_ms == pytest.approx(200, rel=0.001)

    def test_windows_count_by_intended_time(self):
        endings = [OK, OK, REFUSED, OK, UNANSWERED]
        times = result([0.0, 0.05, 0.06, 0.25, 0.29], [0.001, 0.9, 0.061, 0.252, NAN], endings)
        windows = analyse(times, Bounds(objective_ms=10, window_s=0.1), seconds=0.3).windows
        assert windows.start_s == [0, 0.1, 0.2]
        assert (windows.offered, windows.ok, windows.ok_in_time) == ([3, 0, 2], [2, 0, 1], [1, 0, 1])
        assert (windows.refused, windows.failed) == ([1, 0, 0], [0, 0, 1])
        assert windows.p99_ms == [pytest.approx(850), None, pytest.approx(2)]

    @pytest.mark.parametrize(("late", "is_valid"), [(0, True), (1, True), (2, False)])
    def test_a_run_is_valid_if_its_p99_slip_is_within_the_bound(self, late, is_valid):
        intended = np.arange(100) / 100
        sent_s = intended + np.where(np.arange(100) < late, 0.005, 0.0)
        report = analyse(result(intended, intended + 0.01, sent_s=sent_s), Bounds(max_slip_ms=1))
        assert report.is_valid is is_valid
        assert ("NOT VALID" in report.text()) is not is_valid

    def test_calls_that_were_never_sent_make_a_run_invalid(self):
        report = analyse(result([0, 1], [0.1, NAN], [OK, UNSENT], sent_s=[0, NAN]))
        assert report.total.slip.max_ms == float("inf")
        assert "1 were never sent" in report.invalid_because[0]

    def test_an_empty_run_is_not_valid(self):
        report = analyse(result([], []))
        assert "empty" in report.invalid_because[0]
        assert report.total.latency_of_ok.p99_ms is None
        assert report.text()

    def test_the_histogram_comes_back_from_the_file_with_every_call(self, tmp_path):
        intended = np.zeros(1000)
        done = np.linspace(0.001, 1, 1000)
        write_runs(tmp_path / "runs.json", "mine", [analyse(result(intended, done))])
        run = json.loads((tmp_path / "runs.json").read_text())["runs"][0]
        histogram = HdrHistogram.decode(run["total"]["latency_of_ok"]["histogram"])
        assert histogram.get_total_count() == 1000
        assert histogram.get_value_at_percentile(99) == pytest.approx(990_000, rel=0.002)
        assert run["valid"] is True

    def test_what_is_infinite_is_null_in_the_file(self, tmp_path):
        write_runs(tmp_path / "runs.json", "mine", [analyse(result([0], [NAN], [UNSENT], sent_s=[NAN]))])
        run = json.loads((tmp_path / "runs.json").read_text())["runs"][0]
        assert run["total"]["slip"]["p99_ms"] is None

    @given(st.lists(st.floats(1e-6, 3000), min_size=1, max_size=200))
    @settings(max_examples=30)
    def test_percentiles_are_those_of_the_values(self, values):
        found = Latencies.of(np.array(values))
        for point, value in ((50, found.p50_ms), (99, found.p99_ms), (100, found.max_ms)):
            expected = np.percentile(values, point, method="inverted_cdf") * 1000
            assert value == pytest.approx(expected, rel=0.002, abs=0.002)


def test_the_plots_are_drawn_of_every_file(tmp_path):
    fine = analyse(result([0, 0.5], [0.001, 0.6]), seconds=1)
    bad = analyse(result([0, 0.2, 0.5], [NAN] * 3, [UNSENT] * 3, sent_s=[NAN] * 3), seconds=1)
    write_runs(tmp_path / "one.json", "one", [fine, bad])
    write_runs(tmp_path / "two.json", "two", [fine])
    drawn = draw_directory(tmp_path)
    assert {each.name for each in drawn} == {"one-2.png", "one-3.png", "two-2.png", "latency.png"}
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in drawn)
