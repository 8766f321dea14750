"""Clients of Tensorferry, and of any server that speaks the Open Inference Protocol over gRPC.

numpy in, numpy out. :class:`Client` blocks, :class:`AsyncClient` is for asyncio, and
:class:`FraudScorer` is the caller that has a latency budget and always answers. Importing this
package imports neither torch nor the server.
"""

from tensorferry_client._async import AsyncClient
from tensorferry_client._codec import InferResult, Parameter, TypedArray, bfloat16_of
from tensorferry_client._decisions import (
    Decision,
    FallbackPolicy,
    Reason,
    Scored,
    ScorerStatistics,
    Source,
    Thresholds,
)
from tensorferry_client._errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestError,
    ServerError,
    Unavailable,
    Unsupported,
)
from tensorferry_client._options import ClientOptions, ScorerTuning, TlsOptions
from tensorferry_client._retry import RetryPolicy
from tensorferry_client._scorer import FraudScorer
from tensorferry_client._stream import InferStream
from tensorferry_client._sync import Client

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientError",
    "ClientOptions",
    "DeadlineExceeded",
    "Decision",
    "FallbackPolicy",
    "FraudScorer",
    "InferResult",
    "InferStream",
    "InvalidRequest",
    "NotFound",
    "Overloaded",
    "Parameter",
    "Reason",
    "RequestError",
    "RetryPolicy",
    "Scored",
    "ScorerStatistics",
    "ScorerTuning",
    "ServerError",
    "Source",
    "Thresholds",
    "TlsOptions",
    "TypedArray",
    "Unavailable",
    "Unsupported",
    "bfloat16_of",
]
