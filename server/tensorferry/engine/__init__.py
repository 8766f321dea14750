"""The server without a network: models by name and version, and the way to them."""

from __future__ import annotations

from tensorferry.engine.engine import Engine
from tensorferry.engine.live import LiveModel, ModelState
from tensorferry.engine.routing import Route

__all__ = ["Engine", "LiveModel", "ModelState", "Route"]
