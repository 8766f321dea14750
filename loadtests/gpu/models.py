"""The models, built here with seeded random weights, and the repositories that they are served from.

What they answer means nothing; their shapes, datatypes and operations are those of the real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from loadtests.gpu.scale import Bert, ResNet, Scale
from tensorferry.testing.models import Mlp, save

__all__ = [
    "BERT",
    "FRAUD",
    "IMAGE",
    "IMAGE_BYTES",
    "BertEncoder",
    "Images",
    "ResNet50",
    "Variant",
    "write_modules",
    "write_repository",
]

IMAGE: Final = "resnet50"
IMAGE_BYTES: Final = "resnet50_uint8"
BERT: Final = "bert"
FRAUD: Final = "fraud"

_CHANNELS: Final = 3
_EXPANSION: Final = 4
#: Of the usual photographs, 0 to 1: what torchvision's models are given.
_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1, beside a shortcut."""

    def __init__(self, taken: int, width: int, stride: int) -> None:
        super().__init__()
        given = width * _EXPANSION
        self.narrow = nn.Conv2d(taken, width, 1)
        self.middle = nn.Conv2d(width, width, 3, stride=stride, padding=1)
        self.wide = nn.Conv2d(width, given, 1)
        is_plain = stride == 1 and taken == given
        self.shortcut: nn.Module = nn.Identity() if is_plain else nn.Conv2d(taken, given, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.narrow(x), inplace=True)
        y = functional.relu(self.middle(y), inplace=True)
        return functional.relu(self.wide(y) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    """K. He et al., "Deep Residual Learning for Image Recognition" (2015), with 3, 4, 6 and 3 bottlenecks.

    The stride is in the 3x3 convolutions. Batch normalisation is folded into the convolutions, as it is
    for serving, so they have biases and there is none.
    """

    def __init__(self, shape: ResNet) -> None:
        super().__init__()
        width = shape.width
        self.stem = nn.Conv2d(_CHANNELS, width, 7, stride=2, padding=3)
        stages: list[nn.Module] = []
        taken = width
        for stage, count in enumerate(shape.layers):
            for number in range(count):
                stride = 2 if stage and not number else 1
                stages.append(_Bottleneck(taken, width << stage, stride))
                taken = (width << stage) * _EXPANSION
        self.stages = nn.Sequential(*stages)
        self.classes = nn.Linear(taken, shape.classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels`` FP16 [rows, 3, size, size] to FP16 [rows, classes]."""
        x = functional.relu(self.stem(pixels), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = functional.adaptive_avg_pool2d(self.stages(x), 1)
        classes: Tensor = self.classes(x.flatten(1))
        return classes


class Images(nn.Module):
    """Bytes as a camera gives them, brought into the range that ``model`` takes on the device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        deviation = torch.tensor(_DEVIATION).view(1, _CHANNELS, 1, 1)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1.0 / (255.0 * deviation))
        self.register_buffer("shift", -torch.tensor(_MEAN).view(1, _CHANNELS, 1, 1) / deviation)

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels`` UINT8 [rows, 3, size, size] to FP16 [rows, classes]."""
        classes: Tensor = self.model(pixels.to(self.scale.dtype) * self.scale + self.shift)
        return classes


class _Layer(nn.Module):
    """Attention and two dense layers, each with its normalisation behind it."""

    def __init__(self, shape: Bert) -> None:
        super().__init__()
        self.heads = shape.heads
        self.mixed = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attended = nn.Linear(shape.hidden, shape.hidden)
        self.attended_norm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.inner = nn.Linear(shape.hidden, shape.inner)
        self.outer = nn.Linear(shape.inner, shape.hidden)
        self.outer_norm = nn.LayerNorm(shape.hidden, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, hidden = x.shape
        split = self.mixed(x).view(rows, length, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=mask)
        y = self.attended(y.transpose(1, 2).reshape(rows, length, hidden))
        x = self.attended_norm(x + y)
        given: Tensor = self.outer_norm(x + self.outer(functional.gelu(self.inner(x))))
        return given


class BertEncoder(nn.Module):
    """J. Devlin et al., "BERT" (2018): the encoder with its pooler, of one segment."""

    def __init__(self, shape: Bert) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.hidden)
        self.places = nn.Embedding(max(shape.buckets), shape.hidden)
        self.segment = nn.Parameter(torch.zeros(shape.hidden))
        self.norm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.layers = nn.ModuleList([_Layer(shape) for _ in range(shape.layers)])
        self.pooler = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """``ids`` INT32 [rows, length] and ``lengths`` INT32 [rows, 1] to FP16 [rows, hidden]."""
        places = torch.arange(ids.size(1), device=ids.device)
        mask = (places.unsqueeze(0) < lengths).unsqueeze(1).unsqueeze(1)
        x = self.norm(self.words(ids) + self.places(places) + self.segment)
        for layer in self.layers:
            x = layer(x, mask)
        return torch.tanh(self.pooler(x[:, 0]))


def write_modules(root: Path, scale: Scale) -> None:
    """Write every model as ``root/<name>.pt``, on the CPU."""
    root.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    image = ResNet50(scale.resnet)
    _initialise(image)
    encoder = BertEncoder(scale.bert)
    save(image.half(), root / f"{IMAGE}.pt")
    save(Images(image).half(), root / f"{IMAGE_BYTES}.pt")
    save(encoder.half(), root / f"{BERT}.pt")
    save(Mlp(), root / f"{FRAUD}.pt")


def _initialise(model: nn.Module) -> None:
    """Keep the numbers within FP16: each block adds a little to what passes it by."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        if isinstance(module, _Bottleneck):
            module.wide.weight.data.mul_(0.2)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve all models: what the last table compares. ``says`` is for the table."""

    name: str
    says: str
    streams: int = 1
    shares_weights: bool = False
    cuda_graphs: str = "auto"
    staging_slots: int = 3

    @property
    def batches_at_once(self) -> int:
        """How many batches the device may have, over all streams."""
        return self.streams * self.staging_slots


def write_repository(
    root: Path, modules: Path, scale: Scale, variant: Variant, batches: Mapping[str, int]
) -> None:
    """Write a repository of the models in ``batches`` in Triton's layout, with each one's most rows."""
    texts = _texts(scale)
    for name in batches:
        version = root / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        os.link(modules / f"{name}.pt", version / "model.pt")
        common = _common(variant, batches[name], is_image=name in (IMAGE, IMAGE_BYTES))
        (root / name / "config.pbtxt").write_text(common + texts[name], encoding="utf-8")


def _common(variant: Variant, rows: int, *, is_image: bool) -> str:
    parameters = {"cuda_graphs": variant.cuda_graphs, "staging_slots": str(variant.staging_slots)}
    if is_image:
        parameters["memory_format"] = "channels_last"
    if variant.shares_weights:
        parameters["ENABLE_WEIGHT_SHARING"] = "true"
    return (
        f"max_batch_size: {rows}\n"
        f"instance_group {{ kind: KIND_GPU gpus: [ 0 ] count: {variant.streams} }}\n"
        "dynamic_batching { }\n"
    ) + "".join(map(_parameter, parameters, parameters.values()))


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}\n'


def _texts(scale: Scale) -> dict[str, str]:
    """What tells the models apart in their configurations."""
    size, classes = scale.resnet.size, scale.resnet.classes
    images = (
        f'input {{ name: "pixels" data_type: TYPE_FP16 dims: [ 3, {size}, {size} ] }}\n'
        f'output {{ name: "classes" data_type: TYPE_FP16 dims: [ {classes} ] }}\n'
    )
    sequences = (
        'input { name: "ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }\n'
        'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "lengths" data_type: TYPE_INT32 '
        'source_input: "ids" }\n'
        f'output {{ name: "pooled" data_type: TYPE_FP16 dims: [ {scale.bert.hidden} ] }}\n'
    )
    return {
        IMAGE: images,
        IMAGE_BYTES: images.replace("FP16", "UINT8", 1),
        BERT: sequences + _parameter("ragged_buckets", ",".join(map(str, scale.bert.buckets))),
        FRAUD: (
            'input { name: "features" data_type: TYPE_FP32 dims: [ 30 ] }\n'
            'output { name: "score" data_type: TYPE_FP32 dims: [ 1 ] }\n'
        ),
    }
