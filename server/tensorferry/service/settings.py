"""The RPCs that change settings while the server runs: Triton's LogSettings and TraceSetting.

They take effect in every process of the server, and in those that start later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import grpc

from tensorferry.errors import InvalidRequest
from tensorferry.service.methods import MethodTable
from tensorferry.service.status import guarded
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["SettingsService"]

_SERVICE: Final = "inference.GRPCInferenceService"

_MOST_SETTINGS: Final = 64
_LONGEST_VALUE: Final = 1024


class _Adjusts(Protocol):
    """What is needed of ``Control``."""

    async def adjust(self, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings in every process."""
        ...


class _Knows(Protocol):
    """What is needed of ``Engine``."""

    def entry(self, name: str) -> object:
        """Return a model's entry, or raise NotFound."""
        ...


class SettingsService:
    """The handlers. Holds no state but the way to the settings, and who knows the models."""

    def __init__(self, control: _Adjusts, engine: _Knows) -> None:
        self._control = control
        self._engine = engine

    def methods(self) -> MethodTable:
        """Return the method table: two methods of the inference service."""
        return {
            f"/{_SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(getattr(self, name))
            for name in ("LogSettings", "TraceSetting")
        }

    async def _log_settings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        _check_size(request.settings)
        change = {name: _log_value(name, value) for name, value in request.settings.items()}
        response = pb.LogSettingsResponse()
        for name, value in (await self._control.adjust("log", "", change)).items():
            own = response.settings[name]
            if isinstance(value, bool):
                own.bool_param = value
            elif isinstance(value, int):
                own.uint32_param = value
            else:
                own.string_param = str(value)
        return response

    async def _trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        if request.model_name:
            self._engine.entry(request.model_name)
        _check_size(request.settings)
        change = {}
        for name, value in request.settings.items():
            change[name] = list(value.value)
            if sum(map(len, change[name])) > _LONGEST_VALUE:
                raise InvalidRequest(f"the value of trace setting {name[:64]!r} is too long")
        response = pb.TraceSettingResponse()
        settings = await self._control.adjust("trace", request.model_name, change)
        for name, values in settings.items():
            response.settings[name].value.extend(values)
        return response

    LogSettings = guarded(_log_settings, pb.LogSettingsRequest)
    TraceSetting = guarded(_trace_setting, pb.TraceSettingRequest)


def _check_size(settings: Mapping[str, object]) -> None:
    if len(settings) > _MOST_SETTINGS:
        raise InvalidRequest(f"{len(settings)} settings at once; there aren't so many")


def _log_value(name: str, value: pb.LogSettingsRequest.SettingValue) -> bool | int | str:
    kind = value.WhichOneof("parameter_choice")
    if kind == "bool_param":
        return value.bool_param
    if kind == "uint32_param":
        return value.uint32_param
    if kind != "string_param":
        raise InvalidRequest(f"log setting {name[:64]!r} has no value; leave it out, or give it one")
    if len(value.string_param) > _LONGEST_VALUE:
        raise InvalidRequest(f"the value of log setting {name[:64]!r} is too long")
    return value.string_param
