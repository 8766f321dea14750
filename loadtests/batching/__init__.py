"""The batcher's targets, measured by one command: ``python -m loadtests.batching``."""
