"""The RPCs of Triton's shared memory extensions: which regions there are, and registering them.

A region is registered in every process of the server, and in those that start later. CUDA shared memory
isn't offered: there are never any regions of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final, Protocol

import grpc

from tensorferry.errors import NotFound, Unsupported
from tensorferry.service.methods import MethodTable
from tensorferry.service.status import guarded
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["GROUP", "SharedMemoryService"]

_SERVICE: Final = "inference.GRPCInferenceService"

#: The regions' name among the groups of settings.
GROUP: Final = "shared_memory"


class _Adjusts(Protocol):
    """What is needed of ``Control``."""

    async def adjust(self, group: str, scope: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings in every process."""
        ...


class SharedMemoryService:
    """The handlers. Holds no state but the way to the regions."""

    def __init__(self, control: _Adjusts) -> None:
        self._control = control

    def methods(self) -> MethodTable:
        """Return the method table: six methods of the inference service."""
        return {
            f"/{_SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(getattr(self, name))
            for name in vars(type(self))
            if name[0].isupper()
        }

    async def _system_status(
        self, request: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        regions = await self._control.adjust(GROUP, "", {})
        if request.name:
            if request.name not in regions:
                raise NotFound(f"no shared memory region {request.name!r} is registered")
            regions = {request.name: regions[request.name]}
        response = pb.SystemSharedMemoryStatusResponse()
        for name, each in regions.items():
            own = response.regions[name]
            own.name, own.key = name, each["object"]
            own.offset, own.byte_size = each["offset"], each["byte_size"]
        return response

    async def _system_register(
        self, request: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        wanted = {"object": request.key, "offset": request.offset, "byte_size": request.byte_size}
        # A process that is told twice of one registration must know it from a second one of that name.
        await self._control.adjust(GROUP, "", {request.name: {**wanted, "ticket": secrets.token_hex(8)}})
        return pb.SystemSharedMemoryRegisterResponse()

    async def _system_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        names = list(await self._control.adjust(GROUP, "", {}))
        gone = {name: None for name in names if request.name in ("", name)}
        if gone:
            await self._control.adjust(GROUP, "", gone)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        if request.name:
            raise NotFound(f"no CUDA shared memory region {request.name!r} is registered")
        return pb.CudaSharedMemoryStatusResponse()

    async def _cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise Unsupported(
            "CUDA shared memory isn't offered here; use system shared memory (SystemSharedMemoryRegister,"
            " with the server's --shared-memory on), or send the data itself"
        )

    async def _cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    SystemSharedMemoryStatus = guarded(_system_status, pb.SystemSharedMemoryStatusRequest)
    SystemSharedMemoryRegister = guarded(_system_register, pb.SystemSharedMemoryRegisterRequest)
    SystemSharedMemoryUnregister = guarded(_system_unregister, pb.SystemSharedMemoryUnregisterRequest)
    CudaSharedMemoryStatus = guarded(_cuda_status, pb.CudaSharedMemoryStatusRequest)
    CudaSharedMemoryRegister = guarded(_cuda_register, pb.CudaSharedMemoryRegisterRequest)
    CudaSharedMemoryUnregister = guarded(_cuda_unregister, pb.CudaSharedMemoryUnregisterRequest)
