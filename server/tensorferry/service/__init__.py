"""The RPCs: decode, call the engine, encode. Knows messages and models, not sockets."""
