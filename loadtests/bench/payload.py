"""Request bodies, and the repository of models that every server is given."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tensorferry.wire import open_inference_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"

FRAUD_CONFIG = """
name: "fraud"
platform: "pytorch_libtorch"
max_batch_size: 64
input { name: "features" data_type: TYPE_FP32 dims: [ 30 ] }
output { name: "score" data_type: TYPE_FP32 dims: [ 1 ] }
dynamic_batching { }
"""
IMAGE_CONFIG = """
name: "image"
platform: "pytorch_libtorch"
max_batch_size: 8
input { name: "pixels" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] }
output { name: "same" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] }
dynamic_batching { }
"""


class _Identity(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels + 0.0


@dataclass(frozen=True, slots=True)
class Body:
    """A request, and the bytes of the right answer.

    ``framed`` is a file that holds the request with gRPC's five-byte prefix, ``raw`` one that holds
    the bytes of its tensor alone, for servers that take such.
    """

    message: bytes
    framed: Path
    raw: Path
    answer: bytes


def write_repository(root: Path) -> None:
    """Write the models ``fraud`` (30 -> 64 -> 1) and ``image`` (identity-like, 600 KB) in Triton's layout."""
    torch.manual_seed(7)
    layers = torch.nn.Sequential(
        torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1), torch.nn.Sigmoid()
    )
    for name, module, config in (("fraud", layers, FRAUD_CONFIG), ("image", _Identity(), IMAGE_CONFIG)):
        (root / name / "1").mkdir(parents=True, exist_ok=True)
        (root / name / "config.pbtxt").write_text(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(module.eval()).save(str(root / name / "1" / "model.pt"))


def fraud_body(root: Path) -> Body:
    """One row of 30 features."""
    features = np.linspace(-2, 2, 30, dtype=np.float32).reshape(1, 30)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        score = torch.jit.load(str(root / "fraud" / "1" / "model.pt"))(torch.from_numpy(features))
    return _body(root / "fraud.bin", "fraud", "features", features, score.numpy().tobytes())


def image_body(root: Path) -> Body:
    """One image of 3 x 224 x 224, 602,112 bytes."""
    pixels = np.arange(3 * 224 * 224, dtype=np.float32).reshape(1, 3, 224, 224)
    return _body(root / "image.bin", "image", "pixels", pixels, pixels.tobytes())


def _body(path: Path, model: str, name: str, array: np.ndarray, answer: bytes) -> Body:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name=name, datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    raw = message.SerializeToString()
    path.write_bytes(b"\0" + struct.pack(">I", len(raw)) + raw)
    tensor = path.with_suffix(".raw")
    tensor.write_bytes(array.tobytes())
    return Body(raw, path, tensor, answer)
