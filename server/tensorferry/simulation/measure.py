"""A real model's run-time curve: loaded and warmed up here, as serving would."""

from __future__ import annotations

from pathlib import Path

from tensorferry.errors import SettingsError
from tensorferry.execution.backends import opener
from tensorferry.execution.warmup import warm_up
from tensorferry.model import ModelSpec
from tensorferry.repository import scan
from tensorferry.simulation.curves import RunCurve

__all__ = ["measure"]


def measure(path: Path) -> tuple[ModelSpec, RunCurve]:
    """Load the newest version of the model in the directory ``path`` and time its runs.

    Raises:
        ConfigurationError: no such model, or it can't be served.
    """
    if not path.is_dir():
        raise SettingsError(f"--model {path} isn't a directory; give a model's own: REPOSITORY/NAME")
    path = path.resolve()
    entry = next((each for each in scan(path.parent) if each.name == path.name), None)
    if entry is not None and entry.error is not None:
        raise entry.error
    if entry is None or not entry.versions:
        raise SettingsError(f"--model {path} holds no model; give a model's own directory: REPOSITORY/NAME")
    spec = max(entry.versions, key=lambda each: each.version)
    model = opener(spec)(spec, spec.devices[0])
    try:
        model.attach(spec.intra_op_threads or 1)
        report = warm_up(model)
        spec = model.spec
    finally:
        model.close()
    if report.skipped:
        raise SettingsError(f"--model {path} can't be measured: {report.skipped}")
    return spec, _rising(report.run_s)


def _rising(run_s: dict[int, float]) -> RunCurve:
    """Smooth out what the machine's noise did: more rows never take less time."""
    rows = sorted(run_s)
    seconds: list[float] = []
    for each in rows:
        seconds.append(max(run_s[each], seconds[-1] if seconds else 0.0))
    return RunCurve(tuple(rows), tuple(seconds))
