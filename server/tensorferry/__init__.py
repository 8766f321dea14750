"""Tensorferry: a gRPC inference server with dynamic batching.

Importing the package loads neither torch nor grpc; the parts do when they are used.
"""

__version__ = "0.1.0"
