"""The real batcher on virtual time: what a model, a machine and a load would do, in seconds of CPU time."""
