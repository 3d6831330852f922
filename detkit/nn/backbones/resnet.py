"""ResNet (He et al., arXiv 1512.03385) from torchvision: levels C2-C5 at strides 4-32."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field, model_validator
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels, check_weights, load_weights

STAGES = ("layer1", "layer2", "layer3", "layer4")  # C2, C3, C4, C5


class ResNetConfig(Config):
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    norm: Literal["frozen_bn", "bn"] = (
        "frozen_bn"  # frozen_bn for pre-trained weights, bn when training from random ones
    )
    norm_eps: float = Field(1e-5, ge=0)  # torchvision's COCO_V1 detection weights were trained with 0
    frozen_stages: int = Field(2, ge=0, le=5)  # 1: stem, 2: stem and res2 (the published choice), ..., 5: all
    levels: tuple[Literal[2, 3, 4, 5], ...] = (2, 3, 4, 5)
    dilation: bool = False  # dilated convolutions in place of C5's stride: C5 at stride 16 (DETR's DC5)

    @model_validator(mode="after")
    def _weights_and_levels_exist(self) -> ResNetConfig:
        check_weights(self.name, self.weights)
        check_levels(self.levels)
        if self.dilation and self.name in ("resnet18", "resnet34"):
            raise ValueError(f"dilation: {self.name} has no bottleneck blocks, which alone can be dilated")
        return self


def build_resnet(config: ResNetConfig) -> StagedBackbone:
    norm = FrozenBatchNorm2d if config.norm == "frozen_bn" else nn.BatchNorm2d
    # from random weights a block starts as its shortcut (Goyal et al., arXiv 1706.02677, section 5.1): signals and
    # gradients pass, and training gets going many times sooner
    shortcut_first = config.norm == "bn" and config.weights is None
    network = models.get_model(
        config.name,
        weights=None,
        norm_layer=partial(norm, eps=config.norm_eps),
        zero_init_residual=shortcut_first,
        replace_stride_with_dilation=[False, False, config.dilation],
    )
    if config.weights:
        load_weights(network, config.name, config.weights)
    blocks = {name: block for name, block in network.named_children() if name not in ("avgpool", "fc")}
    expansion = network.inplanes // 512
    return StagedBackbone(
        blocks,
        taps=[STAGES[level - 2] for level in config.levels],
        out_channels=[64 * expansion * 2 ** (level - 2) for level in config.levels],
        out_strides=[16 if config.dilation and level == 5 else 2**level for level in config.levels],
        frozen=[*(("conv1", "bn1") if config.frozen_stages else ()), *STAGES[: max(config.frozen_stages - 1, 0)]],
    )
