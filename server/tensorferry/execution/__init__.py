"""Running batches: worker streams, the pool of a model's streams, warm-up, and the backends."""
