"""MobileNetV3 (Howard et al., arXiv 1905.02244) from torchvision, tapped as torchvision's detectors tap it, and
MobileNetV1 (Howard et al., arXiv 1704.04861).

In Faster R-CNN level 0 is the first convolution, levels 1-4 are the strided inverted residuals, level 5 the last 1x1
convolution. SSDLite's level 4 is the expansion inside the last strided one. V1's level k has stride 2^k.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels, check_weights, load_weights
from detkit.nn.blocks import ConvBlock

STRIDES = (2, 4, 8, 16, 32, 32)


class MobileNetV3Config(Config):
    name: Literal["mobilenet_v3_large", "mobilenet_v3_small"] = "mobilenet_v3_large"
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    norm: Literal["frozen_bn", "bn"] = (
        "frozen_bn"  # frozen_bn for pre-trained weights, bn when training from random ones
    )
    norm_eps: float = Field(1e-5, ge=0)  # the classifier was trained with 1e-3, torchvision's detectors use 1e-5
    frozen_stages: int = Field(3, ge=0, le=6)  # blocks before level `frozen_stages`; torchvision's detectors: 3
    levels: tuple[Literal[0, 1, 2, 3, 4, 5], ...] = (4, 5)

    @model_validator(mode="after")
    def _weights_and_levels_exist(self) -> MobileNetV3Config:
        check_weights(self.name, self.weights)
        check_levels(self.levels)
        return self


def build_mobilenet_v3(config: MobileNetV3Config) -> StagedBackbone:
    norm = FrozenBatchNorm2d if config.norm == "frozen_bn" else nn.BatchNorm2d
    network = models.get_model(config.name, weights=None, norm_layer=partial(norm, eps=config.norm_eps))
    if config.weights:
        load_weights(network, config.name, config.weights)
    blocks = dict(network.features.named_children())
    names = list(blocks)
    strided = [i for i, block in enumerate(blocks.values()) if getattr(block, "_is_cn", False)]
    starts = [0, *strided, len(names) - 1]
    return StagedBackbone(
        blocks,
        taps=[names[starts[level]] for level in config.levels],
        out_channels=[blocks[names[starts[level]]].out_channels for level in config.levels],
        out_strides=[STRIDES[level] for level in config.levels],
        frozen=names[: starts[config.frozen_stages]] if config.frozen_stages < len(starts) else names,
    )


class SSDLiteMobileNetConfig(Config):
    """MobileNetV3-Large under SSDLite (section 6.3): the expansion of C4, of 672 channels, and the last convolution."""

    name: Literal["mobilenet_v3_large_ssdlite"] = "mobilenet_v3_large_ssdlite"
    weights: str | None = None  # torchvision weights entry of mobilenet_v3_large; null: random, and half as wide a tail
    norm_eps: float = Field(1e-3, ge=0)
    norm_momentum: float = Field(0.03, gt=0, le=1)
    frozen_stages: int = Field(0, ge=0, le=6)
    levels: tuple[Literal[4], Literal[5]] = (4, 5)

    @model_validator(mode="after")
    def _weights_exist(self) -> SSDLiteMobileNetConfig:
        check_weights("mobilenet_v3_large", self.weights)
        return self


def build_ssdlite_mobilenet(config: SSDLiteMobileNetConfig) -> StagedBackbone:
    norm = partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum)
    network = models.mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=config.weights is None)
    if config.weights:
        load_weights(network, "mobilenet_v3_large", config.weights)
    blocks: dict[str, Any] = {}
    starts: list[int] = []
    for name, block in network.features.named_children():
        if getattr(block, "_is_cn", False) or name == "0":
            starts.append(len(blocks))
        if len(starts) == 5 and starts[-1] == len(blocks):
            blocks[f"{name}_expand"], blocks[f"{name}_reduce"] = block.block[0], block.block[1:]
        else:
            blocks[name] = block
    names = [*blocks]
    starts.append(len(names) - 1)
    return StagedBackbone(
        blocks,
        taps=[names[starts[4]], names[-1]],
        out_channels=[blocks[names[starts[4]]].out_channels, blocks[names[-1]].out_channels],
        out_strides=[16, 32],
        frozen=names[: starts[config.frozen_stages]] if config.frozen_stages < len(starts) else names,
    )


class MobileNetV1Config(Config):
    """As MobileNet-SSD has it: batch norm, ReLU, 13 depthwise separable convolutions, no classifier."""

    name: Literal["mobilenet_v1"] = "mobilenet_v1"
    weights: None = None  # torchvision has none
    frozen_stages: int = Field(0, ge=0, le=6)  # levels below `frozen_stages`
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = (4, 5)

    @model_validator(mode="after")
    def _levels_exist(self) -> MobileNetV1Config:
        check_levels(self.levels)
        return self


def build_mobilenet_v1(config: MobileNetV1Config) -> StagedBackbone:
    widths = [[64], [128, 128], [256, 256], [512] * 6, [1024, 1024]]  # of the separable convolutions at each stride
    blocks: dict[str, nn.Module] = {}
    channels = 32
    for level, stage in enumerate(widths, start=1):
        layers: list[nn.Module] = [ConvBlock(3, channels, 3, 2, act="relu")] if level == 1 else []
        for position, width in enumerate(stage):
            stride = 2 if level > 1 and position == 0 else 1
            layers.append(ConvBlock(channels, channels, 3, stride, groups=channels, act="relu"))
            layers.append(ConvBlock(channels, width, 1, act="relu"))
            channels = width
        blocks[f"stage{level}"] = nn.Sequential(*layers)
    return StagedBackbone(
        blocks,
        taps=[f"stage{level}" for level in config.levels],
        out_channels=[widths[level - 1][-1] for level in config.levels],
        out_strides=[2**level for level in config.levels],
        frozen=[f"stage{level}" for level in range(1, config.frozen_stages)],
    )
