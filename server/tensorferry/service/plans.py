"""Plans: what parsing and checking one request teaches about all requests that look like it.

Requests for one model differ in their id and their tensors' data; the rest (names, datatypes,
shapes, parameters) is the same bytes again and again. ``_scan`` (an extension) takes a body apart
into that rest, the key, and what differs. The first request with a key is parsed by protobuf and
checked against the model; what came out is kept as a plan under the key. The next ones only have
their data's sizes compared with the plan's.

Where the extension isn't built, or for any body that is unusual, ``decode`` parses with protobuf
every time. Both ways give the same; a property test holds them to it.

Where a model's requests are divided among versions, a plan has one for each of them (an arm), and the
request's split key, or else its id, chooses.

Invariant: a plan is only as good as the routes that it was made under. ``Engine.generation``
changes with the routes, and drops all plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from tensorferry.batching.pending import Pending
from tensorferry.engine import Engine, LiveModel, Route
from tensorferry.errors import InvalidRequest
from tensorferry.model import Bound
from tensorferry.service import codec
from tensorferry.service.forms import Decoded
from tensorferry.service.status import parsed
from tensorferry.service.timing import timing_parameters
from tensorferry.tensors import Buffer, Tensor, rows_of
from tensorferry.wire import open_inference_pb2 as pb

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_PLANS",
    "Plan",
    "Planner",
    "Scanned",
    "TimedPlan",
    "identify",
    "model_of",
]

#: Distinct request forms kept; past it all are dropped and made anew. A form is a model, a row
#: count and parameters: callers have a few, and one who makes a new one each time costs a parse.
MAX_PLANS: Final = 4096
#: A key longer than this isn't kept: it holds parameters or typed data, not a form.
MAX_KEY_BYTES: Final = 2048

#: ``_scan.join_response`` keeps its buffers in an array of this size.
_MAX_JOINED: Final = 16

#: What a request begins with whose first field is its model's name: the field's number, and its kind.
_NAME_TAG: Final = bytes((pb.ModelInferRequest.MODEL_NAME_FIELD_NUMBER << 3 | 2,))

#: What ``_scan.scan`` returns: key, id, raw contents, split key.
Scanned = tuple[bytes, bytes, list[Buffer], bytes]
_Join = Callable[[bytes, bytes, bytes, Sequence[Tensor], int, int, int], bytes]


def _no_scan(body: bytes) -> Scanned | None:
    return None


_scan: Callable[[bytes], Scanned | None] = _no_scan
_join: _Join | None = None
try:
    from tensorferry.service._scan import join_response as _join
    from tensorferry.service._scan import scan as _scan
except ImportError:
    pass  # not built: protobuf does it all


class Plan:
    """One form of request to one live model.

    With a ``route`` the plan is the first of ``arms``, one for each version that the requests of this
    form are divided among; an arm that can't take them is the message that says so (no error, whose
    traceback would keep a request alive).
    """

    __slots__ = (
        "_described",
        "_described_for",
        "_has_fixed_outputs",
        "_head",
        "arms",
        "bound",
        "live",
        "priority",
        "requested",
        "route",
        "sizes",
        "timeout_s",
    )

    def __init__(
        self,
        live: LiveModel,
        bound: Bound,
        requested: tuple[str, ...] = (),
        timeout_s: float = 0.0,
        priority: int = 0,
    ) -> None:
        self.live = live
        self.bound = bound
        self.requested = requested
        self.timeout_s = timeout_s
        self.priority = priority
        self.sizes: list[int] = []
        self.route: Route | None = None
        self.arms: dict[LiveModel, Plan | str] = {}
        spec = live.spec
        response = pb.ModelInferResponse(model_name=spec.name, model_version=str(spec.version))
        self._head = response.SerializeToString()
        self._described_for: list[tuple[str, tuple[int, ...]]] = []
        self._described = b""
        # What the backend has checked against the configuration needs no second look.
        self._has_fixed_outputs = all(each.is_fixed for each in spec.outputs)

    def arm(self, key: bytes) -> Plan:
        """Return the plan for the version that answers requests with this key.

        Raises:
            InvalidRequest: that version doesn't take this form of request.
        """
        if self.route is None:
            return self
        arm = self.arms[self.route.choose(key)]
        if isinstance(arm, str):
            raise InvalidRequest(arm)
        return arm

    def fits(self, parts: Sequence[Buffer]) -> bool:
        """Whether the data has the sizes that were checked."""
        sizes = self.sizes
        if len(parts) == 1 == len(sizes):
            return len(parts[0]) == sizes[0]
        return [len(part) for part in parts] == sizes

    def encode(self, identity: bytes, request: Pending) -> bytes:
        """Serialise the answer of a request of this form: its rows of its batch's outputs."""
        outputs, first_row, batch_rows = request.batch_outputs, request.first_row, request.batch_rows
        rows = self.bound.rows
        if _join is None or not batch_rows or len(outputs) > _MAX_JOINED:
            if batch_rows:
                outputs = [rows_of(output, first_row, rows) for output in outputs]
            response = codec.encode_response(self.live.spec, identity.decode(), outputs, self.requested)
            return response.SerializeToString()
        if self.requested:
            by_name = {output.name: output for output in outputs}
            outputs = [by_name[name] for name in self.requested]
        if not self._described or not self._has_fixed_outputs:
            self._describe(outputs)
        return _join(self._head, identity, self._described, outputs, first_row, rows, batch_rows)

    def _describe(self, outputs: Sequence[Tensor]) -> None:
        """Serialise the outputs' descriptions; a model may answer with others each time."""
        kinds = [(output.datatype, output.shape[1:]) for output in outputs]
        if kinds != self._described_for:
            self._described = codec.described_outputs(outputs, self.bound.rows)
            self._described_for = kinds


class TimedPlan(Plan):
    """A form of request that asks for its timing breakdown: only such pay for it."""

    __slots__ = ()

    def encode(self, identity: bytes, request: Pending) -> bytes:
        """Serialise the answer, and the breakdown as its parameters."""
        body = super().encode(identity, request)
        return body + timing_parameters(request, time.monotonic(), bool(self.live.spec.steps))


def identify(body: bytes) -> tuple[str, str]:
    """Return the model's name and the id that a serialised request has; "" for what can't be told.

    Doesn't parse its data, where the extension is built.
    """
    scanned = _scan(body)
    try:
        message = pb.ModelInferRequest.FromString(body if scanned is None else scanned[0])
        identity = message.id if scanned is None else scanned[1].decode()
    except Exception:  # protobuf's DecodeError, whose module depends on the implementation
        return "", ""
    return message.model_name, identity


def model_of(body: bytes) -> str:
    """Return the model's name that a serialised request has, "" if it can't be told: for every request.

    Whoever writes fields in their order writes the name first; others pay for ``identify``.
    """
    if body[:1] == _NAME_TAG and len(body) > 1 and body[1] < 0x80:
        try:
            return body[2 : 2 + body[1]].decode()
        except UnicodeDecodeError:
            return ""
    return identify(body)[0]


class Planner:
    """Decodes requests for an engine, remembering their forms."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._plans: dict[bytes, Plan] = {}
        self._generation = -1

    def decode(self, body: bytes) -> Decoded:
        """Parse and check a serialised ModelInferRequest, or recognise its form.

        Raises:
            InvalidRequest, NotFound, ModelNotReady, Draining: as ``Engine.resolve`` and ``bind``.
        """
        scanned = _scan(body)
        if scanned is None:
            return self._parse(body)
        key, identity, parts, split_key = scanned
        if self._generation != self._engine.generation:
            self._generation = self._engine.generation
            self._plans.clear()
        plan = self._plans.get(key)
        if plan is not None and plan.fits(parts) and identity.isascii() and split_key.isascii():
            if plan.route is not None:
                plan = plan.arm(split_key or identity)
            return plan, identity, parts, split_key or identity
        return self._learned(body, scanned)

    def _learned(self, body: bytes, scanned: Scanned) -> Decoded:
        """Decode a request of a form that isn't known."""
        return self._of_message(parsed(pb.ModelInferRequest, body), scanned[0])

    def _parse(self, body: bytes) -> Decoded:
        return self._of_message(parsed(pb.ModelInferRequest, body), b"")

    def _of_message(self, message: pb.ModelInferRequest, key: bytes) -> Decoded:
        """Decode a parsed request, and keep its form under ``key``, if it may be kept; b"" keeps nothing."""
        route = self._route_of(message)
        is_raw = bool(message.raw_input_contents)
        form, decoded, in_order = self._form_of(message, route, codec.decode_inputs(message), is_raw)
        if in_order and 0 < len(key) <= MAX_KEY_BYTES:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            form.sizes = [len(part) for part in decoded[2]]
            self._plans[key] = form
        _, identity, parts, split_key = decoded
        return form.arm(split_key), identity, parts, split_key

    def _route_of(self, message: pb.ModelInferRequest) -> Route:
        """Return who answers a request. To be asked first: what else is wrong depends on the model."""
        return self._engine.route(message.model_name, message.model_version, codec.label_of(message))

    def _form_of(
        self, message: pb.ModelInferRequest, route: Route, tensors: Sequence[Tensor], is_raw: bool
    ) -> tuple[Plan, Decoded, bool]:
        """Return a request's form, the request under it, and whether the form may be kept.

        It may if the data is raw, in the model's order, and needs no look at its values.
        """
        identity = message.id.encode()
        split_key = codec.split_key_of(message).encode() or identity
        form = self._plan_of(message, route.live, tensors)
        bound = form.bound
        in_order = is_raw and all(
            mine is theirs and mine.datatype != "BOOL"
            for mine, theirs in zip(bound.tensors, tensors, strict=True)
        )
        parts = [tensor.data for tensor in bound.tensors]
        if route.split is not None:
            form.route = route
            form.arms = {live: self._arm_of(message, live, tensors, form) for live in route.arms}
        if in_order:
            # The plan outlives the request: it must not keep the request's data.
            for plan in [form, *form.arms.values()]:
                if isinstance(plan, Plan):
                    plan.bound.forget_data()
        return form, (form, identity, parts, split_key), in_order

    def _plan_of(self, message: pb.ModelInferRequest, live: LiveModel, tensors: Sequence[Tensor]) -> Plan:
        requested = codec.requested_outputs(message, live.spec)
        timeout_s, priority = codec.timeout_of(message), codec.priority_of(message)
        kind = TimedPlan if codec.wants_timing(message) else Plan
        return kind(live, live.spec.bind(tensors), requested, timeout_s, priority)

    def _arm_of(
        self, message: pb.ModelInferRequest, live: LiveModel, tensors: Sequence[Tensor], form: Plan
    ) -> Plan | str:
        """Return a version's plan for the form, or why it doesn't take it: that is its affair alone."""
        if live is form.live:
            return form
        try:
            arm = self._plan_of(message, live, tensors)
        except InvalidRequest as error:
            return str(error)
        names = [tensor.name for tensor in form.bound.tensors]
        if [tensor.name for tensor in arm.bound.tensors] != names:
            what = (
                f"version {live.spec.version} takes its inputs in another order than {form.live.spec.version}"
            )
            return f"model {message.model_name!r}: {what}; use one configuration for both"
        return arm
