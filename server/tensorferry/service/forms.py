"""What decoding makes of a request, whichever way its tensors come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tensorferry.batching.pending import Pending
from tensorferry.engine import LiveModel
from tensorferry.model import Bound
from tensorferry.tensors import Buffer

__all__ = ["Decoded", "Form"]


class Form(Protocol):
    """What a request is like, and how it is answered."""

    @property
    def live(self) -> LiveModel:
        """The version that answers it."""
        ...

    @property
    def bound(self) -> Bound:
        """What its tensors are."""
        ...

    @property
    def timeout_s(self) -> float:
        """Its own wish for how long it may wait; 0.0 for none."""
        ...

    @property
    def priority(self) -> int:
        """Its level; 0 for the model's default."""
        ...

    def encode(self, identity: bytes, request: Pending) -> bytes:
        """Serialise the answer."""
        ...


#: A request, ready to be submitted: its form, its id, its data by input, and what it is told from
#: others by (the split key, or else the id). A plain tuple: one is made for each request.
Decoded = tuple[Form, bytes, Sequence[Buffer], bytes]
