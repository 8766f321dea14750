"""Tiny models, written into a model repository: as TorchScript, or by ``save_as`` in any torch format.

Each writer makes ``root/<name>/config.pbtxt`` and ``root/<name>/<version>/model.pt`` and returns
the model's directory. ``options`` is more text for the end of the configuration, such as
``dynamic_batching { max_queue_delay_microseconds: 500 }``.

This module needs torch, so ``tensorferry.testing`` doesn't import it: import it by its own name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

__all__ = [
    "BATCHING",
    "MARKER",
    "EveryDatatype",
    "Identity",
    "Mlp",
    "Raising",
    "Slow",
    "TwoInputs",
    "save",
    "save_onnx",
    "save_package",
    "save_program",
    "write_identity",
    "write_mlp",
    "write_model",
    "write_raising",
    "write_slow",
    "write_two_inputs",
]

#: A row that holds this number makes ``Raising`` raise.
MARKER: Final = -1.0

#: The default for ``options``: batching on, and nobody waits on purpose.
BATCHING: Final = "dynamic_batching { }"


class Mlp(nn.Module):
    """30 features to one score between 0 and 1, over 64 hidden units; the same weights each time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden = nn.Linear(30, 64)
        self.score = nn.Linear(64, 1)
        for parameter in self.parameters():
            parameter.data.uniform_(-0.2, 0.2, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """``features`` FP32 [rows, 30] to FP32 [rows, 1]."""
        return torch.sigmoid(self.score(torch.relu(self.hidden(features))))


class Identity(nn.Module):
    """Returns its input, of any datatype and shape."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as it is."""
        return x


class Raising(nn.Module):
    """Doubles its input, and raises if any element of the batch is ``MARKER``."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` FP32 [rows, 1] to FP32 [rows, 1]."""
        if bool((x == -1.0).any()):
            raise ValueError("the marker is in the batch")
        return x * 2.0


class TwoInputs(nn.Module):
    """Two inputs and two outputs, of different datatypes and row shapes."""

    def forward(self, values: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """``values`` FP32 [rows, 3] and ``offset`` INT64 [rows, 1] to their sum and minus ``offset``."""
        return values + offset.to(torch.float32), -offset


class Slow(nn.Module):
    """As slow as the request wishes: ``work`` counts rounds, some thirty of which take 1 ms.

    It always runs 20, so that it never counts as fast enough for the loop thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((128, 128), 1 / 128))

    def forward(self, work: Tensor) -> Tensor:
        """``work`` INT64 [rows, 1] to the same; the largest of the batch sets the time."""
        product: Tensor = self.matrix
        for _ in range(20 + int(work.max())):
            product = product @ self.matrix
        return work + (product[0, 0] * 0.0).to(torch.int64)


class EveryDatatype(nn.Module):
    """Returns each of its ten inputs, of all the datatypes that torch has here, as memory of its own."""

    DATATYPES: Final = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64")

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        x2: Tensor,
        x3: Tensor,
        x4: Tensor,
        x5: Tensor,
        x6: Tensor,
        x7: Tensor,
        x8: Tensor,
        x9: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``x<n>`` of the n-th of ``DATATYPES``, [rows, 2], to the same."""
        a = (x0.clone(), x1.clone(), x2.clone(), x3.clone(), x4.clone())
        return a + (x5.clone(), x6.clone(), x7.clone(), x8.clone(), x9.clone())  # noqa: RUF005 - TorchScript


def save(module: nn.Module, path: Path) -> None:
    """Script ``module``, unless it is a ScriptModule already, and save it as ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says at each step that TorchScript is deprecated
        cast(Any, torch.jit.script(module.eval())).save(str(path))


def save_program(
    module: nn.Module, path: Path, inputs: tuple[Tensor, ...], is_dynamic: bool = True
) -> torch.export.ExportedProgram:
    """Export ``module`` as it is called with ``inputs`` and save the program as ``path``.

    With ``is_dynamic`` the first dimension of every input counts rows and can be any size.
    """
    program = _exported(module, inputs, is_dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return program


def save_package(module: nn.Module, path: Path, inputs: tuple[Tensor, ...], is_dynamic: bool = True) -> None:
    """Compile ``module`` with AOTInductor, which needs a C++ compiler, and save the package as ``path``.

    It is written as torch writes it: without a signature.
    """
    program = _exported(module, inputs, is_dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        cast(Any, torch._inductor).aoti_compile_and_package(program, package_path=str(path))


def save_onnx(module: nn.Module, path: Path, inputs: tuple[Tensor, ...], is_dynamic: bool = True) -> None:
    """Save ``module`` as ONNX, which needs onnx and onnxscript. Outputs are ``OUTPUT__<n>``."""
    program = _exported(module, inputs, is_dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"OUTPUT__{index}" for index in range(len(program.graph_signature.user_outputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program, (), path, dynamo=True, verbose=False, external_data=False, output_names=names
        )


def _exported(
    module: nn.Module, inputs: tuple[Tensor, ...], is_dynamic: bool
) -> torch.export.ExportedProgram:
    rows = {0: torch.export.Dim("batch")} if is_dynamic else None
    shapes = tuple(rows for _ in inputs)
    return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes if is_dynamic else None)


def write_model(root: Path, name: str, module: nn.Module, config_text: str | None, version: int = 1) -> Path:
    """Write a model of your own. With ``config_text`` None it has no configuration."""
    directory = root / name
    save(module, directory / str(version) / "model.pt")
    if config_text is not None:
        (directory / "config.pbtxt").write_text(config_text, encoding="utf-8")
    return directory


def write_mlp(root: Path, name: str = "mlp", max_batch_size: int = 64, options: str = BATCHING) -> Path:
    """Write ``Mlp``: input ``features`` FP32 [30], output ``score`` FP32 [1]."""
    config = (
        f"max_batch_size: {max_batch_size}\n"
        'input { name: "features" data_type: TYPE_FP32 dims: 30 }\n'
        'output { name: "score" data_type: TYPE_FP32 dims: 1 }\n'
    )
    return write_model(root, name, Mlp(), config + options)


def write_identity(
    root: Path,
    name: str = "identity",
    datatype: str = "FP32",
    dims: Sequence[int] = (1,),
    max_batch_size: int = 64,
    options: str | None = None,
) -> Path:
    """Write ``Identity``: input ``x``, output ``y``, both of ``datatype`` and ``dims``.

    ``max_batch_size`` 0 makes a model without a batch dimension, which has no batching either.
    """
    if options is None:
        options = BATCHING if max_batch_size else ""
    tensor = f"data_type: TYPE_{datatype} dims: {list(dims)}"
    config = (
        f'max_batch_size: {max_batch_size}\ninput {{ name: "x" {tensor} }}\noutput {{ name: "y" {tensor} }}\n'
    )
    return write_model(root, name, Identity(), config + options)


def write_raising(root: Path, name: str = "raising", options: str = BATCHING) -> Path:
    """Write ``Raising``: input ``x``, output ``y``, both FP32 [1], at most 16 rows."""
    config = (
        "max_batch_size: 16\n"
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    )
    return write_model(root, name, Raising(), config + options)


def write_two_inputs(root: Path, name: str = "two_inputs", options: str = BATCHING) -> Path:
    """Write ``TwoInputs``: ``offset`` INT64 [1] and ``values`` FP32 [3], named in this order.

    Outputs are ``sum`` FP32 [3] and ``negated`` INT64 [1]; at most 16 rows. The inputs' order is
    not that of the model's arguments: they meet by name.
    """
    config = (
        "max_batch_size: 16\n"
        'input { name: "offset" data_type: TYPE_INT64 dims: 1 }\n'
        'input { name: "values" data_type: TYPE_FP32 dims: 3 }\n'
        'output { name: "sum" data_type: TYPE_FP32 dims: 3 }\n'
        'output { name: "negated" data_type: TYPE_INT64 dims: 1 }\n'
    )
    return write_model(root, name, TwoInputs(), config + options)


def write_slow(root: Path, name: str = "slow", max_batch_size: int = 4, options: str = BATCHING) -> Path:
    """Write ``Slow``: input ``work`` INT64 [1], the rounds; output ``done`` INT64 [1], the same."""
    config = (
        f"max_batch_size: {max_batch_size}\n"
        'input { name: "work" data_type: TYPE_INT64 dims: 1 }\n'
        'output { name: "done" data_type: TYPE_INT64 dims: 1 }\n'
        'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'
    )
    return write_model(root, name, Slow(), config + options)
