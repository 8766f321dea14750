"""Generated protobuf and gRPC code: all that the client shares with the server."""
