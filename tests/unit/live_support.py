"""What the tests of live changes share: versions that multiply, and a server's parts around an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from tests.unit.support import run
from torch import Tensor, nn

from tensorferry.control.book import Settings
from tensorferry.control.coordinator import Coordinator
from tensorferry.control.fleet import LocalFleet
from tensorferry.control.orders import Order, read_order
from tensorferry.engine import Engine
from tensorferry.repository import RepositoryModel, manifest
from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY, Guards, Rollout, Shadow, Share
from tensorferry.tensors import array_of, tensor_of
from tensorferry.testing.models import MARKER, save

T = TypeVar("T")

NOW_MS = 1_700_000_000_000

CONFIG = (
    "max_batch_size: 4\n"
    'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
    'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    "dynamic_batching { }\n"
)
ALL = "version_policy { all { } }\n"


class Times(nn.Module):
    """Multiplies by ``factor``, so that an answer to 1 says which version gave it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Fragile(nn.Module):
    """Multiplies by 2, and raises on ``MARKER``."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == -1.0).any()):
            raise ValueError("the marker is in the batch")
        return x * 2.0


@cache
def _saved(factor: float) -> bytes:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "model.pt"
        save(Times(factor) if factor else Fragile(), path)
        return path.read_bytes()


def write_version(
    root: Path, version: int, factor: float | None = None, *, name: str = "m", config: str = CONFIG
) -> Path:
    """Write a version that multiplies by ``factor``, else by its number; 0: ``Fragile``."""
    directory = root / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    # A new file, as every tool writes it: what is served has the old one open.
    temporary = directory / ".model.pt"
    temporary.write_bytes(_saved(float(version if factor is None else factor)))
    temporary.rename(directory / "model.pt")
    if config and not (root / name / "config.pbtxt").exists():
        (root / name / "config.pbtxt").write_text(config)
    return directory


def write_broken(root: Path, version: int, name: str = "m") -> Path:
    """Write a version whose file is no model."""
    directory = root / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.pt").write_bytes(b"no model")
    return directory


def expect(directory: Path, factor: float) -> None:
    """Give a version a golden file: 3 must come out as 3 times ``factor``."""
    case = {"inputs": {"x": [[3.0]]}, "outputs": {"y": [[3.0 * factor]]}}
    (directory / "golden.json").write_text(json.dumps(case))


def seal(directory: Path, name: str = "m") -> None:
    """Write a version's manifest, as a push does."""
    manifest.write(directory, manifest.About(name, datetime.now(UTC)))


def entry_of(root: Path, rollout: Rollout = EMPTY, name: str = "m") -> RepositoryModel:
    return read_order(Order(name, root / name, None, rollout))


# -- rollouts ------------------------------------------------------------------------------------


def label(version: int, name: str = "stable") -> Callable[[Rollout], Rollout]:
    return lambda rollout: changes.set_label(rollout, name, version, NOW_MS)


def split(**weights: float) -> Callable[[Rollout], Rollout]:
    """Divide the requests; keys are ``v<version>``."""
    shares = [Share(target.removeprefix("v"), weight) for target, weight in weights.items()]
    return lambda rollout: changes.set_split(rollout, shares, NOW_MS)


def shadow(version: int, share: float = 1.0) -> Callable[[Rollout], Rollout]:
    return lambda rollout: changes.set_shadow(rollout, Shadow(str(version), share), NOW_MS)


def canary(
    version: int, steps=(0.5, 1.0), step_requests: int = 10, step_s: float = 0.0, **guards
) -> Callable[[Rollout], Rollout]:
    given = Guards(**{"min_requests": 10} | guards)
    return lambda rollout: changes.start_canary(
        rollout, str(version), steps, step_requests, step_s, given, NOW_MS
    )


def back(rollout: Rollout) -> Rollout:
    return changes.rollback(rollout, "asked for", NOW_MS)


def made(*steps: Callable[[Rollout], Rollout]) -> Rollout:
    """Return what the changes make of nothing."""
    rollout = EMPTY
    for step in steps:
        rollout = step(rollout)
    return rollout


# -- requests ------------------------------------------------------------------------------------


def x(value: float = 1.0):
    return [tensor_of("x", np.array([[value]], np.float32))]


async def ask(engine: Engine, name: str = "m", version: str = "", value: float = 1.0, key: bytes = b""):
    """Return the one number that the model answers."""
    (output,) = await engine.infer(name, x(value), version, split_key=key)
    return float(array_of(output)[0, 0])


async def outcome(coroutine: Awaitable[T]) -> T | Exception:
    """Return the result, or the error instead of raising it."""
    try:
        return await coroutine
    except Exception as error:
        return error


# -- servers -------------------------------------------------------------------------------------


def with_server(root: Path, use: Callable[[Server], Awaitable[T]], mode: str = "explicit", load=("*",)) -> T:
    """Run ``use`` with a server's core that serves the repository ``root``."""

    async def main() -> T:
        async with serving(root, mode, load) as server:
            return await use(server)

    return run(main())


class Server:
    """An engine, its fleet and its coordinator."""

    def __init__(self, root: Path, mode: str, load: tuple[str, ...]) -> None:
        self.root = root
        self.engine = Engine(1000, 2**30)
        self.fleet = LocalFleet()
        self.fleet.connect(self.engine)
        self.coordinator = Coordinator(Settings(root, mode, load), self.fleet)

    @property
    def versions(self) -> Mapping[int, object]:
        return dict(self.engine.models.get("m", {}))

    async def states(self, name: str = "m") -> dict[int, tuple[str, str]]:
        """Return version -> (state, reason)."""
        return {line.version: (line.state, line.reason) for line in (await self.fleet.states()).get(name, ())}

    async def change(self, *steps: Callable[[Rollout], Rollout], name: str = "m") -> Rollout:
        for step in steps:
            rollout = await self.coordinator.change_rollout(name, step)
        return rollout


@asynccontextmanager
async def serving(root: Path, mode: str = "explicit", load: tuple[str, ...] = ("*",)):
    """Start a server's core, with the models loaded, and close it."""
    server = Server(root, mode, load)
    orders = server.coordinator.first_orders()
    entries = [read_order(order) for order in orders]
    await server.engine.load_all(entries, {order.name: order.rollout for order in orders})
    try:
        yield server
    finally:
        await server.engine.close()


async def settle(turns: int = 5) -> None:
    """Let what is ready to run on the loop run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    """Let others run until something is so; the test's patience bounds it."""
    while not is_so():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)


assert MARKER == -1.0, "Fragile raises on it"
