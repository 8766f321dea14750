"""Types of the extension; see ``_scan.pyx``."""

from tensorferry.tensors import Buffer

def scan(body: bytes) -> tuple[bytes, bytes, list[Buffer]] | None: ...
def join_response(
    head: bytes,
    identity: bytes,
    outputs: bytes,
    datas: list[Buffer],
    first_row: int,
    rows: int,
    batch_rows: int,
) -> bytes: ...
