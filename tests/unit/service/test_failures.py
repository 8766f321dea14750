"""Failed calls: counted by code, one line each, tied by the ids that the caller has."""

from __future__ import annotations

import grpc
import pytest
import structlog

from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    QueueFull,
    Unavailable,
)
from tensorferry.service.failures import Failures
from tensorferry.service.status import error_id_of, status_of


def noted(*errors, request_id="the client's own"):
    with structlog.testing.capture_logs() as lines:
        failures = Failures()
        for error in errors:
            code = status_of(error).code
            assert failures.count(code), "nothing here limits lines"
            failures.tell(code, error, "m", request_id, "trace")
    return failures, lines


def test_failures_are_counted_by_their_code():
    failures, _ = noted(QueueFull("full"), QueueFull("full"), InvalidRequest("bad"), ValueError("odd"))
    assert failures.counts == {"RESOURCE_EXHAUSTED": 2, "INVALID_ARGUMENT": 1, "INTERNAL": 1}


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (InvalidRequest("x"), "info"),
        (QueueFull("x"), "info"),
        (Unavailable("x"), "info"),
        (DeadlineExceeded("x"), "info"),
        (Cancelled("x"), "debug"),
        (ModelFailed("x"), "error"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_our_own_faults_are_errors(error, level):
    _, (line,) = noted(error)
    assert line["log_level"] == level
    assert line["event"] == "call failed"
    assert (line["model"], line["request_id"], line["trace_id"]) == ("m", "the client's own", "trace")
    assert line["reason"] is error
    assert line["code"] == status_of(error).code.name


def test_a_line_is_tied_to_the_traceback_by_the_id_that_the_caller_got():
    error = ValueError("what only the log may say")
    _, (thrown, line) = noted(error)
    assert thrown["error_id"] == line["error_id"] == error_id_of(error)
    assert line["error_id"] in status_of(error).details
    assert thrown["exc_info"] is error
    _, (line,) = noted(ModelFailed("model 'm' raised ValueError; error id 0123456789ab in the log"))
    assert line["error_id"] == "0123456789ab"


def test_an_error_that_many_calls_share_has_one_traceback_and_one_id():
    error = ValueError("of the whole batch")
    _, lines = noted(error, error, error)
    assert [line["event"] for line in lines].count("unexpected error in a call") == 1
    assert len({line["error_id"] for line in lines}) == 1


def test_an_error_that_takes_no_attribute_is_logged_all_the_same():
    class Slotted(Exception):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise AttributeError(name)

    with structlog.testing.capture_logs() as lines:
        assert status_of(Slotted()).code is grpc.StatusCode.INTERNAL
    assert len(lines) == 1
