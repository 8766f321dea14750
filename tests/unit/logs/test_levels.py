"""Triton's log settings: what they mean here, and what is refused."""

from __future__ import annotations

import pytest

from tensorferry.errors import InvalidRequest
from tensorferry.logs.levels import LEVELS, Levels, LogSettings


def settings(level="info", form="console"):
    levels = Levels()
    levels.start_at(level)
    levels.form = form
    return levels, LogSettings(levels)


def on(levels):
    return [name for name in LEVELS if getattr(levels, name)]


@pytest.mark.parametrize("level", LEVELS)
def test_a_server_starts_with_its_level_and_those_above(level):
    levels, _ = settings(level)
    assert on(levels) == list(LEVELS[LEVELS.index(level) :])


def test_settings_are_told_by_triton_s_names():
    _, log = settings()
    assert log.describe("") == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert settings("debug", "json")[1].describe("")["log_verbose_level"] == 1
    assert settings("debug", "json")[1].describe("")["log_format"] == "json"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"log_verbose_level": 1}, ["debug", "info", "warning", "error"]),
        ({"log_verbose_level": 4}, ["debug", "info", "warning", "error"]),
        ({"log_info": False}, ["warning", "error"]),
        ({"log_warning": False}, ["info", "error"]),
        ({"log_info": False, "log_warning": False, "log_error": False}, []),
        ({"log_file": ""}, ["info", "warning", "error"]),
    ],
)
def test_each_level_is_switched_by_itself(change, expected):
    levels, log = settings()
    log.apply("", change)
    assert on(levels) == expected
    assert log.describe("") | change == log.describe("")


@pytest.mark.parametrize(
    ("name", "form"),
    [("default", "console"), ("ISO8601", "console"), ("console", "console"), ("json", "json")],
)
def test_forms(name, form):
    levels, log = settings(form="json")
    log.apply("", {"log_format": name})
    assert levels.form == form


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"log_file": "/tmp/log"}, "standard error"),
        ({"log_info": 1}, "log_info"),
        ({"log_info": "true"}, "true or false"),
        ({"log_verbose_level": -1}, "from 0"),
        ({"log_verbose_level": True}, "from 0"),
        ({"log_verbose_level": "2"}, "from 0"),
        ({"log_format": "xml"}, "'json'"),
        ({"log_format": None}, "nothing"),
        ({"log_format": ["json"]}, "log_format"),
        ({"log_level": "debug"}, "'log_verbose_level'"),
        ({"log_info": False, "log_colour": True}, "log_colour"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, words):
    levels, log = settings()
    before = log.describe("")
    with pytest.raises(InvalidRequest, match=words):
        log.apply("", change)
    assert log.describe("") == before
    assert on(levels) == ["info", "warning", "error"]
