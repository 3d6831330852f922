"""VGG (Simonyan and Zisserman, arXiv 1409.1556) from torchvision: level k, stride 2^(k-1), ends before pool k."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

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


def load_vgg_classifier(config: VGGConfig, layers: Iterable[nn.Module]) -> None:
    """Starts a detector's fc6 and fc7 from VGG's own first two fully connected layers, as the R-CNN family does."""
    classifier = [layer for layer in _vgg(config).classifier if isinstance(layer, nn.Linear)]
    for layer, source in zip(layers, classifier, strict=False):
        layer.load_state_dict(source.state_dict())


def _vgg(config: VGGConfig) -> models.VGG:
    network: models.VGG = models.get_model(config.name, weights=None, init_weights=config.weights is None)
    if config.weights:
        load_weights(network, config.name, config.weights)
    return network
