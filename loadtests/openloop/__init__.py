"""An open-loop load generator for gRPC inference servers: calls leave when planned, answered or not."""
