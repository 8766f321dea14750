"""Types of the extension; see ``_scan.pyx``."""

from collections.abc import Sequence

from tensorferry.tensors import Buffer, Tensor

def scan(body: bytes) -> tuple[bytes, bytes, list[Buffer], bytes] | None: ...
def join_response(
    head: bytes,
    identity: bytes,
    described: bytes,
    outputs: Sequence[Tensor],
    first_row: int,
    rows: int,
    batch_rows: int,
) -> bytes: ...
