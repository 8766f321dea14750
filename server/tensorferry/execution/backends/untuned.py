"""The refusal of tuning by formats that torch doesn't run operation by operation. Needs no torch."""

from __future__ import annotations

from tensorferry.errors import ModelLoadError
from tensorferry.model import ModelSpec

__all__ = ["refuse_tuning"]


def refuse_tuning(spec: ModelSpec, where: str, what: str, instead: str, has_graphs: bool = False) -> None:
    """Check that nothing is asked of a model that its format can't do.

    Where the configuration names the format it has been refused at its line; this is for the others.

    Args:
        spec: The specification.
        where: The beginning of the error.
        what: The format in words: "an ONNX model".
        instead: How its owner gets the same, to stand behind "remove it, or".
        has_graphs: Whether CUDA graphs may be captured of it.

    Raises:
        ModelLoadError: the first parameter that it can't have.
    """
    tuning = spec.tuning
    for name, value, is_asked, remedy in (
        ("autocast", tuning.autocast.lower(), bool(tuning.autocast), instead),
        ("memory_format", "channels_last", tuning.channels_last, instead),
        ("ENABLE_WEIGHT_SHARING", "true", tuning.shares_weights, "lower the count of instance_group"),
        ("cuda_graphs", "on", tuning.cuda_graphs == "on" and not has_graphs, "say auto"),
    ):
        if is_asked:
            raise ModelLoadError(
                f"{where}: the parameter {name} is {value}, which {what} can't have; remove it, or {remedy}"
            )
