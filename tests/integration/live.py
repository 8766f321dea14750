"""Servers whose models change while they run: models that tell their version, and ways to change them."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch
from tests.integration.support import PATIENCE_S, wait_until, x_request, y_of
from torch import Tensor, nn

from tensorferry.cli import main
from tensorferry.testing.models import BATCHING, save
from tensorferry.testing.process import Limits, ServerProcess, ServerProcessError
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc
from tensorferry.wire import rollout_pb2, rollout_pb2_grpc

#: Calls that are under way at once, where many are made.
AT_ONCE = 32

#: One number in, one out; on one thread, so that two streams don't get in each other's way.
CONFIG = (
    "max_batch_size: {rows}\n"
    'input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}\n'
    'output {{ name: "y" data_type: TYPE_FP32 dims: 1 }}\n'
    'parameters {{ key: "INTRA_OP_THREAD_COUNT" value {{ string_value: "1" }} }}\n'
)


class Plus(nn.Module):
    """Adds a number to its input: that of the version, so that an answer tells who gave it."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = float(number)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` FP32 [rows, 1] to the same shape."""
        return x + self.number


class Scorer(nn.Module):
    """A score between 0 and 1 that grows with the input; or what ``fault`` makes of inputs above 0.

    The fault is ``raising``, ``nan`` or ``wrong`` (1 minus the score, squeezed). The warm-up, whose
    inputs are 0, sees none of them: so they are loaded. ``rounds`` makes it slow.
    """

    def __init__(self, fault: str = "", rounds: int = 0) -> None:
        super().__init__()
        self.fault = fault
        self.rounds = rounds
        self.matrix = nn.Parameter(torch.full((128, 128), 1 / 128))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` FP32 [rows, 1] to FP32 [rows, 1]."""
        product: Tensor = self.matrix
        for _ in range(self.rounds):
            product = product @ self.matrix
        score = torch.sigmoid(4.0 * x - 2.0) + product[0, 0] * 0.0
        if self.fault == "raising" and bool((x > 0.0).any()):
            raise ValueError("this version is broken")
        if self.fault == "nan":
            return torch.where(x > 0.0, torch.full_like(x, float("nan")), score)
        if self.fault == "wrong":
            return torch.where(x > 0.0, 1.0 - 0.5 * score, score)
        return score


def write_version(root: Path, name: str, version: int, module: nn.Module) -> Path:
    """Publish a version the way that ``push`` does, by a rename; return its directory."""
    directory = root / name / str(version)
    hidden = directory.with_name(f".{version}")
    save(module, hidden / "model.pt")
    hidden.rename(directory)
    return directory


def write_plus(
    root: Path, name: str, *versions: int, options: str = BATCHING, rows: int = 16, offset: float = 0.0
) -> Path:
    """Write a model whose versions add their own number, and ``offset``, to ``x``."""
    write_config(root, name, options, rows)
    for version in versions:
        write_version(root, name, version, Plus(version + offset))
    return root / name


def write_config(root: Path, name: str, options: str = BATCHING, rows: int = 16) -> None:
    """Write the configuration of a model from ``x`` to ``y``, both FP32 [1]."""
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(CONFIG.format(rows=rows) + options, encoding="utf-8")


def tensorferry(*arguments: object, expect: int = 0) -> str:
    """Run a command of the command line, in this process to save its start; return what it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([str(argument) for argument in arguments])
    assert status == expect, f"{status}: {said.getvalue()}"
    return said.getvalue()


def push(root: Path, name: str, source: Path, *more: object) -> int:
    """Push a file or a directory by the command; return the version that it became."""
    flags = ("--name", name, "--repository", root, "--git-commit", "0" * 8, "--author", "test", "--json")
    published = tensorferry("push", source, *flags, *more)
    return int(json.loads(published)["version"])


@dataclass(frozen=True)
class Answer:
    """Who answered, and what."""

    version: int
    y: float


@dataclass(frozen=True)
class LiveServer:
    """A server that runs, its repository and a connection to it."""

    root: Path
    process: ServerProcess
    channel: grpc.Channel

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC service."""
        return self.process.grpc_address

    @property
    def stub(self) -> pb_grpc.GRPCInferenceServiceStub:
        """The inference service."""
        return pb_grpc.GRPCInferenceServiceStub(self.channel)

    @property
    def rollouts(self) -> rollout_pb2_grpc.ModelRolloutStub:
        """The rollout service."""
        return rollout_pb2_grpc.ModelRolloutStub(self.channel)

    def load(self, name: str) -> None:
        """Load a model as the repository has it."""
        self.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), timeout=PATIENCE_S)

    def infer(self, model: str, x: float = 0.0, **named: str) -> Answer:
        """Make a call; ``named`` is as ``request`` takes it."""
        return answer_of(self.stub.ModelInfer(request(model, x, **named), timeout=PATIENCE_S))

    def infer_all(self, requests: Iterable[pb.ModelInferRequest]) -> list[Answer | grpc.StatusCode]:
        """Make many calls, AT_ONCE at a time; return what became of each, in their order."""
        stub = self.stub
        found: list[Answer | grpc.StatusCode] = []
        calls: list[grpc.Future] = []
        for each in requests:
            calls.append(stub.ModelInfer.future(each, timeout=PATIENCE_S))
            if len(calls) == AT_ONCE:
                found += [outcome_of(call) for call in calls]
                calls = []
        return found + [outcome_of(call) for call in calls]

    def index(self, model: str) -> dict[int, tuple[str, str]]:
        """State and reason of each version of a model; version 0 is the model as a whole."""
        lines = self.stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=PATIENCE_S).models
        return {int(each.version or 0): (each.state, each.reason) for each in lines if each.name == model}

    def ready(self, model: str) -> list[int]:
        """The versions that are ready."""
        return sorted(number for number, (state, _) in self.index(model).items() if state == "READY")

    def status(self, model: str) -> rollout_pb2.Rollout:
        """A model's rollout."""
        asked = rollout_pb2.RolloutStatusRequest(model_name=model)
        return self.rollouts.RolloutStatus(asked, timeout=PATIENCE_S).rollout

    def report(self, model: str) -> dict[int, rollout_pb2.Arm]:
        """What each version has answered."""
        asked = rollout_pb2.RolloutReportRequest(model_name=model)
        return {arm.version: arm for arm in self.rollouts.RolloutReport(asked, timeout=PATIENCE_S).arms}

    def change(self, model: str, **change: object) -> rollout_pb2.Rollout:
        """Change a rollout: ``set_label=SetLabel(...)`` and so on; return what it is then."""
        wanted = rollout_pb2.ChangeRolloutRequest(model_name=model, **change)
        return self.rollouts.ChangeRollout(wanted, timeout=PATIENCE_S).rollout

    def label(self, model: str, **versions: int) -> None:
        """Point labels at versions."""
        for label, version in versions.items():
            self.change(model, set_label=rollout_pb2.SetLabel(label=label, version=version))

    def split(self, model: str, **weights: float) -> None:
        """Divide a model's requests among labels."""
        shares = [rollout_pb2.Share(target=name, weight=weight) for name, weight in weights.items()]
        self.change(model, set_split=rollout_pb2.SetSplit(shares=shares))

    def shadow(self, model: str, target: str, share: float = 1.0) -> None:
        """Give a version copies of a model's requests."""
        shadow = rollout_pb2.Shadow(target=target, share=share)
        self.change(model, set_shadow=rollout_pb2.SetShadow(shadow=shadow))

    def start_canary(
        self, model: str, target: str, steps: Sequence[float], step_requests: int, **guards: float
    ) -> None:
        """Start a canary."""
        start = rollout_pb2.StartCanary(
            target=target,
            steps=steps,
            step_requests=step_requests,
            guards=rollout_pb2.Guards(**guards),
        )
        self.change(model, start_canary=start)


def request(
    model: str, x: float = 0.0, *, key: str = "", request_id: str = "", version: str = "", label: str = ""
) -> pb.ModelInferRequest:
    """Build a request of one row, with what it names."""
    made = x_request(model, x, request_id=request_id)
    made.model_version = version
    if key:
        made.parameters["split_key"].string_param = key
    if label:
        made.parameters["label"].string_param = label
    return made


def answer_of(response: pb.ModelInferResponse) -> Answer:
    """Return who answered, and what."""
    (y,) = y_of(response)
    return Answer(int(response.model_version), y)


def outcome_of(call: grpc.Future) -> Answer | grpc.StatusCode:
    """Wait for a call's end; return its answer, or the status that it failed with."""
    try:
        return answer_of(call.result(timeout=PATIENCE_S))
    except grpc.RpcError as error:
        return error.code()


@contextlib.contextmanager
def started(root: Path, log: Path, *flags: str) -> Iterator[LiveServer]:
    """Start a server and connect to it; in the end it has to stop well, unless it was killed."""
    process = ServerProcess(root, log, flags=flags, limits=Limits(60.0, 60.0))
    try:
        process.start()
        process.wait_ready()
        with grpc.insecure_channel(process.grpc_address) as channel:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            yield LiveServer(root, process, channel)
        if is_running(process):
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0, process.log()[-2000:]
    finally:
        process.kill()


def is_running(process: ServerProcess) -> bool:
    """Whether the server hasn't ended."""
    try:
        process.require_alive()
    except ServerProcessError:
        return False
    return True


def wait_for(server: LiveServer, model: str, versions: list[int]) -> None:
    """Wait until exactly these versions of a model are ready."""
    wait_until(lambda: server.ready(model) == versions, f"{model} has versions {versions} ready")
