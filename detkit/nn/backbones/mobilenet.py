"""MobileNetV3 (Howard et al., arXiv 1905.02244) from torchvision, tapped as torchvision's detectors tap it:

level 0 is the first convolution, levels 1-4 the strided inverted residuals, level 5 the last 1x1 convolution.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field, model_validator
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels, check_weights, load_weights

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
