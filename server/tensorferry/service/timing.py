"""A response's own timing breakdown, for requests that ask for it by ``parameters["timing"] = true``."""

from __future__ import annotations

from tensorferry.batching.pending import Pending
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["timing_parameters"]


def timing_parameters(request: Pending, answered_at: float, is_ensemble: bool = False) -> bytes:
    """Return a serialised ModelInferResponse of parameters alone; appended to a response, it adds them.

    ``answered_at`` is an instant of the engine's clock in seconds. All durations are whole microseconds:
    ``timing_total_us`` from the request's submission until ``answered_at``, ``timing_queue_us`` until its
    batch left, ``timing_hold_us`` that the batch was held for company, ``timing_run_us`` of the model's run.
    An ensemble has the total alone; an answer that was kept has the total and ``timing_cached``.
    """
    response = pb.ModelInferResponse()
    parameters = response.parameters
    record = request.record
    parameters["timing_total_us"].int64_param = _us(answered_at - request.enqueued_at)
    if record is not None:
        parameters["timing_queue_us"].int64_param = _us(record.started_at - request.enqueued_at)
        parameters["timing_hold_us"].int64_param = _us(record.hold_s)
        parameters["timing_run_us"].int64_param = _us(record.run_s)
        parameters["timing_batch_rows"].int64_param = record.rows
        parameters["timing_batch_requests"].int64_param = record.requests
        parameters["timing_batch_reason"].string_param = record.reason
    elif not is_ensemble:
        parameters["timing_cached"].bool_param = True
    return response.SerializeToString()


def _us(seconds: float) -> int:
    # Below 0 for a request that joined an equal one's run after that had left.
    return max(0, round(seconds * 1e6))
