"""VGG (Simonyan and Zisserman, arXiv 1409.1556) from torchvision: stage k ends before pool k, at stride 2^(k-1).

SSD's form of VGG16 has a sixth stage of stride 16 where the classifier was: fc6 and fc7 as convolutions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig, check_weights, split, torchvision_classifier

if TYPE_CHECKING:
    from torchvision.models import VGG

STRIDES = (1, 2, 4, 8, 16)
CHANNELS = (64, 128, 256, 512, 512)


class VGGConfig(StagedConfig):
    name: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = "vgg16"
    strides: tuple[int, ...] = (16,)
    frozen_stages: int = Field(2, ge=0)  # 2: conv1_x and conv2_x, as in Fast and Faster R-CNN
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> VGGConfig:
        check_weights(self.name, self.weights)
        return self


def build_vgg(config: VGGConfig) -> StagedBackbone:
    network = _vgg(config.name, config.weights)
    return StagedBackbone(_stages(dict(network.features.named_children())), config.strides, config.frozen_stages)


class SSDVGGConfig(StagedConfig):
    """VGG16 as SSD changes it (arXiv 1512.02325, section 3): conv4_3 and fc7, of 512 and 1024 channels."""

    name: Literal["vgg16_ssd"] = "vgg16_ssd"
    strides: tuple[int, ...] = (8, 16)  # conv4_3 and fc7
    frozen_stages: int = Field(0, ge=0)  # SSD trains all; 5: all but fc6 and fc7
    # torchvision weights entry of vgg16; null: random. IMAGENET1K_V1 expects pixels normalised by ImageNet's mean and
    # std, and initialises fc6 and fc7 too. IMAGENET1K_FEATURES, from Caffe, expects std 1 and has no fc6 and fc7.
    weights: str | None = None

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return (*STRIDES, 16)

    @model_validator(mode="after")
    def _weights_exist(self) -> SSDVGGConfig:
        check_weights("vgg16", self.weights)
        return self


def build_ssd_vgg(config: SSDVGGConfig) -> StagedBackbone:
    network = _vgg("vgg16", config.weights)
    network.features[16].ceil_mode = True  # pool3: 75 -> 38, as in Caffe
    fc6, fc7 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
    if config.weights and config.weights != "IMAGENET1K_FEATURES":
        _subsample(network.classifier, fc6, fc7)
    classifier = {
        "pool5": nn.MaxPool2d(3, 1, padding=1),
        "fc6": fc6,
        "relu6": nn.ReLU(inplace=True),
        "fc7": fc7,
        "relu7": nn.ReLU(inplace=True),
    }
    stages = [*_stages(dict(network.features.named_children())), Stage(classifier, 16, 1024)]
    return StagedBackbone(stages, config.strides, config.frozen_stages)


def _stages(blocks: dict[str, nn.Module]) -> list[Stage]:
    """The five stages of VGG's features, each with the pool before it; the last pool is left out."""
    pools = [i for i, block in enumerate(blocks.values()) if isinstance(block, nn.MaxPool2d)]
    return [Stage(*stage) for stage in zip(split(blocks, pools), STRIDES, CHANNELS, strict=True)]


@torch.no_grad()
def _subsample(classifier: nn.Sequential, fc6: nn.Conv2d, fc7: nn.Conv2d) -> None:
    """Fills fc6 and fc7 with every fourth unit of VGG's fully connected layers, and fc6 with every third of its 7 x 7
    inputs (arXiv 1512.02325, section 3)."""
    linear6, linear7 = (layer for layer in list(classifier)[:-1] if isinstance(layer, nn.Linear))
    fc6.weight.copy_(linear6.weight.view(4096, 512, 7, 7)[::4, :, ::3, ::3])
    fc6.bias.copy_(linear6.bias[::4])  # type: ignore[union-attr]
    fc7.weight.copy_(linear7.weight[::4, ::4, None, None])
    fc7.bias.copy_(linear7.bias[::4])  # type: ignore[union-attr]


def _vgg(name: str, weights: str | None) -> VGG:
    network: VGG = torchvision_classifier(name, weights, init_weights=weights is None)
    return network
