"""MobileNetV3 (Howard et al., arXiv 1905.02244) from torchvision, with the levels that torchvision's detectors use, and
MobileNetV1 (Howard et al., arXiv 1704.04861).

V3's stages begin with the first convolution, with each inverted residual that has a stride, and with the last 1x1
convolution. The level of a stage is the output of its first block. In SSDLite the fifth stage begins inside its
inverted residual, and its level, still at stride 16, is the expansion.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from detkit.nn.backbones.staged import (
    Stage,
    StagedBackbone,
    StagedConfig,
    check_weights,
    norm_layer,
    split,
    torchvision_classifier,
)
from detkit.nn.blocks import ConvBlock

V3_STRIDES = (2, 4, 8, 16, 32, 32)
SSDLITE_STRIDES = (2, 4, 8, 16, 16, 32)
V1_STRIDES = (2, 4, 8, 16, 32)


class MobileNetV3Config(StagedConfig):
    name: Literal["mobilenet_v3_large", "mobilenet_v3_small"] = "mobilenet_v3_large"
    strides: tuple[int, ...] = (32, 32)  # the last inverted residual with a stride, and the last convolution
    frozen_stages: int = Field(3, ge=0)  # 3: the choice of torchvision's detectors
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    # frozen_bn for pre-trained weights, bn when training from random ones
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"
    norm_eps: float = Field(1e-5, ge=0)  # the classifier was trained with 1e-3, torchvision's detectors use 1e-5

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return V3_STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> MobileNetV3Config:
        check_weights(self.name, self.weights)
        return self


def build_mobilenet_v3(config: MobileNetV3Config) -> StagedBackbone:
    norm = norm_layer(config.norm)
    network = torchvision_classifier(config.name, config.weights, norm_layer=partial(norm, eps=config.norm_eps))
    blocks = dict(network.features.named_children())
    stages = _v3_stages(blocks, _strided(blocks), V3_STRIDES)
    return StagedBackbone(stages, config.strides, config.frozen_stages)


class SSDLiteMobileNetConfig(StagedConfig):
    """MobileNetV3-Large under SSDLite (section 6.3): the expansion of C4, of 672 channels, and the last convolution."""

    name: Literal["mobilenet_v3_large_ssdlite"] = "mobilenet_v3_large_ssdlite"
    strides: tuple[int, ...] = (16, 32)
    weights: str | None = None  # torchvision weights entry of mobilenet_v3_large; null: random, and half as wide a tail
    norm_eps: float = Field(1e-3, ge=0)
    norm_momentum: float = Field(0.03, gt=0, le=1)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return SSDLITE_STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> SSDLiteMobileNetConfig:
        check_weights("mobilenet_v3_large", self.weights)
        return self


def build_ssdlite_mobilenet(config: SSDLiteMobileNetConfig) -> StagedBackbone:
    norm = partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum)
    reduced_tail = config.weights is None
    network = torchvision_classifier("mobilenet_v3_large", config.weights, norm_layer=norm, reduced_tail=reduced_tail)
    blocks: dict[str, Any] = dict(network.features.named_children())
    strided = _strided(blocks)
    items = list(blocks.items())
    name, residual = items[strided[-1]]
    expansion = [(f"{name}_expand", residual.block[0]), (f"{name}_reduce", residual.block[1:])]
    blocks = dict([*items[: strided[-1]], *expansion, *items[strided[-1] + 1 :]])
    stages = _v3_stages(blocks, strided, SSDLITE_STRIDES)
    return StagedBackbone(stages, config.strides, config.frozen_stages)


def _strided(blocks: dict[str, Any]) -> list[int]:
    """The positions of the inverted residuals that have a stride; torchvision marks them in this attribute."""
    return [i for i, block in enumerate(blocks.values()) if getattr(block, "_is_cn", False)]


def _v3_stages(blocks: dict[str, Any], strided: list[int], strides: tuple[int, ...]) -> list[Stage]:
    parts = split(blocks, [*strided, len(blocks) - 1, len(blocks)])
    firsts = [next(iter(part)) for part in parts]
    return [
        Stage(part, stride, blocks[first].out_channels, tap=first)
        for part, stride, first in zip(parts, strides, firsts, strict=True)
    ]


class MobileNetV1Config(StagedConfig):
    """The trunk of MobileNet-SSD: batch norm, ReLU, 13 depthwise separable convolutions, no classifier."""

    name: Literal["mobilenet_v1"] = "mobilenet_v1"
    strides: tuple[int, ...] = (16, 32)
    weights: None = None  # torchvision has none

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return V1_STRIDES


def build_mobilenet_v1(config: MobileNetV1Config) -> StagedBackbone:
    widths = [[64], [128, 128], [256, 256], [512] * 6, [1024, 1024]]  # of the separable convolutions at each stride
    stages = []
    channels = 32
    for index, (stride, stage_widths) in enumerate(zip(V1_STRIDES, widths, strict=True)):
        layers: list[nn.Module] = [ConvBlock(3, channels, 3, 2, act="relu")] if index == 0 else []
        for position, width in enumerate(stage_widths):
            step = 2 if index > 0 and position == 0 else 1
            layers.append(ConvBlock(channels, channels, 3, step, groups=channels, act="relu"))
            layers.append(ConvBlock(channels, width, 1, act="relu"))
            channels = width
        stages.append(Stage({f"stage{index + 1}": nn.Sequential(*layers)}, stride, channels))
    return StagedBackbone(stages, config.strides, config.frozen_stages)
