"""The RPCs of the shared memory extensions, from message to regions and back."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tensorferry.service.shared_memory import Regions
from tensorferry.service.shared_memory_calls import SharedMemoryService
from tensorferry.wire import open_inference_pb2 as pb


class OneProcess:
    """Stands in for ``Control``: regions that are in this process."""

    def __init__(self, regions) -> None:
        self._regions = regions

    async def adjust(self, group, scope, change):
        assert (group, scope) == ("shared_memory", "")
        if change:
            self._regions.apply(scope, change)
        return self._regions.describe(scope)


class Context:
    async def abort(self, code, details):
        raise AssertionError(code, details)


@pytest.fixture
def service(tmp_path):
    (tmp_path / "object").write_bytes(bytes(100))
    return SharedMemoryService(OneProcess(Regions(True, directory=str(tmp_path))))


def call(service, method, **fields):
    """Return the reply, or the status and the details that the call ended with."""
    request = getattr(pb, f"{method}Request")(**fields)
    try:
        body = asyncio.run(getattr(service, method)(request.SerializeToString(), Context()))
    except AssertionError as refusal:
        return refusal.args
    return getattr(pb, f"{method}Response").FromString(body)


def register(service, name="r", **fields):
    wanted = {"key": "/object", "offset": 10, "byte_size": 20} | fields
    return call(service, "SystemSharedMemoryRegister", name=name, **wanted)


def names(service, **fields):
    return sorted(call(service, "SystemSharedMemoryStatus", **fields).regions)


def test_the_six_methods_are_the_inference_services(service):
    kinds = [
        f"{memory}SharedMemory{verb}" for memory in ("System", "Cuda") for verb in ("Status", "Register")
    ]
    kinds += ["SystemSharedMemoryUnregister", "CudaSharedMemoryUnregister"]
    assert sorted(service.methods()) == sorted(f"/inference.GRPCInferenceService/{kind}" for kind in kinds)


def test_a_registered_region_is_told(service):
    assert register(service) == pb.SystemSharedMemoryRegisterResponse()
    (own,) = call(service, "SystemSharedMemoryStatus").regions.values()
    assert (own.name, own.key, own.offset, own.byte_size) == ("r", "/object", 10, 20)
    assert names(service, name="r") == ["r"]


def test_one_that_is_not_registered_is_not_found(service):
    assert call(service, "SystemSharedMemoryStatus", name="r")[0] is grpc.StatusCode.NOT_FOUND
    assert call(service, "CudaSharedMemoryStatus", name="r")[0] is grpc.StatusCode.NOT_FOUND


def test_a_second_registration_of_a_name_already_exists(service):
    register(service)
    assert register(service)[0] is grpc.StatusCode.ALREADY_EXISTS
    assert register(service, "s") == pb.SystemSharedMemoryRegisterResponse()


def test_regions_are_unregistered_one_by_one_or_all(service):
    for name in ("r", "s", "t"):
        register(service, name)
    call(service, "SystemSharedMemoryUnregister", name="s")
    call(service, "SystemSharedMemoryUnregister", name="nobody")
    assert names(service) == ["r", "t"]
    call(service, "SystemSharedMemoryUnregister")
    assert names(service) == []
    call(service, "SystemSharedMemoryUnregister")


def test_off_lists_nothing_and_refuses_to_register():
    service = SharedMemoryService(OneProcess(Regions(False)))
    assert names(service) == []
    code, details = register(service)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "--shared-memory on" in details
    assert call(service, "SystemSharedMemoryUnregister") == pb.SystemSharedMemoryUnregisterResponse()


def test_cuda_regions_are_refused_with_what_to_use_instead(service):
    code, details = call(service, "CudaSharedMemoryRegister", name="r", raw_handle=bytes(64), byte_size=8)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "SystemSharedMemoryRegister" in details
    assert not call(service, "CudaSharedMemoryStatus").regions
    assert call(service, "CudaSharedMemoryUnregister") == pb.CudaSharedMemoryUnregisterResponse()
