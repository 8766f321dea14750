"""The way of a line, from the call to the descriptor."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager

import numpy as np
import pytest
from tests.unit.support import PATIENCE_S

from tensorferry.logs.bridge import Bridge
from tensorferry.logs.levels import LogSettings
from tensorferry.logs.logger import Logger, Pipeline, Sink


class Log:
    """A pipeline of its own into a file, and its lines as they are there."""

    def __init__(self, file, lines_per_s) -> None:
        self._file = file
        self.pipeline = Pipeline(file.fileno(), lines_per_s)
        self.pipeline.levels.form = "json"

    def logger(self, *names):
        return Logger(Sink(self.pipeline, *names), self.pipeline.processors, {})

    @property
    def text(self):
        assert self.pipeline.writer.flush(PATIENCE_S)
        self._file.seek(0)
        return self._file.read().decode()

    @property
    def lines(self):
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log").open("w+b") as file:
        yield Log(file, 20.0)


def test_a_line_has_its_logger_level_instant_and_fields(log):
    log.logger("tensorferry.x").bind(model="m").warning("what happened", rows=3)
    (line,) = log.lines
    instant = line.pop("timestamp")
    assert instant.endswith("Z")
    assert line == {
        "event": "what happened",
        "level": "warning",
        "logger": "tensorferry.x",
        "model": "m",
        "rows": 3,
    }


def test_a_level_is_switched_while_loggers_are_in_use(log):
    logger = log.logger("tensorferry.x")
    settings = LogSettings(log.pipeline.levels)
    logger.debug("not yet")
    settings.apply("", {"log_verbose_level": 1})
    logger.debug("now")
    settings.apply("", {"log_verbose_level": 0, "log_info": False})
    logger.debug("no more")
    logger.info("not this one")
    logger.error("this one")
    assert [line["event"] for line in log.lines] == ["now", "this one"]
    assert log.pipeline.dropped == 0, "what isn't wanted isn't missed"


def test_the_form_is_switched_while_loggers_are_in_use(log):
    logger = log.logger("tensorferry.x")
    LogSettings(log.pipeline.levels).apply("", {"log_format": "default"})
    logger.info("readable", rows=3)
    assert "readable" in log.text
    assert "rows=3" in log.text
    assert "{" not in log.text


def test_a_flood_is_cut_and_told_of(log):
    logger = log.logger("tensorferry.x")
    for _ in range(1000):
        logger.info("flood")
    logger.error("another kind")
    events = [line["event"] for line in log.lines]
    assert 100 <= events.count("flood") < 300
    assert "another kind" in events
    assert log.pipeline.dropped == 1000 - events.count("flood")


def test_models_do_not_share_a_limit_and_a_kind_of_its_own_does(log):
    for number in range(150):
        log.logger("tensorferry.engine").error("model not loaded", model=f"m{number}")
        log.logger("tensorferry.calls", "NOT_FOUND").info("call failed", model=f"anything {number}")
    events = [line["event"] for line in log.lines]
    assert events.count("model not loaded") == 150
    assert events.count("call failed") < 150


def test_what_a_model_prints_is_limited_elsewhere(log):
    for _ in range(200):
        log.logger("tensorferry.model_process").info("model printed", line="x", model="m")
    assert len(log.lines) == 200


def test_a_logger_of_a_flooding_kind_says_so_before_anything_is_made(log):
    logger = log.logger("tensorferry.calls", "UNAVAILABLE")
    is_flood = logger.flood_check()
    assert not is_flood()
    for _ in range(100):
        logger.info("call failed")
    assert is_flood()
    assert log.pipeline.dropped == 1


def test_no_line_holds_data(log):
    logger = log.logger("tensorferry.x")
    logger.info("x", array=np.full(3, 77.25), body=b"secret", nested={"token": "abc"})
    try:
        data = np.full(20, 77.25)
        raise ValueError(f"unexpected {data!r}")
    except ValueError:
        logger.exception("failed")
    assert "77.25" not in log.text
    assert "abc" not in log.text
    assert "Traceback" in log.lines[1]["exception"]


class Unprintable:
    """Whose looks raise."""

    @property
    def __class__(self):
        raise RuntimeError("no")


def test_nothing_that_is_logged_raises(log):
    logger = log.logger("tensorferry.x")
    for value in (Unprintable(), {b"\xff": object()}, "\ud800", 10**5000, {1: {2: {3: {4: {5: 6}}}}}):
        logger.info("odd", value=value)
    logger.info("too few %s %s", 1)
    logger.info("arguments %d", 5)
    logger.info(event=object())
    assert "arguments 5" in log.text


def test_lines_that_get_lost_are_counted_and_told_of(tmp_path):
    pipeline = Pipeline(None, 20.0)
    logger = Logger(Sink(pipeline, "x"), pipeline.processors, {})
    logger.error("nobody hears")
    assert pipeline.writer.flush(PATIENCE_S)
    assert pipeline.dropped == 1
    with (tmp_path / "log").open("w+b") as file:
        pipeline.writer._fd = file.fileno()  # standard error is well again
        logger.error("somebody hears")
        assert pipeline.writer.flush(PATIENCE_S)
        pipeline.writer.poke()
        pipeline.writer.write("the end")
        assert pipeline.writer.flush(PATIENCE_S)
        file.seek(0)
        text = file.read().decode()
    assert "log lines lost" in text
    assert "lines=1" in text


@contextmanager
def bridged(log):
    bridge = Bridge(log.pipeline)
    library = logging.getLogger("some.library")
    library.addHandler(bridge)
    library.propagate = False
    yield library
    library.removeHandler(bridge)


def test_lines_of_libraries_go_the_same_way(log):
    with bridged(log) as library:
        library.info("not wanted")
        library.warning("careful: %s", "this")
        for number in range(1000):
            library.error("number %d of b'%s'", number, "x" * 50)
        try:
            raise ValueError("what")
        except ValueError:
            library.exception("failed")
        library.error("too few %s %s", 1)
    lines = log.lines
    assert lines[0]["event"] == "careful: this"
    assert lines[0]["logger"] == "some.library"
    numbers = [line for line in lines if line["event"].startswith("number")]
    assert 100 <= len(numbers) < 300
    assert "xxx" not in log.text
    assert "ValueError: what" in next(line for line in lines if line["event"] == "failed")["exception"]


def test_of_a_flood_of_tracebacks_a_few_are_written_and_the_lines_go_on_without(log):
    logger = log.logger("tensorferry.x")
    for _ in range(20):
        try:
            raise ValueError("it went wrong")
        except ValueError as error:
            logger.error("model raised", exc_info=error)
    lines = [line for line in log.lines if line["event"] == "model raised"]
    assert len(lines) == 20
    whole = [line for line in lines if "Traceback" in line.get("exception", "")]
    assert 1 <= len(whole) < 10
    assert all(line["raised"] == "ValueError" for line in lines if line not in whole)
