"""``tensorferry top``: what it draws of a frame, at any size, and what it says when there is none."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tensorferry.cli import main
from tensorferry.commands.top_feed import Refused, Watch, events_of, first_frame, parse_address
from tensorferry.commands.top_text import amount, bar, by_time, clean, duration, row_ranges, size, sparkline
from tensorferry.commands.top_view import picture
from tensorferry.commands.top_words import BAD, WARN, problems
from tensorferry.errors import ConfigurationError

BOUNDS = [1, 2, 4, 8]
NUMBERS = ("requests_per_s", "p50_ms", "p99_ms", "objective_ms", "waiting", "share", "busy")


def model(name="ranker", version="7", **changes):
    known = {
        "model": name,
        "version": version,
        "ready": True,
        "labels": ["stable"],
        "share": 0.9,
        "requests_per_s": 1234.0,
        "rows_per_s": 2468.0,
        "batches_per_s": 617.0,
        "p50_ms": 1.5,
        "p99_ms": 4.25,
        "objective_ms": 8.0,
        "queue_p99_ms": 1.0,
        "hold_p50_ms": 0.2,
        "run_p50_ms": 0.9,
        "waiting": 3,
        "streams": 2,
        "busy": 0.42,
        "inline": False,
        "batch_rows": {"bounds": BOUNDS, "counts": [0, 1, 3, 0, 0]},
        "departures": {"full": 100.0, "idle": 517.0},
        "refusals": {},
        "failures": {},
        "late_per_s": 0.0,
    }
    return {**known, **changes}


def unknown(name="new", version="1"):
    """A version of which no number is known yet."""
    named = {"model": name, "version": version, "labels": [], "ready": True}
    return {**dict.fromkeys(model()), **named, "departures": {}, "refusals": {}, "failures": {}}


def frame(*models, at=1000.0, **server):
    known = {
        "version": "1.2.3",
        "transport": "http2",
        "processes": 2,
        "ready": True,
        "connections": 12,
        "calls": 34,
        "in_flight_bytes": 1024,
        "unsent_bytes": 0,
        "loop_lag_p99_ms": 0.5,
        "cpu_cores": 1.5,
        "rss_bytes": 512 * 2**20,
    }
    total = {
        "requests_per_s": 1234.0,
        "rows_per_s": 2468.0,
        "failures_per_s": 0.0,
        "refused_per_s": 0.0,
        "late_per_s": 0.0,
    }
    return {
        "at": at,
        "interval_s": 1.0,
        "server": {**known, **server},
        "total": total,
        "models": list(models) or [model()],
    }


def drawn(*frames, width=80, height=24, wanted="", has_blocks=True, trouble="", terminal=False) -> str:
    watch = Watch("host:8002")
    watch.restart(frames)
    if trouble:
        watch.lose(trouble)
    file = io.StringIO()
    console = Console(
        file=file, width=width, height=height or 100, force_terminal=terminal, highlight=False, markup=False
    )
    console.print(picture(watch, wanted, width, height, has_blocks))
    return file.getvalue()


def gpu(device="cuda:0", **changes):
    known = {
        "uuid": "GPU-1",
        "device": device,
        "name": "NVIDIA H200",
        "utilization": 0.91,
        "memory_used_bytes": 60 * 2**30,
        "memory_total_bytes": 140 * 2**30,
        "power_w": 512.0,
        "power_limit_w": 700.0,
        "temperature_c": 64,
        "throttled": [],
    }
    return {**known, **changes}


def on_gpu(**changes):
    """How a model fills its device."""
    known = {
        "names": ["cuda:0"],
        "run": 0.83,
        "copy_in": 0.41,
        "copy_out": 0.04,
        "graphs": 0.97,
        "padded_rows": 0.03,
        "row_limit": 0,
        "out_of_memory_per_s": 0,
        "memory_bytes": 3 * 2**30,
    }
    return {**known, **changes}


class TestGpus:
    def test_a_line_tells_how_each_is(self):
        text = drawn({**frame(), "gpus": [gpu(), gpu("cuda:1", utilization=0.5)]}, width=120, height=40)
        lines = [line for line in text.splitlines() if line.startswith("cuda:")]
        assert lines == [
            f"{device}  busy {busy}  memory 60.0 GiB of 140.0 GiB  512 of 700 W  64 °C  NVIDIA H200"
            for device, busy in (("cuda:0", "91%"), ("cuda:1", "50%"))
        ]

    def test_what_one_does_not_tell_is_left_out(self):
        part = gpu(utilization=None, power_w=None, power_limit_w=None, temperature_c=None)
        text = drawn({**frame(), "gpus": [part]}, width=120)
        assert "cuda:0  busy -  memory 60.0 GiB of 140.0 GiB  NVIDIA H200" in text

    def test_without_any_there_is_no_line(self):
        with_none, before = drawn({**frame(), "gpus": []}), drawn(frame())
        assert with_none == before
        assert "cuda" not in before

    def test_many_leave_room_for_the_models(self):
        text = drawn({**frame(), "gpus": [gpu(f"cuda:{number}") for number in range(8)]}, height=24)
        assert "and 7 GPUs more" in text
        assert "\nranker" in text

    def test_a_power_limit_is_no_fault_and_heat_is(self):
        text = drawn({**frame(), "gpus": [gpu(throttled=["power_cap"])]}, width=120)
        assert "at its limit" in text
        assert "slowed" not in text
        assert problems({**frame(), "gpus": [gpu(throttled=["power_cap"])]}) == []
        hot = {**frame(), "gpus": [gpu(throttled=["power_cap", "thermal"])]}
        assert "slowed by thermal" in drawn(hot, width=120)
        assert problems(hot) == [(WARN, "cuda:0 runs slower than it could: thermal")]

    def test_the_model_in_full_says_how_it_fills_its_own(self):
        text = drawn(frame(model(device=on_gpu())), width=120)
        assert (
            "on cuda:0:  runs 83%  copies in 41%, out 4%  CUDA graphs 97%  padding 3% of rows  holds 3.0 GiB"
            in text
        )
        assert "CUDA" not in drawn(frame(model(device=None)), width=120)

    def test_a_device_that_ran_nothing_yet_is_told(self):
        idle = on_gpu(run=0.0, copy_in=0.0, copy_out=0.0, graphs=None, padded_rows=None)
        text = drawn(frame(model(device=idle)), width=120)
        assert "on cuda:0:  runs 0%  copies in 0%, out 0%  CUDA graphs -  holds 3.0 GiB" in text

    def test_batches_that_no_longer_fit_are_a_problem(self):
        found = problems(frame(model(device=on_gpu(row_limit=48))))
        assert [weight for weight, _ in found] == [WARN]
        assert "more than 48 rows" in found[0][1]


class TestPicture:
    def test_it_says_of_the_server_and_of_its_models_what_matters(self):
        text = drawn(frame(), width=140)
        for part in ("1.2.3", "host:8002", "ready", "2 processes", "12 connections", "512 MiB"):
            assert part in text
        line = next(line for line in text.splitlines() if line.startswith("ranker "))
        assert line.split() == [
            *("ranker", "7", "1,234", "1.50", "4.25", "8.00", "4", "3", "42%", "0", "0", "90%", "stable")
        ]

    def test_rows_and_departures_of_the_chosen_model_are_drawn(self):
        text = drawn(frame(), width=120)
        assert "3-4" in text
        assert "75%" in text
        assert "idle" in text

    @pytest.mark.parametrize(
        ("width", "height"), [(80, 24), (140, 40), (40, 10), (20, 3), (1, 1), (300, 100)]
    )
    def test_it_fits_the_terminal(self, width, height):
        models = [
            model(f"model-with-a-long-name-{number}", refusals={"deadline": 1.0}) for number in range(30)
        ]
        lines = drawn(frame(*models), width=width, height=height, trouble="gone").splitlines()
        assert len(lines) <= height
        assert all(len(line) <= width for line in lines)

    def test_at_80_columns_name_rate_latency_and_trouble_stay(self):
        text = drawn(frame(model("a-model-of-some-length"), model("b" * 60)))
        head = next(line for line in text.splitlines() if line.startswith("MODEL"))
        for title in ("VER", "REQ/S", "P99 ms", "BUSY", "REF/S", "FAIL/S"):
            assert title in head
        assert "LABELS" not in head

    def test_the_busiest_model_comes_first_and_is_shown_in_full(self):
        text = drawn(frame(model("quiet", requests_per_s=1.0), model("busy", version="2")))
        assert text.index("\nbusy") < text.index("\nquiet")
        assert "\nbusy/2  2 streams" in text

    @pytest.mark.parametrize("wanted", ["quiet", "quiet/7"])
    def test_another_can_be_chosen(self, wanted):
        text = drawn(frame(model("quiet", requests_per_s=1.0), model("busy")), wanted=wanted)
        assert "\nquiet/7  2 streams" in text

    def test_a_model_that_isnt_there_is_named(self):
        assert "no model quiet is served" in drawn(frame(), wanted="quiet")

    def test_models_that_dont_fit_are_counted(self):
        text = drawn(frame(*[model(f"m{number:02}", requests_per_s=1.0) for number in range(40)]))
        assert "more, " in text

    def test_all_models_are_there_where_the_height_doesnt_matter(self):
        text = drawn(frame(*[model(f"m{number:02}") for number in range(40)]), height=None)
        assert all(f"\nm{number:02} " in text for number in range(40))

    def test_numbers_that_arent_known_are_dashes(self):
        text = drawn(frame(unknown()), width=140)
        assert next(line for line in text.splitlines() if line.startswith("new ")).split().count("-") >= 5
        assert "None" not in text

    def test_a_server_of_which_nothing_is_known_is_drawn(self):
        empty = frame(unknown())
        for part in ("server", "total"):
            empty[part] = dict.fromkeys(empty[part])
        assert "NOT READY" in drawn(empty)

    def test_a_server_without_models_says_so(self):
        empty = frame()
        empty["models"] = []
        assert "no models are served" in drawn(empty)

    @pytest.mark.parametrize("name", ["[red]x[/red]", "x\x1b[31my", "x\ny", "a\u202eb"])
    def test_names_are_text_and_nothing_else(self, name):
        text = drawn(frame(model(name, labels=[name], refusals={name: 1.0})), width=200, terminal=False)
        assert clean(name) in text
        assert "\x1b" not in text
        assert "\u202e" not in text

    def test_without_unicode_it_is_ascii(self):
        text = drawn(frame(at=999.0), frame(), has_blocks=False)
        assert text.isascii()

    def test_p99_is_coloured_by_the_objective(self):
        for p99_ms, code in ((9.0, "1;31m"), (7.0, "33m"), (2.0, "32m")):
            assert f"{code}{p99_ms:.2f}" in drawn(frame(model(p99_ms=p99_ms)), terminal=True)

    def test_a_server_that_went_away_keeps_its_last_picture_and_says_why(self):
        text = drawn(frame(), trouble="Connection refused")
        assert "stale: no word for 0 s. Connection refused" in text
        assert "ranker" in text

    def test_before_the_first_frame_it_says_where_it_looks(self):
        text = drawn(trouble="http://host:8002/live/events: Connection refused; is the server running")
        assert "waiting for host:8002" in text
        assert "is the server running" in text

    @settings(max_examples=60, deadline=None)
    @given(
        width=st.integers(1, 160),
        height=st.integers(1, 60),
        count=st.integers(0, 12),
        data=st.data(),
    )
    def test_whatever_the_numbers_it_fits(self, width, height, count, data):
        numbers = st.none() | st.floats(0, 1e12)
        models = []
        for number in range(count):
            changes = data.draw(
                st.fixed_dictionaries(
                    dict.fromkeys(
                        ("requests_per_s", "p50_ms", "p99_ms", "objective_ms", "waiting", "share", "busy"),
                        numbers,
                    )
                )
            )
            models.append(model(data.draw(st.text(max_size=30)), str(number), **changes))
        made = frame(model(), *models)
        lines = drawn(made, made, width=width, height=height).split("\n")[:-1]
        assert len(lines) <= height


class TestProblems:
    def words(self, *models, **server):
        return problems(frame(*models, **server))

    def test_a_well_server_has_none(self):
        assert self.words() == []

    def test_refusals_say_how_many_and_why(self):
        ((weight, words),) = self.words(
            model(requests_per_s=90.0, refusals={"deadline": 8.0, "max_queue_size": 2.0})
        )
        assert weight == BAD
        assert words == "ranker/7: 10/s refused, 10% of all (deadline, max_queue_size)"

    def test_failures_leave_out_what_callers_gave_up_and_what_was_refused(self):
        failures = {"REJECTED": 5.0, "CANCELED": 3.0}
        assert self.words(model(failures=failures)) == []
        ((weight, words),) = self.words(model(failures={**failures, "BACKEND": 0.5}))
        assert (weight, words) == (BAD, "ranker/7: 0.50/s fail (BACKEND)")

    def test_the_worst_come_first(self):
        found = self.words(model("a", p99_ms=9.0), model("b", failures={"OTHER": 1.0}), loop_lag_p99_ms=50.0)
        assert [weight for weight, _ in found] == [BAD, WARN, WARN]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"p99_ms": 9.0}, "p99 of 9.00 ms is over its objective of 8.00 ms"),
            ({"p99_ms": 2500.0}, "p99 of 2.5s is over its objective of 8.00 ms"),
            ({"busy": 1.02, "waiting": 7}, "its streams run 100% of the time, and 7 requests wait"),
            ({"ready": False}, "isn't ready"),
        ],
    )
    def test_a_model_under_strain_is_named(self, changes, said):
        ((weight, words),) = self.words(model(**changes))
        assert weight == WARN
        assert words.startswith("ranker/7")
        assert said in words

    def test_a_server_that_isnt_ready_says_why(self):
        found = self.words(ready=False, not_ready={"x": "out of memory"})
        assert found == [(BAD, "x isn't ready: out of memory")]
        assert self.words(ready=False, not_ready=None) == [(BAD, "the server isn't ready")]


class TestText:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            *((None, "-"), (0, "0"), (0.42, "0.42"), (3.2, "3.2"), (9.97, "10"), (1234, "1,234")),
            *((99_949, "99,949"), (123_456, "123k"), (2.5e6, "2.5M")),
        ],
    )
    def test_amounts(self, value, text):
        assert amount(value) == text

    @pytest.mark.parametrize(
        ("ms", "text"),
        [(None, "-"), (0.123, "0.12"), (9.999, "10.0"), (99.97, "100"), (1234.5, "1.23s"), (123_456, "123s")],
    )
    def test_durations(self, ms, text):
        assert duration(ms) == text

    def test_sizes(self):
        assert [size(each) for each in (None, 12, 2048, 3 * 2**30)] == ["-", "12 B", "2.0 KiB", "3.0 GiB"]

    def test_a_sparkline_shows_the_greatest_in_full_and_the_unknown_as_a_gap(self):
        assert sparkline([0.0, None, 4.0, 8.0], True) == ["▁ ▄█"]
        assert sparkline([0.0, 0.0], True) == ["▁▁"]
        assert sparkline([], True) == [""]

    def test_a_tall_one_has_its_lines_on_top_of_each_other(self):
        assert sparkline([1.0, 4.0, 2.0], True, 2) == [" █ ", "▄██"]

    def test_cells_hold_the_greatest_of_their_time(self):
        points = [(float(at), 1.0, float(at)) for at in range(1, 11)]
        assert by_time(points, 5, 10.0) == [2.0, 4.0, 6.0, 8.0, 10.0]
        assert by_time(points[-2:], 5, 10.0) == [None, None, None, None, 10.0]

    def test_a_frame_of_several_seconds_fills_its_cells(self):
        assert by_time([(5.0, 5.0, 1.0), (10.0, 5.0, 2.0)], 10, 10.0) == [1.0] * 5 + [2.0] * 5

    def test_a_gap_stays_one(self):
        assert by_time([(1.0, 1.0, 5.0), (4.0, 1.0, 7.0)], 4, 4.0) == [5.0, None, None, 7.0]

    def test_something_is_never_no_bar(self):
        assert bar(0.0, 10, True) == ""
        assert bar(0.0001, 10, True) == "▏"
        assert bar(0.5, 10, True) == "█████"
        assert bar(0.0001, 10, False) == "#"

    def test_rows_have_ranges_from_the_first_used_to_the_last(self):
        assert row_ranges(BOUNDS, [0, 2, 0, 1, 0]) == [("2", 2), ("3-4", 0), ("5-8", 1)]
        assert row_ranges(BOUNDS, [0, 0, 0, 0, 3]) == [(">8", 3)]
        assert row_ranges(BOUNDS, [0] * 5) == []


class TestFeed:
    def test_events_are_parsed_by_lines(self):
        lines = [
            b"event: history\n",
            b"data: [1,\n",
            b"data: 2]\n",
            b"\n",
            b": nothing\n",
            b"\n",
            b"data:3\r\n",
            b"\n",
        ]
        assert list(events_of(iter(lines))) == [("history", "[1,\n2]"), ("message", "3")]

    def test_an_event_that_isnt_whole_is_none(self):
        assert list(events_of(iter([b"data: 1\n"]))) == []

    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("host", ("host", 8002)),
            ("host:9", ("host", 9)),
            ("http://host:9/", ("host", 9)),
            ("[::1]:9", ("::1", 9)),
        ],
    )
    def test_addresses(self, text, address):
        assert parse_address(text) == address

    @pytest.mark.parametrize("text", ["", ":80", "host:port", "https://host", "host:99999", "host/x"])
    def test_what_is_no_address_is_said_to_be_none(self, text):
        with pytest.raises(ConfigurationError, match="HOST:PORT"):
            parse_address(text)

    def test_a_watch_keeps_five_minutes(self):
        watch = Watch("host:1")
        for number in range(400):
            watch.add(frame(at=float(number)))
        assert [watch.frames[0]["at"], len(watch.frames)] == [100.0, 300]

    def test_word_from_the_server_ends_the_trouble(self):
        watch = Watch("host:1")
        watch.lose("gone")
        watch.add(frame())
        assert watch.trouble == ""


class TestCommand:
    def test_a_server_that_isnt_there_is_said_to_be_away(self, capsys, unused_port):
        assert main(["top", "--once", "--http", f"127.0.0.1:{unused_port}"]) == 1
        said = capsys.readouterr().err
        assert f"http://127.0.0.1:{unused_port}/live/events" in said
        assert "--http" in said

    def test_without_a_terminal_it_asks_for_once_or_json(self, capsys, unused_port):
        assert main(["top", "--http", f"127.0.0.1:{unused_port}"]) == 2
        assert "--once" in capsys.readouterr().err

    def test_without_rich_it_says_what_to_install(self, capsys, monkeypatch, unused_port):
        monkeypatch.setitem(__import__("sys").modules, "rich", None)
        assert main(["top", "--http", f"127.0.0.1:{unused_port}"]) == 2
        assert "pip install 'tensorferry[tools]'" in capsys.readouterr().err


def served(body: bytes, status: str = "200 OK"):
    """Answer one connection with an HTTP response; return the port."""
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + body)

    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()[1]


class TestFirstFrame:
    def test_it_is_the_next_after_the_history(self):
        old, new = frame(at=1.0), frame(at=2.0)
        body = f"event: history\ndata: {json.dumps([old])}\n\ndata: {json.dumps(new)}\n\n".encode()
        assert first_frame("127.0.0.1", served(body)) == [old, new]

    def test_a_server_without_the_page_is_told_from_one_that_is_away(self):
        with pytest.raises(Refused, match=r"404 .*monitoring"):
            first_frame("127.0.0.1", served(b"404: Not Found", "404 Not Found"))

    def test_too_many_viewers_say_so(self):
        with pytest.raises(Refused, match=r"503 Busy \(100 viewers"):
            first_frame("127.0.0.1", served(b"100 viewers watch\n", "503 Busy"))

    @pytest.mark.parametrize(
        "body", [b"data: {\n\n", b"data: [1]\n\ndata: 3\n\n", b"event: history\ndata: 3\n\n"]
    )
    def test_what_isnt_a_frame_is_refused(self, body):
        with pytest.raises(Refused, match=r"isn't a frame|closed"):
            first_frame("127.0.0.1", served(body))

    def test_a_server_that_stops_is_said_to_have(self):
        with pytest.raises(Refused, match="closed the connection"):
            first_frame("127.0.0.1", served(b": nothing\n\n"))


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
