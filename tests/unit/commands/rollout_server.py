"""A server of rollouts for the commands' tests: real messages over real gRPC, state in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import grpc

from tensorferry.errors import InvalidRequest
from tensorferry.rollout import changes, messages
from tensorferry.rollout.state import EMPTY, Rollout
from tensorferry.wire import rollout_pb2 as pb
from tensorferry.wire import rollout_pb2_grpc

NOW_MS = 1_700_000_000_000


class RolloutService(rollout_pb2_grpc.ModelRolloutServicer):
    """One model, "fraud". Tests set the state, and what answers; and look at the requests."""

    def __init__(self) -> None:
        self.rollout: Rollout = EMPTY
        self.report = pb.RolloutReportResponse(model_name="fraud")
        self.requests: list = []
        self.fault: tuple[grpc.StatusCode, str] | None = None
        #: Called before each answer to a status.
        self.on_status: Callable[[], None] = lambda: None

    def change(self, change: Callable[..., Rollout], *arguments) -> None:
        """Change the state as the server does."""
        changed = change(self.rollout, *arguments, NOW_MS)
        self.rollout = replace(changed, generation=self.rollout.generation + 1)

    def RolloutStatus(self, request, context):  # noqa: N802
        self._check(request, context)
        self.on_status()
        return self._status()

    def ChangeRollout(self, request, context):  # noqa: N802
        self._check(request, context)
        try:
            self._change(request)
        except InvalidRequest as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return self._status()

    def RolloutReport(self, request, context):  # noqa: N802
        self._check(request, context)
        return self.report

    def RolloutFeedback(self, request, context):  # noqa: N802
        self._check(request, context)
        known = [label for label in request.labels if label.key.startswith("known")]
        return pb.RolloutFeedbackResponse(matched=len(known))

    def _status(self):
        ready = sorted(self.rollout.versions)
        return pb.RolloutStatusResponse(rollout=messages.rollout_message(self.rollout), ready_versions=ready)

    def _check(self, request, context) -> None:
        self.requests.append(request)
        if self.fault is not None:
            context.abort(*self.fault)
        if request.model_name != "fraud":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_name!r}")

    def _change(self, request) -> None:
        given = getattr(request, request.WhichOneof("change"))
        match request.WhichOneof("change"):
            case "set_label":
                self.change(changes.set_label, given.label, given.version)
            case "set_split":
                self.change(changes.set_split, messages.shares_from(given.shares))
            case "set_shadow":
                shadow = messages.shadow_from(given.shadow) if given.HasField("shadow") else None
                self.change(changes.set_shadow, shadow)
            case "start_canary":
                guards = messages.guards_from(given.guards)
                self.change(
                    changes.start_canary, given.target, given.steps, given.step_requests, given.step_s, guards
                )
            case "promote":
                self.change(changes.promote)
            case "rollback":
                self.change(changes.rollback, given.reason)


@contextmanager
def serving(service: RolloutService | None) -> Iterator[str]:
    """Serve on a free port of this machine; None serves nothing at all. Yields the address."""
    server = grpc.server(ThreadPoolExecutor(2))
    if service is not None:
        rollout_pb2_grpc.add_ModelRolloutServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
