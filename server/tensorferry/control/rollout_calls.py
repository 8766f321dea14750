"""The calls of the service ModelRollout, answered where the coordinator is: bytes in, bytes out."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from tensorferry.control.coordinator import Coordinator
from tensorferry.control.fleet import Fleet
from tensorferry.errors import InvalidRequest
from tensorferry.rollout import changes, messages
from tensorferry.rollout.report import ArmReport, ShadowReport, arm_report, score_bounds, shadow_report
from tensorferry.rollout.state import Rollout
from tensorferry.wire import rollout_pb2 as pb

__all__ = ["METHODS", "RolloutCalls"]

#: The service's methods, and what they take.
METHODS: Final[dict[str, Any]] = {
    "RolloutStatus": pb.RolloutStatusRequest,
    "ChangeRollout": pb.ChangeRolloutRequest,
    "RolloutReport": pb.RolloutReportRequest,
    "RolloutFeedback": pb.RolloutFeedbackRequest,
}


class RolloutCalls:
    """Answers them. Holds no state but the way to the coordinator and the fleet."""

    def __init__(self, coordinator: Coordinator, fleet: Fleet) -> None:
        self._coordinator = coordinator
        self._fleet = fleet
        self._handlers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "RolloutStatus": self._status,
            "ChangeRollout": self._change,
            "RolloutReport": self._report,
            "RolloutFeedback": self._feedback,
        }

    async def call(self, method: str, body: bytes) -> bytes:
        """Answer the call of ``method`` with a serialised request of its type.

        Raises:
            InvalidRequest: the bytes are no such request.
            TensorferryError: as the coordinator.
        """
        try:
            request = METHODS[method].FromString(body)
        except DecodeError:
            raise InvalidRequest(f"the request's {len(body)} bytes are not one of {method}") from None
        response = await self._handlers[method](request)
        return bytes(response.SerializeToString())

    async def _status(self, request: pb.RolloutStatusRequest) -> pb.RolloutStatusResponse:
        return await self._status_of(request.model_name)

    async def _change(self, request: pb.ChangeRolloutRequest) -> pb.RolloutStatusResponse:
        name = request.model_name
        change = _change_of(request)
        if request.WhichOneof("change") == "rollback":
            await self._coordinator.rollback(name, change)
        else:
            await self._coordinator.change_rollout(name, change)
        return await self._status_of(name)

    async def _status_of(self, name: str) -> pb.RolloutStatusResponse:
        rollout = self._coordinator.rollout(name)
        ready = await self._coordinator.ready_versions(name)
        return pb.RolloutStatusResponse(rollout=messages.rollout_message(rollout), ready_versions=ready)

    async def _report(self, request: pb.RolloutReportRequest) -> pb.RolloutReportResponse:
        name = request.model_name
        shares: defaultdict[int, float] = defaultdict(float)
        for version, share in self._coordinator.rollout(name).arms:
            shares[version] += share  # two targets of a split may be one version
        await self._fleet.refresh_counts(name)
        counts = self._fleet.counts(name)
        pairs = await self._fleet.pairs(name)
        bounds = score_bounds(list(counts.values()))
        arms = [
            _arm_message(version, shares[version], arm_report(own, bounds, pairs.get(version, ())))
            for version, own in sorted(counts.items())
        ]
        arms += [
            _shadow_message(version, shadow_report(own))
            for version, own in sorted(self._fleet.shadow_counts(name).items())
        ]
        return pb.RolloutReportResponse(model_name=name, arms=arms)

    async def _feedback(self, request: pb.RolloutFeedbackRequest) -> pb.RolloutFeedbackResponse:
        name = request.model_name
        self._coordinator.rollout(name)  # raises if there is no such model
        if any(label.value not in (0, 1) for label in request.labels):
            raise InvalidRequest("a label must be 0 or 1")
        labels = [(label.key.encode(), label.value) for label in request.labels]
        return pb.RolloutFeedbackResponse(matched=await self._fleet.learn(name, labels))


def _change_of(request: pb.ChangeRolloutRequest) -> Callable[[Rollout], Rollout]:
    """Return the function that makes the change that a request asks for.

    Raises:
        InvalidRequest: it asks for none.
    """
    now_ms = time.time_ns() // 1_000_000
    kind = request.WhichOneof("change")
    if kind == "set_label":
        given = request.set_label
        return lambda rollout: changes.set_label(rollout, given.label, given.version, now_ms)
    if kind == "set_split":
        shares = messages.shares_from(request.set_split.shares)
        return lambda rollout: changes.set_split(rollout, shares, now_ms)
    if kind == "set_shadow":
        has_one = request.set_shadow.HasField("shadow")
        shadow = messages.shadow_from(request.set_shadow.shadow) if has_one else None
        return lambda rollout: changes.set_shadow(rollout, shadow, now_ms)
    if kind == "start_canary":
        return partial(_start, request.start_canary, now_ms)
    if kind == "promote":
        return lambda rollout: changes.promote(rollout, now_ms)
    if kind == "rollback":
        reason = request.rollback.reason or "asked for"
        return lambda rollout: changes.rollback(rollout, reason, now_ms)
    raise InvalidRequest("the request names no change; set one of its fields")


def _start(given: pb.StartCanary, now_ms: int, rollout: Rollout) -> Rollout:
    return changes.start_canary(
        rollout,
        given.target,
        tuple(given.steps) or changes.STEPS,
        given.step_requests or changes.STEP_REQUESTS,
        given.step_s,
        messages.guards_from(given.guards),
        now_ms,
    )


def _arm_message(version: int, share: float, arm: ArmReport) -> pb.Arm:
    message = pb.Arm(
        version=version,
        share=share,
        requests=arm.requests,
        errors=arm.errors,
        not_finite=arm.not_finite,
        late=arm.late,
        latency_p50_ms=arm.latency_p50_ms,
        latency_p99_ms=arm.latency_p99_ms,
        scores=pb.Histogram(bounds=arm.scores.bounds, counts=arm.scores.counts),
        score_mean=arm.score_mean,
        labelled=arm.labelled,
    )
    if arm.auc is not None:
        message.auc.CopyFrom(pb.Interval(value=arm.auc.value, low=arm.auc.low, high=arm.auc.high))
    return message


def _shadow_message(version: int, shadow: ShadowReport) -> pb.Arm:
    return pb.Arm(
        version=version,
        is_shadow=True,
        requests=shadow.compared + shadow.errors + shadow.incompatible,
        errors=shadow.errors,
        incompatible=shadow.incompatible,
        compared=shadow.compared,
        dropped=shadow.dropped,
        score_differences=pb.Histogram(bounds=shadow.differences.bounds, counts=shadow.differences.counts),
    )
