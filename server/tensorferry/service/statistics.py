"""A live model's counts as Triton's ModelStatistics message."""

from __future__ import annotations

from tensorferry.engine import LiveModel
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["model_statistics"]


def model_statistics(live: LiveModel) -> pb.ModelStatistics:
    """Build the message from one snapshot, so that its parts agree with each other."""
    counts = live.statistics()
    cache = live.cache_statistics()

    def duration(count: int, ns: int) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=count, ns=ns)

    answered = counts.success_count
    computed = answered - cache.hit_count
    return pb.ModelStatistics(
        name=live.spec.name,
        version=str(live.spec.version),
        last_inference=counts.last_inference_ms,
        inference_count=counts.inference_count,
        execution_count=counts.execution_count,
        inference_stats=pb.InferStatistics(
            success=duration(answered, counts.success_ns),
            fail=duration(counts.failure_count, counts.failure_ns),
            queue=duration(answered, counts.queue_ns),
            compute_input=duration(computed, counts.compute_input_ns),
            compute_infer=duration(computed, counts.compute_infer_ns),
            compute_output=duration(computed, counts.compute_output_ns),
            cache_hit=duration(cache.hit_count, cache.hit_ns),
            cache_miss=duration(cache.miss_count, cache.miss_ns),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=duration(size.count, size.compute_input_ns),
                compute_infer=duration(size.count, size.compute_infer_ns),
                compute_output=duration(size.count, size.compute_output_ns),
            )
            for rows, size in counts.batch_sizes.items()
        ],
    )
