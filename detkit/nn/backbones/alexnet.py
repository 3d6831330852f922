"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) in two forms, torchvision's (arXiv 1404.5997: narrower, one
group, no normalisation) and CaffeNet, which R-CNN used: level k is relu k, at strides 4, 8, 16, 16, 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator
from torch import nn
from torchvision import models

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels, check_weights, load_weights

STRIDES = (4, 8, 16, 16, 16)


class AlexNetConfig(Config):
    name: Literal["alexnet"] = "alexnet"
    padding: bool = False  # Fast R-CNN's, see CaffeNetConfig; torchvision pads conv1 by 2
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    frozen_stages: int = Field(1, ge=0, le=5)  # convolutions; 1: Fast R-CNN's choice for CaffeNet
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = (5,)

    @model_validator(mode="after")
    def _weights_and_levels_exist(self) -> AlexNetConfig:
        check_weights(self.name, self.weights)
        check_levels(self.levels)
        return self


def build_alexnet(config: AlexNetConfig) -> StagedBackbone:
    network = models.get_model(config.name, weights=None)
    if config.weights:
        load_weights(network, config.name, config.weights)
    if config.padding:
        conv1, _, pool1, _, _, pool2, *_ = network.features
        conv1.padding, pool1.padding, pool2.padding = (5, 5), 1, 1
    return _staged(config, dict(network.features.named_children()))


class CaffeNetConfig(Config):
    """Groups of 2 in conv2, conv4 and conv5, pooling before normalisation, as Caffe's bvlc_reference_caffenet."""

    name: Literal["caffenet"] = "caffenet"
    padding: bool = False  # Fast R-CNN's: conv1 by 5, pools by 1, so that unit i lies on pixel 16 i; crops need none
    weights: None = None  # torchvision has none
    frozen_stages: int = Field(0, ge=0, le=5)  # convolutions
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = (5,)

    @model_validator(mode="after")
    def _levels_exist(self) -> CaffeNetConfig:
        check_levels(self.levels)
        return self


def build_caffenet(config: CaffeNetConfig) -> StagedBackbone:
    return _staged(config, caffenet_trunk(padding=config.padding))


def caffenet_trunk(*, padding: bool = False) -> dict[str, nn.Module]:
    """conv1 to pool5, which gives `[B, 256, 6, 6]` of 227 x 227."""

    def relu() -> nn.Module:
        return nn.ReLU(inplace=True)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, padding=int(padding), ceil_mode=True)  # Caffe rounds up

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)

    return {
        "conv1": nn.Conv2d(3, 96, 11, 4, padding=5 if padding else 0),
        "relu1": relu(),
        "pool1": pool(),
        "norm1": norm(),
        "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=2),
        "relu2": relu(),
        "pool2": pool(),
        "norm2": norm(),
        "conv3": nn.Conv2d(256, 384, 3, padding=1),
        "relu3": relu(),
        "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=2),
        "relu4": relu(),
        "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=2),
        "relu5": relu(),
        "pool5": pool(),
    }


def _staged(config: AlexNetConfig | CaffeNetConfig, blocks: Mapping[str, nn.Module]) -> StagedBackbone:
    names = list(blocks)
    relus = [i for i, block in enumerate(blocks.values()) if isinstance(block, nn.ReLU)]
    channels = [block.out_channels for block in blocks.values() if isinstance(block, nn.Conv2d)]
    return StagedBackbone(
        blocks,
        taps=[names[relus[level - 1]] for level in config.levels],
        out_channels=[channels[level - 1] for level in config.levels],
        out_strides=[STRIDES[level - 1] for level in config.levels],
        frozen=names[: relus[config.frozen_stages - 1]] if config.frozen_stages else (),
    )
