"""The client's errors are the server's, seen from the other side."""

import grpc
import pytest

import tensorferry_client
from tensorferry import errors as server_errors
from tensorferry.service.status import status_of
from tensorferry_client import ClientError, InvalidRequest, Overloaded, RequestError, ServerError
from tensorferry_client._errors import error_of

SHARED = [
    "Cancelled",
    "DeadlineExceeded",
    "InvalidRequest",
    "NotFound",
    "Overloaded",
    "Unavailable",
    "Unsupported",
]


def problem(code, details="why"):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("name", SHARED)
def test_an_error_of_the_server_arrives_under_the_same_name(name):
    code, details = status_of(getattr(server_errors, name)("why"))
    error = error_of(problem(code, details))
    assert type(error) is getattr(tensorferry_client, name)
    assert str(error) == "why"
    assert error.code is code
    assert type(error).default_code is code


def test_a_failed_model_arrives_as_the_servers_error():
    code, details = status_of(server_errors.ModelFailed("it raised"))
    assert type(error_of(problem(code, details))) is ServerError


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_an_error_that_keeps_it_and_its_cause(code):
    cause = problem(code)
    error = error_of(cause)
    assert isinstance(error, ClientError)
    assert error.code is code
    assert error.__cause__ is cause


def test_only_refusals_that_never_ran_are_retryable():
    retryable = {code for code in grpc.StatusCode if error_of(problem(code)).retryable}
    assert retryable == {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED])
def test_a_caller_that_may_not_is_at_fault(code):
    assert type(error_of(problem(code))) is RequestError


def test_a_message_above_the_limit_is_no_overload():
    details = "CLIENT: Sent message larger than max (100 vs. 10)"
    error = error_of(problem(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
    assert isinstance(error, InvalidRequest)
    assert not isinstance(error, Overloaded)
    assert "max_message_bytes" in str(error)


def test_an_error_without_a_message_shows_its_code():
    assert str(error_of(problem(grpc.StatusCode.UNAVAILABLE, ""))) == "UNAVAILABLE"
