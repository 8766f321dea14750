"""Take the pictures of the live page that the documentation shows: a real server, under load, in Chromium.

``python -m tools.screenshot [--seconds 75]`` writes docs/images/live-page.png, live-page-dark.png and
live-page-phone.png. One model is within its objective and has a canary, one is asked for more than it can
answer in time, and one waits on purpose to fill its batches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import grpc
import numpy as np
from PIL import Image
from tools.chromium import Browser, missing

from tensorferry.testing.models import Mlp, save, write_identity, write_mlp, write_slow
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc
from tensorferry.wire import rollout_pb2, rollout_pb2_grpc

_IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"

#: Name of the file, width, is a phone, is dark.
_PICTURES: Final = (
    ("live-page.png", 1280, False, False),
    ("live-page-dark.png", 1280, False, True),
    ("live-page-phone.png", 375, True, False),
)

#: A mode in which a rollout may be changed by request.
_FLAGS: Final = ("--model-control-mode", "poll")

_Make = Callable[[], pb.ModelInferRequest]


def main() -> None:
    """Serve, load, wait, and take the pictures."""
    parser = argparse.ArgumentParser(description="Take pictures of the live page under load.")
    parser.add_argument("--seconds", type=float, default=75.0, help="how long there is load before")
    seconds = parser.parse_args().seconds
    if missing():
        raise SystemExit(f"screenshot: {missing()}")
    with tempfile.TemporaryDirectory(prefix="screenshot-") as work:
        root = Path(work)
        _write_models(root / "models")
        with ServerProcess(root / "models", root / "log", flags=_FLAGS) as server, Browser() as browser:
            _roll_out(server.grpc_address)
            end = threading.Event()
            load = threading.Thread(target=lambda: asyncio.run(_load(server.grpc_address, end)))
            load.start()
            try:
                _take(browser, f"http://{server.http_address}/", seconds)
            finally:
                end.set()
                load.join()


def _write_models(root: Path) -> None:
    objective = 'parameters {{ key: "latency_objective_ms" value {{ string_value: "{}" }} }}\n'
    every = "version_policy { all { } }\n"
    fraud = write_mlp(root, "fraud", options=objective.format(50) + every + "dynamic_batching { }")
    save(Mlp(), fraud / "2" / "model.pt")
    write_slow(root, "ranking", 3, options=objective.format(60) + "dynamic_batching { }")
    hold = "dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 20000 }"
    write_identity(root, "embedding", dims=(256,), max_batch_size=32, options=hold)


def _roll_out(address: str) -> None:
    """Point the label stable at version 1 of fraud, canary at 2, and send a tenth there."""
    with grpc.insecure_channel(address) as channel:
        stub = rollout_pb2_grpc.ModelRolloutStub(channel)  # type: ignore[no-untyped-call]
        for label, version in (("stable", 1), ("challenger", 2)):
            wish = rollout_pb2.SetLabel(label=label, version=version)
            stub.ChangeRollout(rollout_pb2.ChangeRolloutRequest(model_name="fraud", set_label=wish))
        shares = [
            rollout_pb2.Share(target="stable", weight=0.9),
            rollout_pb2.Share(target="challenger", weight=0.1),
        ]
        split = rollout_pb2.SetSplit(shares=shares)
        stub.ChangeRollout(rollout_pb2.ChangeRolloutRequest(model_name="fraud", set_split=split))


def _request(model: str, name: str, array: np.ndarray) -> pb.ModelInferRequest:
    kind = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()])
    request.inputs.add(name=name, datatype=kind, shape=array.shape)
    return request


def _fraud() -> pb.ModelInferRequest:
    rows = random.choice((1, 1, 2, 4))
    return _request("fraud", "features", np.random.rand(rows, 30).astype(np.float32))


def _ranking() -> pb.ModelInferRequest:
    return _request("ranking", "work", np.full((1, 1), random.randint(150, 300), np.int64))


def _embedding() -> pb.ModelInferRequest:
    return _request("embedding", "x", np.random.rand(1, 256).astype(np.float32))


async def _load(address: str, end: threading.Event) -> None:
    """Call until ``end``: an open loop for each model, with Poisson arrivals at a rate that swings."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        loops = (
            _keep_calling(stub, make, rate, end)
            for make, rate in ((_fraud, 160), (_ranking, 450), (_embedding, 90))
        )
        await asyncio.gather(*loops)


async def _keep_calling(
    stub: pb_grpc.GRPCInferenceServiceStub, make: _Make, rate_per_s: float, end: threading.Event
) -> None:
    calls: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    due = began = loop.time()
    while not end.is_set():
        swing = 1.0 + 0.35 * np.sin((due - began) / 9.0)
        due += random.expovariate(rate_per_s * swing)
        await asyncio.sleep(max(0.0, due - loop.time()))
        if len(calls) < 300:
            call = asyncio.create_task(_call(stub, make()))
            calls.add(call)
            call.add_done_callback(calls.discard)
    await asyncio.gather(*calls)


async def _call(stub: pb_grpc.GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):  # refused: the page shows it
        await stub.ModelInfer(request, timeout=5)


def _take(browser: Browser, url: str, seconds: float) -> None:
    pause = threading.Event()
    browser.screen(1280, 900)
    browser.open(f"{url}#{quote('fraud/1', safe='')}")
    pause.wait(seconds)
    for name, width, is_phone, is_dark in _PICTURES:
        chosen = "ranking/1" if is_dark else "fraud/1"
        browser.run(f"choose({chosen!r})")
        browser.screen(width, 900, is_phone=is_phone, is_dark=is_dark)
        pause.wait(2.5)
        height = 1500 if is_phone else browser.run("return document.documentElement.scrollHeight")
        browser.screen(width, height, is_phone=is_phone, is_dark=is_dark)
        pause.wait(2.5)
        _IMAGES.mkdir(parents=True, exist_ok=True)
        _write(browser.picture(), _IMAGES / name)
        print(f"{_IMAGES / name}: {(_IMAGES / name).stat().st_size // 1000} KB", flush=True)
    for line in browser.console():
        print(f"the page's console says: {line}")


def _write(picture: bytes, path: Path) -> None:
    """Write it in 256 colours, which a page of flat ones doesn't miss: a third of the bytes."""
    flat = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    flat.save(path, optimize=True)


if __name__ == "__main__":
    main()
