from __future__ import annotations

import asyncio

import grpc
import pytest

from tensorferry import errors
from tensorferry.service.status import guarded, parsed, status_of
from tensorferry.wire import open_inference_pb2 as pb

CODES = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.ControlDisabled: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PredictedLate: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfDeviceMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.DeviceLost: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.ModelFailed: grpc.StatusCode.INTERNAL,
}
# These never reach a caller: a configuration is found wrong before there is one.
BEFORE_SERVING = {"ConfigurationError", "ModelConfigError", "ModelLoadError", "SettingsError"}


def test_every_error_that_reaches_a_caller_has_its_code_here():
    concrete = {name for name in errors.__all__ if name not in ("TensorferryError", "RequestError")}
    assert {kind.__name__ for kind in CODES} == concrete - BEFORE_SERVING


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_error_has_its_code_and_its_own_words(kind):
    assert status_of(kind("what is wrong")) == (CODES[kind], "what is wrong")


@pytest.mark.parametrize(
    "error", [ValueError("secret"), KeyError("secret"), MemoryError(), asyncio.CancelledError()]
)
def test_foreign_error_is_internal_and_its_words_stay_in_the_log(error, capsys):
    code, details = status_of(error)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    reference = details.removeprefix("internal error; error id ").removesuffix(" in the log")
    assert len(reference) == 12
    assert reference in capsys.readouterr().out


@pytest.mark.parametrize("letter", ["x", "é", "漢", "🚢"])
def test_details_fit_a_header_whatever_the_caller_put_into_them(letter):
    _, details = status_of(errors.InvalidRequest(f"input {letter * 5000!r} is unknown"))
    assert details.startswith(f"input '{letter}")
    assert len(details.encode()) <= 1024


def test_details_with_half_a_character_can_be_sent():
    status_of(errors.InvalidRequest("\ud800"))[1].encode()


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff", b"not a message at all"])
def test_bytes_that_are_no_message_are_the_callers_fault(body):
    with pytest.raises(errors.InvalidRequest) as caught:
        parsed(pb.ModelInferRequest, body)
    assert f"{len(body)} bytes" in str(caught.value)
    assert "inference.ModelInferRequest" in str(caught.value)


def test_no_bytes_are_an_empty_message():
    assert parsed(pb.ModelInferRequest, b"") == pb.ModelInferRequest()


class Aborted(Exception):
    pass


class Context:
    async def abort(self, code, details):
        raise Aborted(code, details)


class Servicer:
    async def _ready(self, request):
        if request.name == "missing":
            raise errors.NotFound("no such model")
        if request.name == "broken":
            raise RuntimeError("secret")
        return pb.ModelReadyResponse(ready=request.name == "m")

    Ready = guarded(_ready, pb.ModelReadyRequest)


def call(body: bytes) -> bytes:
    return asyncio.run(Servicer().Ready(body, Context()))


def test_guarded_method_speaks_bytes():
    assert call(pb.ModelReadyRequest(name="m").SerializeToString()) == b"\x08\x01"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (pb.ModelReadyRequest(name="missing").SerializeToString(), grpc.StatusCode.NOT_FOUND),
        (pb.ModelReadyRequest(name="broken").SerializeToString(), grpc.StatusCode.INTERNAL),
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_guarded_method_aborts_with_the_errors_status(body, code):
    with pytest.raises(Aborted) as caught:
        call(body)
    assert caught.value.args[0] is code
    assert "secret" not in caught.value.args[1]
