"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) in two forms: torchvision's (arXiv 1404.5997: narrower, one
group, no normalisation) and CaffeNet, which R-CNN used. Stage k ends with relu k, at strides 4, 8, 16, 16, 16.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig, check_weights, split, torchvision_classifier

STRIDES = (4, 8, 16, 16, 16)


class AlexNetConfig(StagedConfig):
    name: Literal["alexnet"] = "alexnet"
    strides: tuple[int, ...] = (16,)
    frozen_stages: int = Field(1, ge=0)  # a stage is a convolution; 1: Fast R-CNN's choice for CaffeNet
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    padding: bool = False  # Fast R-CNN's, see CaffeNetConfig; torchvision pads conv1 by 2

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> AlexNetConfig:
        check_weights(self.name, self.weights)
        return self


def build_alexnet(config: AlexNetConfig) -> StagedBackbone:
    network = torchvision_classifier(config.name, config.weights)
    if config.padding:
        conv1, _, pool1, _, _, pool2, *_ = network.features
        conv1.padding, pool1.padding, pool2.padding = (5, 5), 1, 1
    return StagedBackbone(_stages(dict(network.features.named_children())), config.strides, config.frozen_stages)


class CaffeNetConfig(StagedConfig):
    """Two groups in conv2, conv4 and conv5, and pooling before normalisation, as Caffe's bvlc_reference_caffenet."""

    name: Literal["caffenet"] = "caffenet"
    strides: tuple[int, ...] = (16,)
    frozen_stages: int = Field(0, ge=0)  # a stage is a convolution
    weights: None = None  # torchvision has none
    # Fast R-CNN's: conv1 by 5, pools by 1, so that cell i is centred on pixel 16 i; R-CNN's crops need none
    padding: bool = False

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES


def build_caffenet(config: CaffeNetConfig) -> StagedBackbone:
    return StagedBackbone(_stages(caffenet_trunk(padding=config.padding)), config.strides, config.frozen_stages)


def caffenet_trunk(*, padding: bool = False) -> dict[str, nn.Module]:
    """conv1 to pool5: `[B, 3, 227, 227]` -> `[B, 256, 6, 6]`."""

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


def _stages(blocks: dict[str, nn.Module]) -> list[Stage]:
    """Each from the layer after the relu before it to its own relu; pool5 is left out."""
    ends = [i + 1 for i, block in enumerate(blocks.values()) if isinstance(block, nn.ReLU)]
    channels = [block.out_channels for block in blocks.values() if isinstance(block, nn.Conv2d)]
    return [Stage(*stage) for stage in zip(split(blocks, ends), STRIDES, channels, strict=True)]
