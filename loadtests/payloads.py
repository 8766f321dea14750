"""What goes over the wire, as bytes: built once per run, so that sending costs no encoding."""

from __future__ import annotations

import random
import struct
from typing import Final

from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["FEATURES", "METHOD", "infer_request", "infer_response", "output_bytes", "score_bytes"]

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"

#: Features of a row, the model's input; FP32. Its output is one FP32 score for each row.
FEATURES: Final = 30

_FP32_BYTES: Final = 4


def infer_request(model: str, rows: int, seed: int = 0) -> bytes:
    """Return a ModelInferRequest of ``rows`` random rows: FP32 (rows, 30), raw."""
    draw = random.Random(seed).gauss
    values = [draw(0.0, 1.0) for _ in range(rows * FEATURES)]
    request = pb.ModelInferRequest(
        model_name=model,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name="features", datatype="FP32", shape=[rows, FEATURES])
        ],
        raw_input_contents=[struct.pack(f"<{len(values)}f", *values)],
    )
    return request.SerializeToString()


def infer_response(model: str, rows: int) -> bytes:
    """Return the ModelInferResponse of a server that scores every row 0: FP32 (rows, 1), raw."""
    response = pb.ModelInferResponse(
        model_name=model,
        model_version="1",
        outputs=[pb.ModelInferResponse.InferOutputTensor(name="score", datatype="FP32", shape=[rows, 1])],
        raw_output_contents=[bytes(score_bytes(rows))],
    )
    return response.SerializeToString()


def output_bytes(response: bytes) -> int:
    """Return how many bytes of raw output a ModelInferResponse holds.

    Raises:
        google.protobuf.message.DecodeError: it isn't one.
    """
    return sum(map(len, pb.ModelInferResponse.FromString(response).raw_output_contents))


def score_bytes(rows: int) -> int:
    """Return how many bytes the scores of ``rows`` rows take."""
    return rows * _FP32_BYTES
