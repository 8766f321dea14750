"""The RPCs that look at the repository and change what is served: Triton's, and ModelRollout's."""

from __future__ import annotations

from typing import Any, Final

import grpc

from tensorferry.control.access import Control
from tensorferry.errors import InvalidRequest
from tensorferry.service.methods import MethodTable
from tensorferry.service.status import guarded, status_of
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import rollout_pb2

__all__ = ["ROLLOUT_SERVICE", "RepositoryService"]

_SERVICE: Final = "inference.GRPCInferenceService"
ROLLOUT_SERVICE: Final = "tensorferry.ModelRollout"

#: What a file's parameter starts with in RepositoryModelLoad; the rest is its path in the model's directory.
_FILE: Final = "file:"


class RepositoryService:
    """The handlers. Holds no state but the way to the coordinator."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def methods(self) -> MethodTable:
        """Return the method table: three methods of the inference service, and the rollout service."""
        table: MethodTable = {
            f"/{_SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(getattr(self, name))
            for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
        }
        for method in rollout_pb2.DESCRIPTOR.services_by_name["ModelRollout"].methods:
            table[f"/{ROLLOUT_SERVICE}/{method.name}"] = self._rollout_handler(method.name)
        return table

    async def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for name, lines in (await self._control.index()).items():
            if not lines and not request.ready:
                response.models.add(name=name, state="UNAVAILABLE", reason="not loaded")
            for line in lines:
                if line.state == "READY" or not request.ready:
                    version = str(line.version) if line.version else ""
                    response.models.add(name=name, version=version, state=line.state, reason=line.reason)
        return response

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        config: str | None = None
        files: dict[str, bytes] = {}
        for name, value in request.parameters.items():
            kind = value.WhichOneof("parameter_choice")
            if name == "config" and kind == "string_param":
                config = value.string_param
            elif name.startswith(_FILE) and kind == "bytes_param":
                files[name.removeprefix(_FILE)] = value.bytes_param
            else:
                what = "known are 'config' (text) and 'file:<path>' (bytes)"
                raise InvalidRequest(f"parameter {name!r} ({kind}) is not one of a load request; {what}")
        await self._control.load(request.model_name, config, files)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        dependents = False
        for name, value in request.parameters.items():
            if name != "unload_dependents" or value.WhichOneof("parameter_choice") != "bool_param":
                known = "known is 'unload_dependents' (bool)"
                raise InvalidRequest(f"parameter {name!r} is not one of an unload request; {known}")
            dependents = value.bool_param
        await self._control.unload(request.model_name, dependents)
        return pb.RepositoryModelUnloadResponse()

    def _rollout_handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        async def handler(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                answer = await self._control.rollout(method, body)
            except Exception as error:
                await context.abort(*status_of(error))
            return answer

        return grpc.unary_unary_rpc_method_handler(handler)

    RepositoryIndex = guarded(_index, pb.RepositoryIndexRequest)
    RepositoryModelLoad = guarded(_load, pb.RepositoryModelLoadRequest)
    RepositoryModelUnload = guarded(_unload, pb.RepositoryModelUnloadRequest)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest("this server has one repository; leave repository_name empty")
