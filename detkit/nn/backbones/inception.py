"""GoogLeNet (Szegedy et al., arXiv 1409.4842) and Inception v3 (arXiv 1512.00567) from torchvision: level k is the last
map of stride 2^k.

torchvision's GoogLeNet has batch norm, and 3x3 where the paper has 5x5. Inception v3's stem is not padded, so that its
strides are approximate: 299 x 299 gives maps of 147, 71, 35, 17, 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels, check_weights, load_weights

# the last block of each stride, and its channels
GOOGLENET = {"conv1": 64, "conv3": 192, "inception3b": 480, "inception4e": 832, "inception5b": 1024}
INCEPTION_V3 = {"Conv2d_2b_3x3": 64, "Conv2d_4a_3x3": 192, "Mixed_5d": 288, "Mixed_6e": 768, "Mixed_7c": 2048}


class GoogLeNetConfig(Config):
    name: Literal["googlenet"] = "googlenet"
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"  # frozen_bn for pre-trained weights, bn from random ones
    frozen_stages: int = Field(2, ge=0, le=5)  # 2: what comes before stride 8
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = (2, 3, 4, 5)

    @model_validator(mode="after")
    def _weights_and_levels_exist(self) -> GoogLeNetConfig:
        check_weights(self.name, self.weights)
        check_levels(self.levels)
        return self


def build_googlenet(config: GoogLeNetConfig) -> StagedBackbone:
    return _build(config, GOOGLENET)


class InceptionV3Config(Config):
    name: Literal["inception_v3"] = "inception_v3"
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"  # frozen_bn for pre-trained weights, bn from random ones
    frozen_stages: int = Field(2, ge=0, le=5)  # 2: what comes before stride 8
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = (2, 3, 4, 5)

    @model_validator(mode="after")
    def _weights_and_levels_exist(self) -> InceptionV3Config:
        check_weights(self.name, self.weights)
        check_levels(self.levels)
        return self


def build_inception_v3(config: InceptionV3Config) -> StagedBackbone:
    return _build(config, INCEPTION_V3)


class TransformInput(nn.Module):
    """Pixels of ImageNet's mean and std -> pixels in [-1, 1], on which the public weights were trained.

    It is there with random weights too, so that a checkpoint of a network that began with public ones needs no more.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
        self.register_buffer("scale", (std / 0.5).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def _build(config: GoogLeNetConfig | InceptionV3Config, stages: Mapping[str, int]) -> StagedBackbone:
    public = config.weights is not None  # trained with auxiliary classifiers, which their file has too
    network = models.get_model(config.name, weights=None, aux_logits=public, init_weights=not public)
    if config.weights:
        load_weights(network, config.name, config.weights)
    if config.norm == "frozen_bn":
        _freeze_batch_norms(network)
    blocks: dict[str, nn.Module] = {"transform_input": TransformInput()}
    blocks |= {name: block for name, block in network.named_children() if "aux" not in name.lower()}
    names, lasts, channels = list(blocks), list(stages), list(stages.values())
    return StagedBackbone(
        blocks,
        taps=[lasts[level - 1] for level in config.levels],
        out_channels=[channels[level - 1] for level in config.levels],
        out_strides=[2**level for level in config.levels],
        frozen=names[: names.index(lasts[config.frozen_stages - 1]) + 1] if config.frozen_stages else (),
    )


def _freeze_batch_norms(network: nn.Module) -> None:
    """torchvision's convolutions make their batch norm themselves; this puts the frozen one, of the same eps, there."""
    for conv in list(network.modules()):
        if isinstance(norm := getattr(conv, "bn", None), nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
            frozen.load_state_dict(norm.state_dict())
            conv.bn = frozen
