"""What a model is to the rest of the server: its specification, and the protocol that a backend implements.

Rules for this file: no torch, no asyncio, no files. A specification is immutable; a backend that
learns more at load time (names and number of outputs, say) returns a new one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from tensorferry.device import DeviceRun, Tuning
from tensorferry.errors import InvalidRequest
from tensorferry.tensors import DATATYPES, Buffer, DataType, Tensor

__all__ = [
    "LENGTH",
    "MAX_PIECES",
    "BatchInput",
    "BatchingSpec",
    "Bound",
    "EnsembleStep",
    "Key",
    "Model",
    "ModelSpec",
    "PaddingSpec",
    "QueuePolicy",
    "RunResult",
    "TensorSpec",
    "WarmupSpec",
    "batch_buckets",
]

#: Pieces of ``max_batch_size`` rows that a request may be split into (``split_oversized``).
MAX_PIECES: Final = 64

#: Stands in a key's first place, with the bucket beside it, where requests are padded. No datatype
#: has this name.
LENGTH: Final = "length"

#: What requests must have in common to share a batch; see ``Bound``.
Key = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output.

    ``dims`` leaves the batch dimension out and holds -1 for any size. ``datatype`` and ``dims``
    are None where the model was loaded without a configuration, so that any will do.
    """

    name: str
    datatype: DataType | None = None
    dims: tuple[int, ...] | None = None
    #: Whether every request has the same datatype and row shape. Stored: it is read for each request.
    is_fixed: bool = field(init=False)

    def __post_init__(self) -> None:
        fixed = self.datatype is not None and self.dims is not None and -1 not in self.dims
        object.__setattr__(self, "is_fixed", fixed)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What may wait, and for how long: Triton's ModelQueuePolicy.

    ``max_queue_size`` counts requests, and 0 leaves it to the server. ``default_timeout_us`` is
    0 for none. A request whose timeout comes while it waits is refused (``REJECT``), or moved
    behind all others and run when nothing else waits (``DELAY``). ``allow_timeout_override`` lets
    a request's own ``timeout`` shorten the default, never lengthen it.
    """

    max_queue_size: int = 0
    default_timeout_us: int = 0
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    allow_timeout_override: bool = True


@dataclass(frozen=True, slots=True)
class BatchingSpec:
    """How requests to the model travel together.

    ``max_queue_delay_us`` is None where the model's owner states none; a number is obeyed
    literally. ``priority_levels`` counts the levels, 1 being the highest; 0 means that requests
    have no priority. ``priority_policies`` holds (level, policy) for the levels that have a
    policy of their own. ``latency_objective_ms`` is 0 for none. With ``split_oversized`` a request
    of up to ``MAX_PIECES`` times ``max_batch_size`` rows is run in pieces and answered as one.
    """

    enabled: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int | None = None
    queue_policy: QueuePolicy = field(default_factory=QueuePolicy)
    priority_levels: int = 0
    default_priority_level: int = 0
    priority_policies: tuple[tuple[int, QueuePolicy], ...] = ()
    preserve_ordering: bool = False
    latency_objective_ms: float = 0.0
    split_oversized: bool = False


@dataclass(frozen=True, slots=True)
class PaddingSpec:
    """How requests of unlike lengths share a batch: padded to the smallest bucket that fits.

    ``inputs`` and ``outputs`` name the tensors whose one variable dimension (-1 in their dims) is
    that length. All of a request's ``inputs`` have the same length; ``outputs`` come back at the
    padded length and are cut to the request's own. ``buckets`` are lengths in elements of that
    dimension, ascending; a longer request is refused. ``lengths_input`` names the model's input
    that the server fills with each row's true length, of ``lengths_datatype``, dims [1]; empty:
    none. It isn't among ``ModelSpec.inputs``: callers neither see nor send it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    buckets: tuple[int, ...]
    pad_value: float = 0.0
    lengths_input: str = ""
    lengths_datatype: Literal["INT64", "INT32", "FP32"] = "INT64"

    def bucket_of(self, length: int) -> int | None:
        """Return the smallest bucket that holds ``length``, which wastes least; None if none does."""
        index = bisect_left(self.buckets, length)
        return self.buckets[index] if index < len(self.buckets) else None

    @property
    def lengths(self) -> TensorSpec | None:
        """The model's input for the true lengths; None if it has none."""
        if not self.lengths_input:
            return None
        return TensorSpec(self.lengths_input, DATATYPES[self.lengths_datatype], (1,))


@dataclass(frozen=True, slots=True)
class WarmupSpec:
    """One warm-up request: rows, runs, and for each input its datatype, dims and whether it is random."""

    name: str
    batch_size: int
    count: int
    inputs: tuple[tuple[TensorSpec, bool], ...]


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble, and which of the ensemble's tensors it reads and writes.

    ``version`` is "" for the one that a request without a version gets. ``inputs`` and ``outputs``
    hold (name in the model, name in the ensemble).
    """

    model: str
    version: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of a model, as its configuration describes it.

    ``max_batch_size`` is in rows; 0 means that the model has no batch dimension and every request
    runs alone. ``devices`` names one device for each worker stream (``cpu``, ``cuda:0``).
    ``intra_op_threads`` is per stream; 0 divides the machine's cores among the streams.
    ``run_timeout_ms`` is how long a run of a model in a process of its own may take; 0 for ever.
    ``from_signature`` says that there was no configuration: the backend fills in the tensors, and
    in ``datatypes`` the names of those that it can take (empty: all of the protocol's but BYTES).
    ``execution`` is where batches run: on the loop thread (``inline``), on streams of their own
    (``thread``), or whichever the measured run time says (``auto``).

    ``golden`` is the file of inputs with their expected outputs that the version must reproduce
    before it is ready; None if it has none. ``content`` says which files the version was made of
    (it changes when one of them is replaced), so that two equal specifications are the same model.
    A ``background`` version runs only when nothing else wants the cores: it answers nobody.
    ``steps`` are an ensemble's, in the order in which they run; empty for a model.
    ``torch_export_mode`` says how an exported program runs: as its graph, or compiled at load.
    """

    name: str
    version: int
    path: Path
    platform: str = "pytorch_libtorch"
    backend: str = "pytorch"
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: BatchingSpec = field(default_factory=BatchingSpec)
    devices: tuple[str, ...] = ("cpu",)
    warmups: tuple[WarmupSpec, ...] = ()
    intra_op_threads: int = 0
    run_timeout_ms: float = 0.0
    from_signature: bool = False
    datatypes: frozenset[str] = frozenset()
    execution: Literal["auto", "inline", "thread"] = "auto"
    response_cache: bool = False
    padding: PaddingSpec | None = None
    golden: Path | None = None
    content: str = ""
    background: bool = False
    steps: tuple[EnsembleStep, ...] = ()
    torch_export_mode: Literal["auto", "graph", "aoti"] = "auto"
    tuning: Tuning = field(default_factory=Tuning)

    @property
    def has_batch_dimension(self) -> bool:
        """Whether the first dimension of every tensor counts rows."""
        return self.max_batch_size > 0

    @property
    def model_inputs(self) -> tuple[TensorSpec, ...]:
        """What the model itself takes: the callers' inputs and, last, the server's lengths."""
        lengths = self.padding.lengths if self.padding is not None else None
        return self.inputs if lengths is None else (*self.inputs, lengths)

    @property
    def is_fixed(self) -> bool:
        """Whether all requests share one row shape, so that any two can share a batch."""
        return all(spec.is_fixed for spec in self.inputs)

    def bind(self, tensors: Sequence[Tensor]) -> Bound:
        """Check a request's tensors and put them into the model's order.

        Raises:
            InvalidRequest: names the model, the tensor, what was expected and what came.
        """
        if len(tensors) == len(self.inputs) == 1 and tensors[0].name == self.inputs[0].name:
            ordered = tensors  # the common case, without a dict
        else:
            ordered = self._in_order(tensors)
        rows = self._row_count(ordered)
        key: list[tuple[str, tuple[int, ...]]] = []
        for tensor, spec in zip(ordered, self.inputs, strict=True):
            self._check_tensor(tensor, spec, rows)
            if not spec.is_fixed:
                key.append((tensor.datatype, tensor.shape[1:] if self.has_batch_dimension else tensor.shape))
        if self.padding is not None:
            return self._bind_to_bucket(ordered, rows, self.padding)
        return Bound(ordered, rows, tuple(key))

    def _bind_to_bucket(self, tensors: Sequence[Tensor], rows: int, padding: PaddingSpec) -> Bound:
        """Bind checked tensors under the key of their bucket: the length itself isn't in it."""
        length, longest = 0, None
        key: list[tuple[str, tuple[int, ...]]] = []
        for tensor, spec in zip(tensors, self.inputs, strict=True):
            if spec.is_fixed:
                continue
            shape = tensor.shape[1:] if self.has_batch_dimension else tensor.shape
            if spec.name in padding.inputs and spec.dims is not None:
                axis = spec.dims.index(-1)
                if longest is not None and shape[axis] != length:
                    raise self._refusal(
                        f"input {tensor.name!r} has length {shape[axis]} in shape {list(tensor.shape)}, and"
                        f" {longest.name!r} has {length}; the lengths of {list(padding.inputs)} must be equal"
                    )
                length, longest = shape[axis], tensor
                shape = spec.dims
            key.append((tensor.datatype, shape))
        bucket = padding.bucket_of(length)
        if bucket is None:
            name, came = (longest.name, list(longest.shape)) if longest is not None else ("", [])
            raise self._refusal(
                f"input {name!r} has length {length} in shape {came}, and the longest that the model"
                f" takes is {padding.buckets[-1]} (its largest bucket); send a shorter one"
            )
        return Bound(tensors, rows, ((LENGTH, (bucket,)), *key), length)

    def _in_order(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        by_name: dict[str, Tensor] = {}
        for tensor in tensors:
            if tensor.name in by_name:
                raise self._refusal(f"input {tensor.name!r} is given twice")
            by_name[tensor.name] = tensor
        expected = [spec.name for spec in self.inputs]
        missing = [name for name in expected if name not in by_name]
        if missing:
            given = list(by_name)
            raise self._refusal(
                f"input {missing[0]!r} is missing; the model takes {expected}, and {given} came"
            )
        if len(by_name) > len(expected):
            unknown = next(name for name in by_name if name not in expected)
            if self.padding is not None and unknown == self.padding.lengths_input:
                raise self._refusal(f"input {unknown!r} is filled in by the server; send only {expected}")
            raise self._refusal(f"unknown input {unknown!r}; the model takes {expected}")
        return [by_name[name] for name in expected]

    def _row_count(self, tensors: Sequence[Tensor]) -> int:
        if not self.max_batch_size:
            return 1
        first = tensors[0]
        if not first.shape:
            raise self._refusal(f"input {first.name!r} has no dimensions; the first must count rows")
        rows = first.shape[0]
        if rows <= 0:
            raise self._refusal(
                f"input {first.name!r} has {rows} rows in shape {list(first.shape)}, expected at least 1"
            )
        if rows > self.max_batch_size:
            self._check_splits(first, rows)
        return rows

    def _check_splits(self, first: Tensor, rows: int) -> None:
        limit = f"and max_batch_size is {self.max_batch_size}"
        if self.batching.split_oversized:
            if rows <= MAX_PIECES * self.max_batch_size:
                return
            limit += f", and a request is split into at most {MAX_PIECES} times as many"
        raise self._refusal(
            f"input {first.name!r} has {rows} rows in shape {list(first.shape)}, {limit}; send fewer at once"
        )

    def _check_tensor(self, tensor: Tensor, spec: TensorSpec, rows: int) -> None:
        datatype = DATATYPES.get(tensor.datatype)
        if datatype is None or (
            datatype is not spec.datatype if spec.datatype else not self._takes(datatype)
        ):
            raise self._wrong_datatype(tensor, spec)
        shape = tensor.shape
        if spec.dims is None:
            self._check_free_shape(tensor, rows)
        elif self.max_batch_size:
            if not spec.is_fixed or shape[1:] != spec.dims or shape[:1] != (rows,):
                self._check_shape(tensor, (-1, *spec.dims), rows)
        elif not spec.is_fixed or shape != spec.dims:
            self._check_shape(tensor, spec.dims, None)
        expected_bytes = datatype.itemsize
        for size in shape:
            expected_bytes *= size
        if len(tensor.data) != expected_bytes:
            raise self._refusal(
                f"input {tensor.name!r} has {len(tensor.data)} bytes, and shape {list(shape)}"
                f" of {tensor.datatype} takes {expected_bytes}"
            )
        if tensor.datatype == "BOOL" and not _is_boolean(tensor.data):
            raise self._refusal(f"input {tensor.name!r} is BOOL and holds a byte that is neither 0 nor 1")

    def _takes(self, datatype: DataType) -> bool:
        return datatype.itemsize > 0 and (not self.datatypes or datatype.name in self.datatypes)

    def _wrong_datatype(self, tensor: Tensor, spec: TensorSpec) -> InvalidRequest:
        if spec.datatype is not None:
            expected = spec.datatype.name
        else:
            expected = "one of " + ", ".join(each.name for each in DATATYPES.values() if self._takes(each))
        # The name is the caller's and may be anything; the known ones read better without quotes.
        came = (
            tensor.datatype if tensor.datatype in DATATYPES else f"{tensor.datatype!r}, which is no datatype"
        )
        return self._refusal(f"input {tensor.name!r} is {came}, expected {expected}")

    def _check_shape(self, tensor: Tensor, dims: tuple[int, ...], rows: int | None) -> None:
        shape = tensor.shape
        fits = len(shape) == len(dims) and all(
            size >= 0 and dim in (-1, size) for size, dim in zip(shape, dims, strict=True)
        )
        if not fits:
            raise self._refusal(f"input {tensor.name!r} has shape {list(shape)}, expected {list(dims)}")
        if rows is not None and shape[0] != rows:
            raise self._refusal(
                f"input {tensor.name!r} has {shape[0]} rows, and {self.inputs[0].name!r} has {rows}"
            )

    def _check_free_shape(self, tensor: Tensor, rows: int) -> None:
        if any(size < 0 for size in tensor.shape):
            raise self._refusal(f"input {tensor.name!r} has a negative size in shape {list(tensor.shape)}")
        if self.max_batch_size and tensor.shape[:1] != (rows,):
            raise self._refusal(
                f"input {tensor.name!r} has shape {list(tensor.shape)}, and the first dimension must be"
                f" the {rows} rows of {self.inputs[0].name!r}"
            )

    def _refusal(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"model {self.name!r}: {what}")


@dataclass(slots=True)
class Bound:
    """A request's tensors in the model's order, its rows, and what it may share a batch with.

    Two requests share a batch if their ``key`` is equal; it is () for a model whose row shape is
    fixed. Where a model pads, it starts with (LENGTH, (bucket,)), and requests whose keys differ in
    the bucket alone may share a batch too: of the largest bucket among them. ``length`` is the
    request's true length in elements; 0 where nothing is padded.
    """

    tensors: Sequence[Tensor]
    rows: int
    key: Key
    length: int = 0
    #: Of all tensors together.
    byte_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.byte_size = sum([len(tensor.data) for tensor in self.tensors])

    def forget_data(self) -> None:
        """Drop the tensors' data and keep what they are: requests that look alike share one bound."""
        self.tensors = [Tensor(each.name, each.datatype, each.shape, b"") for each in self.tensors]


@dataclass(slots=True)
class BatchInput:
    """One input of a batch: the rows of several requests, one buffer for each, in order.

    A padded request takes two, its data and what fills it up. ``shape`` is that of the whole
    batch. The backend copies the parts into one buffer of its
    choice (pinned memory on a GPU): that is the one copy between the wire and the model.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parts: list[Buffer]


@dataclass(slots=True)
class RunResult:
    """What a run returned and how long its three parts took, in nanoseconds.

    ``outputs`` are whole-batch tensors in the specification's order. The parts are: forming the
    inputs (the copy, and the way to the device), the forward pass, and bringing the outputs back.
    On a GPU they add up to the time from launch to result; a wait for the batch before is part of the
    first, and ``device`` has what the device itself measured.
    """

    outputs: list[Tensor]
    input_ns: int
    infer_ns: int
    output_ns: int
    device: DeviceRun | None = None


class Model(Protocol):
    """A loaded model on one device, used by one worker stream and by nobody else.

    It is made, attached, run and closed on the stream's thread; a stream may hand it over to
    another thread between runs, which then attaches it again. ``run`` may block for as long as
    the model takes and must not keep a reference to the parts. Anything it raises fails the
    batch, not the stream.
    """

    @property
    def spec(self) -> ModelSpec:
        """The specification, completed by what loading has taught."""
        ...

    def attach(self, intra_op_threads: int) -> None:
        """Prepare the calling thread to run the model, with this many threads inside an operation."""
        ...

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Run one batch.

        Raises:
            ModelFailed: the model returned what its specification doesn't allow.
            Exception: whatever the model raises.
        """
        ...

    def close(self) -> None:
        """Free the device's memory. Called once, after the last run."""
        ...


def batch_buckets(max_batch_size: int, preferred: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the batch sizes that warm-up runs: powers of two, the preferred sizes and the maximum."""
    if max_batch_size <= 0:
        return (1,)
    sizes = {max_batch_size, *preferred}
    size = 1
    while size < max_batch_size:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))


def _is_boolean(data: Buffer) -> bool:
    return not bytes(data).translate(None, b"\x00\x01")
