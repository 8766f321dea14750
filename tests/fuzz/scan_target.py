"""The request scanner and the reply joiner, on any bytes, against protobuf."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from tests.fuzz.bench import Broken
from tests.fuzz.program import Reader

from tensorferry.service import _scan
from tensorferry.tensors import Tensor
from tensorferry.wire import open_inference_pb2 as pb


def seeds() -> list[bytes]:
    """Requests of the usual forms, to start from."""
    request = pb.ModelInferRequest(model_name="mlp", id="7", raw_input_contents=[bytes(12), bytes(5000)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    request.outputs.add(name="y")
    request.parameters["timeout"].int64_param = 5
    typed = pb.ModelInferRequest(model_name="mlp", model_version="1")
    typed.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
    # Numbers that are longer than they need be: protobuf takes such lengths, and tags up to five bytes.
    wide = [b"\xba" + b"\x80" * more + b"\x00\x01a" for more in (0, 3, 4, 8)]
    wide += [b"\x3a\x81" + b"\x80" * more + b"\x00a" for more in (0, 3, 4, 8)]
    return [b"", request.SerializeToString(), typed.SerializeToString(), *wide]


def run_scan(body: bytes) -> None:
    """Scan ``body`` as a request, and join a reply out of it; raise if protobuf sees it differently."""
    _check_scan(body)
    _check_join(Reader(body))


def _check_scan(body: bytes) -> None:
    scanned = _scan.scan(body)
    if scanned is None:
        return
    key, identity, raws, split_key = scanned
    try:
        rest = pb.ModelInferRequest.FromString(key)
        rest.id = identity.decode()
        if split_key:
            rest.parameters["split_key"].string_param = split_key.decode()
    except (DecodeError, UnicodeDecodeError):
        rest = None
    try:
        whole = pb.ModelInferRequest.FromString(body)
    except DecodeError:
        whole = None
    if rest is not None:
        rest.raw_input_contents.extend(bytes(raw) for raw in raws)
    # Compared as bytes: a NaN among the values equals nothing.
    if (rest is None) != (whole is None) or (
        rest is not None
        and rest.SerializeToString(deterministic=True) != whole.SerializeToString(deterministic=True)
    ):
        raise Broken(f"the scanner and protobuf differ over {body.hex()}")


def _check_join(reader: Reader) -> None:
    batch_rows, first_row, rows = (reader.byte() % 9 - 1 for _ in range(3))
    identity = b"i" * (reader.byte() * 3)
    row_sizes = [reader.byte() * reader.byte() % 7000 for _ in range(reader.byte() % 20)]
    datas = [bytes([index % 251]) * (size * max(batch_rows, 0)) for index, size in enumerate(row_sizes)]
    right = batch_rows > 0 and first_row >= 0 and rows >= 0 and first_row + rows <= batch_rows
    try:
        tensors = [Tensor("x", "UINT8", (batch_rows,), memoryview(data)) for data in datas]
        joined = _scan.join_response(b"\x0a\x01m", identity, b"", tensors, first_row, rows, batch_rows)
    except ValueError:
        if right and len(datas) <= 16:
            raise
        return
    if not right:
        raise Broken(f"joined rows {first_row} to {first_row + rows} of a batch of {batch_rows}")
    expected = pb.ModelInferResponse(model_name="m", id=identity.decode())
    expected.raw_output_contents.extend(
        data[size * first_row : size * (first_row + rows)]
        for size, data in zip(row_sizes, datas, strict=True)
    )
    if pb.ModelInferResponse.FromString(joined) != expected:
        raise Broken("the joined reply isn't what protobuf would have made")
