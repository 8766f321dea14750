"""The RPC ModelStatistics: Triton's counts, of all processes of the server together."""

from __future__ import annotations

from tensorferry.control.access import Control
from tensorferry.control.statistics import statistics_of
from tensorferry.engine import Engine
from tensorferry.errors import InvalidRequest
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["answer"]


async def answer(
    engine: Engine, control: Control | None, request: pb.ModelStatisticsRequest
) -> pb.ModelStatisticsResponse:
    """Return the counts of the versions that the request names; without ``control`` those of this process.

    Raises:
        InvalidRequest: it names a version and no model.
        NotFound, ModelNotReady: the model or the version isn't served.
    """
    if request.name:
        engine.entry(request.name)
    if request.version:
        if not request.name:
            raise InvalidRequest("statistics of a version need the model's name too")
        engine.resolve(request.name, request.version)
    if control is None:
        lines = statistics_of(engine, request.name, request.version)
    else:
        lines = list(await control.statistics(request.name, request.version))
    return pb.ModelStatisticsResponse(model_stats=[line.message for line in lines])
