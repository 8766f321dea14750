"""A directory of models to specifications: finds, parses and validates; loads no model."""

from __future__ import annotations

from tensorferry.repository.config_file import MAX_CONFIG_BYTES
from tensorferry.repository.scan import Pinned, RepositoryModel, model_directories, read_model, scan
from tensorferry.repository.spec import DEFAULT_MAX_BATCH_SIZE, DEFAULT_MODEL_FILENAME

__all__ = [
    "DEFAULT_MAX_BATCH_SIZE",
    "DEFAULT_MODEL_FILENAME",
    "MAX_CONFIG_BYTES",
    "Pinned",
    "RepositoryModel",
    "model_directories",
    "read_model",
    "scan",
]
