"""System shared memory as a client lays it out: a region that holds inputs, known to the server by name."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

__all__ = ["Region"]

_TIMEOUT_S: Final = 10.0
#: Where Linux has what shm_open makes.
_SHM: Final = Path("/dev/shm")


class Region:
    """A POSIX shared memory object with ``arrays``, one after another, registered with a server.

    For the length of a ``with`` block. As ``tritonclient.utils.shared_memory`` makes them; written once
    and read at every call, as perf_analyzer does it.
    """

    def __init__(self, target: str, name: str, arrays: Sequence[NDArray[np.generic]]) -> None:
        self._target = target
        self._name = f"{name}_{os.getpid()}"
        self._arrays = arrays
        self._path = _SHM / self._name

    def __enter__(self) -> Region:
        size = sum(each.nbytes for each in self._arrays)
        with self._path.open("xb+") as file:
            file.truncate(size)
            with mmap.mmap(file.fileno(), size) as memory:
                for each in self._arrays:
                    memory.write(each.tobytes())
        try:
            with grpc.insecure_channel(self._target) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                request = pb.SystemSharedMemoryRegisterRequest(
                    name=self._name, key=f"/{self._name}", offset=0, byte_size=size
                )
                stub.SystemSharedMemoryRegister(request, timeout=_TIMEOUT_S)
        except BaseException:
            self._path.unlink()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with grpc.insecure_channel(self._target) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                request = pb.SystemSharedMemoryUnregisterRequest(name=self._name)
                stub.SystemSharedMemoryUnregister(request, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            if error is None:
                raise
        finally:
            self._path.unlink()

    def messages(self, model: str, tensor: str, datatype: str) -> tuple[bytes, ...]:
        """Return a request for each array: its name, its place and its size, and no data."""
        found, offset = [], 0
        for each in self._arrays:
            request = pb.ModelInferRequest(model_name=model)
            parameters = request.inputs.add(name=tensor, datatype=datatype, shape=each.shape).parameters
            parameters["shared_memory_region"].string_param = self._name
            parameters["shared_memory_byte_size"].int64_param = each.nbytes
            if offset:
                parameters["shared_memory_offset"].int64_param = offset
            offset += each.nbytes
            found.append(request.SerializeToString())
        return tuple(found)
