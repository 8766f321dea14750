"""The server without a network: load models, submit requests, ask how things are."""

from tensorferry.engine.engine import Engine
from tensorferry.engine.live import LiveModel, ModelState

__all__ = ["Engine", "LiveModel", "ModelState"]
