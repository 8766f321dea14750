"""LogSettings and TraceSetting, from message to settings and back."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tensorferry.errors import NotFound
from tensorferry.logs.levels import Levels, LogSettings
from tensorferry.service.settings import SettingsService
from tensorferry.tracing.settings import Untraced
from tensorferry.wire import open_inference_pb2 as pb


class OneProcess:
    """Stands in for ``Control``: settings that are in this process."""

    def __init__(self) -> None:
        self.levels = Levels()
        self.asked = []
        self._groups = {"log": LogSettings(self.levels), "trace": Untraced()}

    async def adjust(self, group, scope, change):
        self.asked.append((group, scope, dict(change)))
        if change:
            self._groups[group].apply(scope, change)
        return self._groups[group].describe(scope)


class OneModel:
    """Stands in for ``Engine``: knows the model ``m``."""

    def entry(self, name):
        if name != "m":
            raise NotFound(f"no model {name!r}")


class Context:
    async def abort(self, code, details):
        raise AssertionError(code, details)


def call(method, request):
    control = OneProcess()
    service = SettingsService(control, OneModel())
    try:
        body = asyncio.run(getattr(service, method)(request.SerializeToString(), Context()))
    except AssertionError as refusal:
        return control, refusal.args
    return control, {"LogSettings": pb.LogSettingsResponse, "TraceSetting": pb.TraceSettingResponse}[
        method
    ].FromString(body)


def log_request(**settings):
    request = pb.LogSettingsRequest()
    for name, value in settings.items():
        own = request.settings[name]
        if isinstance(value, bool):
            own.bool_param = value
        elif isinstance(value, int):
            own.uint32_param = value
        elif value is not None:
            own.string_param = value
    return request


def test_settings_are_asked_for_by_an_empty_request():
    control, response = call("LogSettings", log_request())
    assert control.asked == [("log", "", {})]
    assert response.settings["log_info"].bool_param is True
    assert response.settings["log_verbose_level"].WhichOneof("parameter_choice") == "uint32_param"
    assert response.settings["log_format"].string_param == "default"
    assert len(response.settings) == 6


def test_a_change_is_carried_out_and_answered_with_what_holds():
    control, response = call("LogSettings", log_request(log_verbose_level=2, log_info=False, log_file=""))
    assert control.levels.debug
    assert not control.levels.info
    assert response.settings["log_verbose_level"].uint32_param == 2
    assert response.settings["log_info"].bool_param is False


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (log_request(log_info=None), "no value"),
        (log_request(log_file="/var/log/x"), "standard error"),
        (log_request(log_format="x" * 5000), "too long"),
        (log_request(**{f"s{number}": True for number in range(100)}), "100 settings"),
        (log_request(loglevel=True), "there are"),
    ],
    ids=["no value", "file", "long", "many", "unknown"],
)
def test_a_log_change_that_does_not_fit_is_the_caller_s_fault(request_, words):
    control, (code, details) = call("LogSettings", request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in details
    assert control.levels.info


def trace_request(model="", **settings):
    request = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        request.settings[name].value.extend(values)
    return request


def test_without_a_collector_traces_are_off_and_stay_off():
    control, response = call("TraceSetting", trace_request("m"))
    assert control.asked == [("trace", "m", {})]
    assert list(response.settings["trace_level"].value) == ["OFF"]
    _, (code, details) = call("TraceSetting", trace_request(trace_level=["TIMESTAMPS"]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "--trace-endpoint" in details


def test_a_setting_without_values_is_passed_on_as_cleared():
    control, response = call("TraceSetting", trace_request(trace_level=[]))
    assert control.asked == [("trace", "", {"trace_level": []})]
    assert list(response.settings["trace_level"].value) == ["OFF"]


def test_trace_settings_of_a_model_that_is_not_there_are_not_found():
    control, (code, details) = call("TraceSetting", trace_request("other", trace_level=["OFF"]))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "'other'" in details
    assert control.asked == []


def test_a_value_that_is_too_long_is_refused():
    _, (code, details) = call("TraceSetting", trace_request(trace_rate=["1" * 5000]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "too long" in details


def test_the_method_table_has_both_methods():
    assert sorted(SettingsService(OneProcess(), OneModel()).methods()) == [
        "/inference.GRPCInferenceService/LogSettings",
        "/inference.GRPCInferenceService/TraceSetting",
    ]
