"""Requests whose tensors lie in shared memory: what of a message says so, and what becomes of it.

A tensor's place stands in its parameters, which belong to a request's form (``plans``). So a form holds
places, and its tensors' data is read anew for each request; a form that is kept names its regions, and a
region that was registered anew under that name is another one from the next request on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tensorferry.batching.pending import Pending
from tensorferry.engine import Engine, LiveModel
from tensorferry.errors import InvalidRequest
from tensorferry.model import Bound
from tensorferry.service import codec
from tensorferry.service.forms import Decoded
from tensorferry.service.plans import MAX_KEY_BYTES, MAX_PLANS, Plan, Planner, Scanned, TimedPlan
from tensorferry.service.shared_memory import Place, Region, Regions
from tensorferry.service.timing import timing_parameters
from tensorferry.tensors import Buffer, Tensor
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["INLINE_BYTES", "LargeRequest", "SharedPlanner", "SharedRequest", "Unread"]

#: A request's inputs up to this size together, and its outputs, are copied on the loop thread: it takes
#: less time than the way to another thread and back.
INLINE_BYTES: Final = 1024 * 1024
#: A BOOL input is read and looked at before anything else, on the loop thread.
_MOST_BOOL_BYTES: Final = 64 * 2**20

_REGION: Final = "shared_memory_region"
_BYTE_SIZE: Final = "shared_memory_byte_size"
_OFFSET: Final = "shared_memory_offset"


class LargeRequest(Exception):
    """A request (``of``) whose tensors are too large to be copied on the loop thread.

    An exception, because it is rare, and asking every other request would cost them something.
    """

    def __init__(self, request: SharedRequest, identity: bytes, split_key: bytes) -> None:
        self.of: Unread = (request, identity, split_key)


class _Form:
    """One form of request: its plan, and where its tensors lie.

    ``inputs`` are in the model's order, None for one whose data is in the message; ``outputs`` are by
    name, and those that aren't there are answered in the message.
    """

    __slots__ = ("byte_size", "inputs", "is_large", "outputs", "plan", "sizes")

    def __init__(
        self, plan: Plan, inputs: Sequence[Place | None], outputs: Mapping[str, Place], sizes: Sequence[int]
    ) -> None:
        self.plan = plan
        self.inputs = inputs
        self.outputs = outputs
        #: Of the data in the message, in bytes.
        self.sizes = list(sizes)
        #: Of the data that isn't.
        self.byte_size = sum([place.byte_size for place in inputs if place is not None])
        written = sum([place.byte_size for place in outputs.values()])
        self.is_large = max(self.byte_size, written) > INLINE_BYTES

    def fits(self, raws: Sequence[Buffer]) -> bool:
        """Whether the data in the message has the sizes that were checked."""
        return [len(raw) for raw in raws] == self.sizes

    def request(self, regions: Regions, parts: Sequence[Buffer | None], split_key: bytes) -> SharedRequest:
        """Make a request of this form; ``parts`` are in the model's order, None for what is to be read.

        Raises:
            NotFound, InvalidRequest: a region isn't registered any more, or is smaller now.
        """
        sources = [
            (index, regions.get(place), place) for index, place in enumerate(self.inputs) if place is not None
        ]
        targets = {name: (regions.get(place), place) for name, place in self.outputs.items()}
        return SharedRequest(self.plan.arm(split_key), parts, sources, targets, self.byte_size)


class SharedRequest:
    """One request with tensors in shared memory; it holds their regions until it is answered.

    ``live``, ``bound``, ``timeout_s``, ``priority`` and ``encode`` are as a plan's. ``byte_size`` is what
    ``read`` copies.
    """

    __slots__ = ("_parts", "_plan", "_sources", "_targets", "byte_size")

    def __init__(
        self,
        plan: Plan,
        parts: Sequence[Buffer | None],
        sources: Sequence[tuple[int, Region, Place]],
        targets: Mapping[str, tuple[Region, Place]],
        byte_size: int,
    ) -> None:
        self._plan = plan
        self._parts = parts
        self._sources = sources
        self._targets = targets
        self.byte_size = byte_size

    @property
    def live(self) -> LiveModel:
        """The version that answers it."""
        return self._plan.live

    @property
    def bound(self) -> Bound:
        """What its tensors are."""
        return self._plan.bound

    @property
    def timeout_s(self) -> float:
        """Its own wish for how long it may wait; 0.0 for none."""
        return self._plan.timeout_s

    @property
    def priority(self) -> int:
        """Its level; 0 for the model's default."""
        return self._plan.priority

    def read(self) -> Sequence[Buffer]:
        """Return its inputs' data in the model's order, copied from where it lies. On any thread.

        Raises:
            InvalidRequest: an object was truncated.
        """
        parts: list[Any] = list(self._parts)
        for index, region, place in self._sources:
            parts[index] = region.read(place)
        return parts

    def encode(self, identity: bytes, request: Pending) -> bytes:
        """Write the outputs to where they are wanted, and serialise the answer without those.

        Raises:
            InvalidRequest: an output is larger than its place, or can't be written there.
        """
        outputs, written = request.outputs, dict[str, int]()
        for index, output in enumerate(outputs):
            if output.name in self._targets:
                written[output.name] = self._write(output)
                outputs[index] = Tensor(output.name, output.datatype, output.shape, b"")
        plan = self._plan
        response = codec.encode_response(plan.live.spec, identity.decode(), outputs, plan.requested)
        for described in response.outputs:
            if described.name in written:
                place = self._targets[described.name][1]
                described.parameters[_REGION].string_param = place.region
                described.parameters[_BYTE_SIZE].int64_param = written[described.name]
                if place.offset:
                    described.parameters[_OFFSET].int64_param = place.offset
        body: bytes = response.SerializeToString()
        if isinstance(plan, TimedPlan):
            body += timing_parameters(request, time.monotonic(), bool(plan.live.spec.steps))
        return body

    def _write(self, output: Tensor) -> int:
        region, place = self._targets[output.name]
        size = len(output.data)
        if size > place.byte_size:
            raise InvalidRequest(
                f"output {output.name!r} takes {size} bytes, and the request gives it {place.byte_size} in"
                f" shared memory region {place.region!r}; give it more"
            )
        region.write(place, output.data)
        return size


#: A request, its id, and what it is told from others by (the split key, or else the id).
Unread = tuple[SharedRequest, bytes, bytes]


class SharedPlanner(Planner):
    """A planner that takes requests with tensors in shared memory, too.

    Others cost it nothing: their plans are found before any of this is asked.
    """

    def __init__(self, engine: Engine, regions: Regions) -> None:
        super().__init__(engine)
        self._regions = regions
        self._forms: dict[bytes, _Form] = {}
        self._forms_generation = -1

    def _learned(self, body: bytes, scanned: Scanned) -> Decoded:
        """See ``Planner``. What has no plan may be a request whose form is known here."""
        key, identity, raws, split_key = scanned
        if self._forms_generation != self._engine.generation:
            self._forms_generation = self._engine.generation
            self._forms.clear()
        form = self._forms.get(key)
        if form is not None and form.fits(raws) and identity.isascii() and split_key.isascii():
            rest = iter(raws)
            parts = [next(rest) if place is None else None for place in form.inputs]
            return self._decoded(form, parts, identity, split_key or identity)
        return super()._learned(body, scanned)

    def _of_message(self, message: pb.ModelInferRequest, key: bytes) -> Decoded:
        """See ``Planner``."""
        if not _shares(message):
            return super()._of_message(message, key)
        route = self._route_of(message)
        outputs = {each.name: place for each in message.outputs if (place := _place_of(message, each))}
        tensors, places = self._decoded_inputs(message)
        is_raw = len(message.raw_input_contents) + len(places) == len(tensors)
        plan, (_, identity, parts, split_key), in_order = self._form_of(message, route, tensors, is_raw)
        inputs = [places.get(tensor.name) for tensor in plan.bound.tensors]
        for arm in [plan, *plan.arms.values()]:
            if isinstance(arm, Plan):
                arm.bound.forget_data()
        pairs = list(zip(inputs, parts, strict=True))
        form = _Form(plan, inputs, outputs, [len(part) for place, part in pairs if place is None])
        if in_order and 0 < len(key) <= MAX_KEY_BYTES:
            if len(self._forms) >= MAX_PLANS:
                self._forms.clear()
            self._forms[key] = form
        own = [part if place is None else None for place, part in pairs]
        return self._decoded(form, own, identity, split_key)

    def _decoded(
        self, form: _Form, parts: Sequence[Buffer | None], identity: bytes, split_key: bytes
    ) -> Decoded:
        request = form.request(self._regions, parts, split_key)
        if form.is_large:
            raise LargeRequest(request, identity, split_key)
        return request, identity, request.read(), split_key

    def _decoded_inputs(self, message: pb.ModelInferRequest) -> tuple[list[Tensor], dict[str, Place]]:
        """Return the inputs in their order, and the places of those that still are to be read, by name.

        These have something of their size for data.
        """
        inputs = list(message.inputs)
        places = [_place_of(message, each) for each in inputs]
        others = [each for each, place in zip(inputs, places, strict=True) if place is None]
        own: list[Tensor] = []
        if others:
            rest = pb.ModelInferRequest(model_name=message.model_name, inputs=others)
            own = codec.decode_inputs(rest, message.raw_input_contents)
        elif message.raw_input_contents:
            raise codec.refusal(
                message,
                f"{len(message.raw_input_contents)} raw_input_contents, and all inputs are in shared memory",
            )
        remaining = iter(own)
        tensors, later = [], {}
        for each, place in zip(inputs, places, strict=True):
            if place is None:
                tensors.append(next(remaining))
                continue
            if each.HasField("contents"):
                raise codec.refusal(
                    message, f"input {each.name!r} has contents and is in shared memory; send one of them"
                )
            tensors.append(
                Tensor(each.name, each.datatype, tuple(each.shape), self._data_of(message, each, place))
            )
            if each.datatype != "BOOL":
                later[each.name] = place
        return tensors, later

    def _data_of(
        self, message: pb.ModelInferRequest, each: pb.ModelInferRequest.InferInputTensor, place: Place
    ) -> Buffer:
        region = self._regions.get(place)
        if each.datatype != "BOOL":
            return np.broadcast_to(np.uint8(0), (place.byte_size,)).data  # it has a size, and takes no memory
        if place.byte_size > _MOST_BOOL_BYTES:
            raise codec.refusal(
                message,
                f"BOOL input {each.name!r} has {place.byte_size} bytes in shared memory, and"
                f" {_MOST_BOOL_BYTES} are taken at most; send fewer rows",
            )
        return region.read(place)


def _shares(message: pb.ModelInferRequest) -> bool:
    """Whether a request has any tensor in shared memory."""
    tensors: list[Any] = [*message.inputs, *message.outputs]
    return any(name in each.parameters for each in tensors for name in (_REGION, _BYTE_SIZE, _OFFSET))


def _place_of(message: pb.ModelInferRequest, each: Any) -> Place | None:  # noqa: ANN401 - an input or an output
    """Take the place of a tensor out of its parameters; None if it isn't in shared memory.

    Raises:
        InvalidRequest: the parameters don't make a place.
    """
    parameters = each.parameters
    given = {name: parameters[name] for name in (_REGION, _BYTE_SIZE, _OFFSET) if name in parameters}
    if not given:
        return None
    region = given[_REGION].string_param if _REGION in given else ""
    size = codec.integer_of(given[_BYTE_SIZE]) if _BYTE_SIZE in given else -1
    offset = codec.integer_of(given[_OFFSET]) if _OFFSET in given else 0
    if not region or size < 0 or offset < 0:
        raise codec.refusal(
            message,
            f"{each.name!r} must have {_REGION!r} (text) and {_BYTE_SIZE!r} (an integer >= 0), and may have"
            f" {_OFFSET!r} (an integer >= 0)",
        )
    for name in given:
        del parameters[name]
    return Place(region, offset, size)
