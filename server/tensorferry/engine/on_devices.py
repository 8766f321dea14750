"""What a live model has to say of the GPUs that it is on."""

from __future__ import annotations

from tensorferry.errors import ModelLoadError
from tensorferry.execution.launching import DeviceStatus
from tensorferry.model import ModelSpec

__all__ = ["check_one_process", "described"]


def check_one_process(spec: ModelSpec, processes: int) -> None:
    """Refuse a model on a GPU in one of several processes: each would have copies and a context of its own.

    Raises:
        ModelLoadError: says how to serve it.
    """
    gpus = sorted({device for device in spec.devices if device != "cpu"})
    if processes > 1 and gpus:
        raise ModelLoadError(
            f"model {spec.name!r} version {spec.version} is on {', '.join(gpus)}, and the server has"
            f" {processes} processes: a GPU belongs to one process, whose streams share it. Start the server"
            " with --processes 1 (a GPU's model needs no more: raise the count of its instance_group"
            " instead), or give the model an instance_group of kind KIND_CPU"
        )


def described(status: DeviceStatus) -> str:
    """Say what a stream's copy has on its device, for the log."""
    memory = status.memory
    parts = {"weights": memory.weights, "staging": memory.staging, "graphs": memory.graphs}
    held = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts.items())
    graphs = f"graphs of {', '.join(map(str, status.graphs))} rows" if status.graphs else "no graphs"
    why_not = f" ({status.no_graphs})" if status.no_graphs else ""
    return (
        f"{status.device}: {memory.total / 2**20:.1f} MiB ({held}, workspace {memory.workspace / 2**20:.1f});"
        f" {graphs}{why_not}"
    )
