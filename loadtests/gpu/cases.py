"""The cases: what is sent to which model, and one run of each against a server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import grpc
import numpy as np

from loadtests.gpu.clients import Clients, Load, Seen, seen_in
from loadtests.gpu.jobs import Floats
from loadtests.gpu.models import BERT, FRAUD, IMAGE, IMAGE_BYTES, Variant
from loadtests.gpu.nvml import Watcher
from loadtests.gpu.payloads import CHECKED, checked_call, images, mix_of, rows_of_fraud, sequences
from loadtests.gpu.scale import Scale
from loadtests.gpu.server_says import Between, scrape
from loadtests.gpu.shared import Region
from tensorferry.benchmark.requests import infer_message
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

__all__ = [
    "BASE_CASES",
    "COMPARED_CASES",
    "Case",
    "Instruments",
    "Measured",
    "Server",
    "WrongAnswer",
    "check_answers",
    "is_near",
    "measure",
]

_DIFFERENT: Final = 32
_ANSWER_S: Final = 20.0
#: What checking the answers takes at least; the load goes on meanwhile.
_CHECK_S: Final = 0.4
#: Of FP16 sums in another order, and of another batch size's kernels.
_TOLERANCE: Final = 0.03
_OPEN_SHARE: Final = 0.7
_SEQUENCES_PER_BATCH: Final = 20


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent. ``way`` is "wire" or "shm" (shared memory); a large call has several images.

    ``place`` chooses the fraud model's calls in flight. An open loop sends at a share of the rate of
    ``closed``.
    """

    model: str
    way: str = "wire"
    is_large_call: bool = False
    place: int = 0
    is_open: bool = False

    def name(self, scale: Scale) -> str:
        """What the table calls it."""
        if self.model == FRAUD:
            what = f"fraud, {scale.in_flight[self.place]}" + ("" if self.is_open else " in flight")
        elif self.model == BERT:
            what = "bert, mixed" + ("" if self.is_open else " lengths")
        else:
            what = f"{self.model}, {self.way}" + (
                f", {self.rows(scale)} a call" if self.is_large_call else ""
            )
        return f"{what}, open {_OPEN_SHARE:.0%}" if self.is_open else what

    def rows(self, scale: Scale) -> int:
        """Rows of one call."""
        return scale.images_per_call if self.is_large_call else 1

    @property
    def closed(self) -> Case:
        """The closed loop that an open one takes its rate from."""
        return Case(self.model, self.way, self.is_large_call, self.place)


_SHM: Final = "shm"

#: In the order in which they run against the server with the base configuration.
BASE_CASES: Final = (
    Case(IMAGE, _SHM),
    Case(IMAGE),
    Case(BERT),
    Case(FRAUD, place=0),
    Case(FRAUD, place=1),
    Case(IMAGE, is_large_call=True),
    Case(IMAGE_BYTES, _SHM),
    Case(IMAGE_BYTES),
    Case(IMAGE, _SHM, is_open=True),
    Case(BERT, is_open=True),
    Case(FRAUD, place=0, is_open=True),
)
#: Those that every other configuration is compared by.
COMPARED_CASES: Final = (Case(IMAGE, _SHM), Case(BERT), Case(FRAUD, place=0), Case(FRAUD, place=1))


class WrongAnswer(Exception):
    """The server's answer isn't the model's: a fast wrong one is worth nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs. ``batches`` has each model's most rows in a batch.

    ``answers`` are the bare models', for the calls that answers are checked with.
    """

    process: ServerProcess
    variant: Variant
    scale: Scale
    batches: dict[str, int]
    answers: dict[str, list[list[float]]]

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC service."""
        return self.process.grpc_address


@dataclass(frozen=True, slots=True)
class Instruments:
    """Who sends, and who looks at the GPU meanwhile."""

    clients: Clients
    watcher: Watcher


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One case on one server."""

    case: Case
    variant: Variant
    rows_per_s: float
    seen: Seen
    says: Between
    gpu: dict[str, float]


def measure(server: Server, case: Case, by: Instruments, closed_rate: float | None = None) -> Measured:
    """Run the load until it is steady, and measure it.

    ``closed_rate`` is the calls/s that an open loop takes its share of.

    Raises:
        ClientsFailed, OSError, WrongAnswer, grpc.RpcError: the server doesn't answer as it should.
    """
    scale, clients, watcher = server.scale, by.clients, by.watcher
    with _load(server, case, closed_rate) as load:
        settle_s, counted_s = scale.seconds.settle, scale.seconds.case
        began_s = clients.start(server.address, load, settle_s + counted_s + _CHECK_S)
        # Time, not a condition, is what is waited for here: the load shall be steady, and then last.
        time.sleep(max(0.0, began_s + settle_s - time.perf_counter()))
        before = scrape(server.process.http_address, server.process.pid)
        with watcher.watching() as gpu:
            time.sleep(counted_s)
        after = scrape(server.process.http_address, server.process.pid)
        check_answers(server, case.model)  # among the load's calls: in their batches, slots and graphs
        sent = clients.finish()
    seen = seen_in(sent, before.at_s, after.at_s, is_open=case.is_open)
    says = Between(before, after, case.model)
    return Measured(case, server.variant, seen.calls_per_s * load.rows, seen, says, dict(gpu))


@contextlib.contextmanager
def _load(server: Server, case: Case, closed_rate: float | None) -> Iterator[Load]:
    scale, rows = server.scale, case.rows(server.scale)
    with contextlib.ExitStack() as stack:
        if case.model in (IMAGE, IMAGE_BYTES):
            is_bytes = case.model == IMAGE_BYTES
            made = [images(scale, rows, seed, is_bytes=is_bytes) for seed in range(_DIFFERENT // rows + 1)]
            if case.way == _SHM:
                region = stack.enter_context(Region(server.address, case.model, made))
                messages = region.messages(case.model, "pixels", "UINT8" if is_bytes else "FP16")
            else:
                messages = tuple(infer_message(case.model, {"pixels": each}) for each in made)
        elif case.model == BERT:
            messages = _sequences(scale)
        else:
            made_rows = [rows_of_fraud(1, seed) for seed in range(_DIFFERENT)]
            messages = tuple(infer_message(FRAUD, {"features": each}) for each in made_rows)
        in_flight = _in_flight(server, case)
        rate = max(1.0, _OPEN_SHARE * (closed_rate or 0.0)) if case.is_open else 0.0
        yield Load(messages, in_flight, rows, rate)


def _in_flight(server: Server, case: Case) -> int:
    """Enough calls for every batch that the device may have, and for the next ones to be full."""
    scale = server.scale
    if case.model == FRAUD:
        return scale.in_flight[case.place]
    batches = server.variant.batches_at_once + 2
    if case.model == BERT:
        batches += 2 * len(scale.bert.buckets)  # those wait apart from each other
    return max(1, batches * server.batches[case.model] // case.rows(scale))


def _sequences(scale: Scale) -> tuple[bytes, ...]:
    """Return requests with one sequence each, whose buckets have exactly the shares of the bare loop's."""
    mix = mix_of(scale.bert)
    found = [
        infer_message(BERT, {"ids": ids.reshape(1, -1)})
        for seed, bucket in enumerate(mix.turn)
        for ids in sequences(scale.bert, mix.of(bucket, _SEQUENCES_PER_BATCH, seed), seed)
    ]
    order = np.random.default_rng(5).permutation(len(found))
    return tuple(found[place] for place in order)


def check_answers(server: Server, model: str) -> None:
    """Make ``CHECKED`` unlike calls at once, and compare what each is told with the bare model's answer.

    Raises:
        WrongAnswer: one isn't near enough, such as another call's.
        grpc.RpcError: the server refuses.
    """
    name = {BERT: "ids", FRAUD: "features"}.get(model, "pixels")
    requests = [
        pb.ModelInferRequest.FromString(
            infer_message(model, {name: checked_call(server.scale, model, number)})
        )
        for number in range(CHECKED)
    ]
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        calls = [stub.ModelInfer.future(request, timeout=_ANSWER_S) for request in requests]
        for call, expected in zip(calls, server.answers[model], strict=True):
            answer = call.result()
            dtype = np.float16 if answer.outputs[0].datatype == "FP16" else np.float32
            got = np.frombuffer(answer.raw_output_contents[0], dtype).astype(np.float64)
            wanted = np.array(expected)
            if not is_near(got, wanted):
                raise WrongAnswer(f"{model} answers {got[:4]}, and the bare model {wanted[:4]}")


def is_near(got: Floats, wanted: Floats) -> bool:
    """Whether a row is what the bare model said, but for roundings."""
    largest = max(1e-3, float(np.abs(wanted).max()))
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= _TOLERANCE * largest)
