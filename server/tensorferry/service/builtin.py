"""Health and reflection: the ready-made servicers of grpcio, fed from the engine."""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from tensorferry.engine import Engine
from tensorferry.service.inference import SERVICE
from tensorferry.service.methods import MethodTable, ServicerCollector
from tensorferry.wire import model_config_pb2, open_inference_pb2, rollout_pb2

__all__ = ["LIVENESS", "HealthService", "reflection_methods"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


#: The name that is NOT_SERVING once only a new process helps: for probes that restart, while the others
#: are for those that stop sending.
LIVENESS: Final = "liveness"


class HealthService:
    """``grpc.health.v1.Health``: "" and the inference service for the whole server, and each model.

    And ``LIVENESS``, even if a model is called so.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._servicer = health.aio.HealthServicer()
        self._known: set[str] = set()
        self._updating: set[asyncio.Task[None]] = set()
        self._is_over = False

    def methods(self) -> MethodTable:
        """Return the method table of the service (Check and Watch)."""
        collector = ServicerCollector()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, collector)
        return collector.methods

    async def update(self) -> None:
        """Tell the checkers and watchers how things are now; to be called when readiness may have changed."""
        ready = self._engine.is_ready
        for name in ("", SERVICE):
            await self._set(name, ready)
        served = self._engine.served()
        for name in self._known - served.keys():
            await self._set(name, False)
        self._known |= served.keys()
        for name, is_served in served.items():
            await self._set(name, is_served)
        await self._set(LIVENESS, not self._engine.why_dead)

    def follow(self) -> None:
        """Call ``update`` soon; for those who can't wait."""
        task = asyncio.create_task(self.update())
        self._updating.add(task)
        task.add_done_callback(self._updating.discard)

    async def shut_down(self) -> None:
        """Say NOT_SERVING of everything but ``LIVENESS``, for good: who drains isn't to be killed for it."""
        self._is_over = True
        for name in ("", SERVICE, *self._known):
            await self._set(name, False)

    async def _set(self, name: str, serving: bool) -> None:
        if self._is_over and name != LIVENESS:
            serving = False  # an update that was under way
        await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)


def reflection_methods(services: list[str]) -> MethodTable:
    """Return the method table of server reflection over ``services`` and itself.

    The files are put into a pool of their own: those of the inference service aren't in
    protobuf's default pool (see ``wire/_pool.py``).
    """
    pool = descriptor_pool.DescriptorPool()
    for module in (model_config_pb2, open_inference_pb2, rollout_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=pool)
    collector = ServicerCollector()
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, collector)
    return collector.methods
