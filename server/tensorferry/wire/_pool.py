"""The descriptor pool that holds Tensorferry's messages.

Not protobuf's default pool: ``tritonclient`` registers the same full names
(``inference.ModelInferRequest``, ...) there from files of its own, and one process may
import both. The generated modules call ``Default()`` on this module; see ``tools/protos.py``.
"""

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()


def Default() -> descriptor_pool.DescriptorPool:  # noqa: N802 - the name that generated code calls
    """Return the pool; named as in protobuf's own module, which this one stands in for."""
    return POOL
