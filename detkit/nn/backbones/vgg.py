"""VGG (Simonyan and Zisserman, arXiv 1409.1556) from torchvision: level k, stride 2^(k-1), ends before pool k.

SSD's form of VGG16 goes on where the classifier was: level 6 is fc7 as a convolution, at stride 16.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torchvision import models

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels, check_weights, load_weights

CHANNELS = (64, 128, 256, 512, 512)


class VGGConfig(Config):
    name: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = "vgg16"
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    frozen_stages: int = Field(2, ge=0, le=5)  # 2: conv1_x and conv2_x, the R-CNN family's choice
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = (5,)

    @model_validator(mode="after")
    def _weights_and_levels_exist(self) -> VGGConfig:
        check_weights(self.name, self.weights)
        check_levels(self.levels)
        return self


def build_vgg(config: VGGConfig) -> StagedBackbone:
    network = _vgg(config)
    blocks = dict(network.features.named_children())
    names = list(blocks)
    pools = [i for i, block in enumerate(blocks.values()) if isinstance(block, nn.MaxPool2d)]
    return StagedBackbone(
        blocks,
        taps=[names[pools[level - 1] - 1] for level in config.levels],
        out_channels=[CHANNELS[level - 1] for level in config.levels],
        out_strides=[2 ** (level - 1) for level in config.levels],
        frozen=names[: pools[config.frozen_stages - 1]] if config.frozen_stages else (),
    )


class SSDVGGConfig(Config):
    """VGG16 as SSD changes it (arXiv 1512.02325, section 3): conv4_3 and fc7, of 512 and 1024 channels."""

    name: Literal["vgg16_ssd"] = "vgg16_ssd"
    # torchvision weights entry of vgg16; null: random. IMAGENET1K_V1 wants pixels of ImageNet's mean and std, and gives
    # fc6 and fc7 too; IMAGENET1K_FEATURES, from Caffe, wants std 1 and gives the features alone (torchvision's SSD)
    weights: str | None = None
    frozen_stages: int = Field(0, ge=0, le=5)  # SSD trains all; 5: all but fc6 and fc7
    levels: tuple[Literal[4], Literal[6]] = (4, 6)

    @model_validator(mode="after")
    def _weights_exist(self) -> SSDVGGConfig:
        check_weights("vgg16", self.weights)
        return self


def build_ssd_vgg(config: SSDVGGConfig) -> StagedBackbone:
    network = _vgg(VGGConfig(weights=config.weights))
    blocks: dict[str, nn.Module] = dict(network.features.named_children())
    names = list(blocks)
    pools = [i for i, block in enumerate(blocks.values()) if isinstance(block, nn.MaxPool2d)]
    network.features[pools[2]].ceil_mode = True  # 75 -> 38, as Caffe
    del blocks[names[pools[4]]]
    fc6, fc7 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
    if config.weights and config.weights != "IMAGENET1K_FEATURES":
        _subsample(network.classifier, fc6, fc7)
    blocks |= {"pool5": nn.MaxPool2d(3, 1, padding=1), "fc6": fc6, "relu6": nn.ReLU(inplace=True)}
    blocks |= {"fc7": fc7, "relu7": nn.ReLU(inplace=True)}
    return StagedBackbone(
        blocks,
        taps=[names[pools[3] - 1], "relu7"],
        out_channels=(512, 1024),
        out_strides=(8, 16),
        frozen=names[: pools[config.frozen_stages - 1]] if config.frozen_stages else (),
    )


@torch.no_grad()
def _subsample(classifier: nn.Sequential, fc6: nn.Conv2d, fc7: nn.Conv2d) -> None:
    """Every fourth unit of VGG's fully connected layers, and every third of fc6's 7 x 7 inputs (`a trous`)."""
    linear6, linear7 = (layer for layer in list(classifier)[:-1] if isinstance(layer, nn.Linear))
    fc6.weight.copy_(linear6.weight.view(4096, 512, 7, 7)[::4, :, ::3, ::3])
    fc6.bias.copy_(linear6.bias[::4])  # type: ignore[union-attr]
    fc7.weight.copy_(linear7.weight[::4, ::4, None, None])
    fc7.bias.copy_(linear7.bias[::4])  # type: ignore[union-attr]


def _vgg(config: VGGConfig) -> models.VGG:
    network: models.VGG = models.get_model(config.name, weights=None, init_weights=config.weights is None)
    if config.weights:
        load_weights(network, config.name, config.weights)
    return network
