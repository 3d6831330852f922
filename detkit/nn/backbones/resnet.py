"""ResNet (He et al., arXiv 1512.03385) from torchvision: levels C2 to C5, at strides 4 to 32."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from detkit.nn.backbones.staged import (
    Stage,
    StagedBackbone,
    StagedConfig,
    check_weights,
    norm_layer,
    split,
    torchvision_classifier,
)

BASIC = ("resnet18", "resnet34")  # two 3x3 convolutions a block; torchvision dilates bottleneck blocks alone


class ResNetConfig(StagedConfig):
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    # of the stem, C2, C3, C4, C5; 2: stem and C2, the published choice for detectors
    frozen_stages: int = Field(2, ge=0)
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    # frozen_bn for pre-trained weights, bn when training from random ones
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"
    norm_eps: float = Field(1e-5, ge=0)  # torchvision's COCO_V1 detection weights were trained with 0
    # the stride of a bottleneck block is that of its first convolution, 1x1 (the paper, and Detectron2 with MSRA's
    # weights); false: of its 3x3 convolution (torchvision)
    stride_in_1x1: bool = False
    dilation: bool = False  # dilated convolutions in place of C5's stride: C5 at stride 16 (DETR's DC5)

    @property
    def stage_strides(self) -> tuple[int | None, ...]:
        return (None, 4, 8, 16, 16 if self.dilation and self.name not in BASIC else 32)

    @model_validator(mode="after")
    def _weights_and_dilation_exist(self) -> ResNetConfig:
        check_weights(self.name, self.weights)
        if self.dilation and self.name in BASIC:
            raise ValueError(f"dilation: {self.name} has no bottleneck blocks, which alone can be dilated")
        if self.stride_in_1x1 and self.name in BASIC:
            raise ValueError(f"stride_in_1x1: {self.name} has no bottleneck blocks, which alone have a 1x1 convolution")
        return self


def build_resnet(config: ResNetConfig) -> StagedBackbone:
    # With random weights every residual block starts as its shortcut (Goyal et al., arXiv 1706.02677, section 5.1), so
    # that signals and gradients pass; the loss then falls after many times fewer iterations.
    shortcut_first = config.norm == "bn" and config.weights is None
    network = torchvision_classifier(
        config.name,
        config.weights,
        norm_layer=partial(norm_layer(config.norm), eps=config.norm_eps),
        zero_init_residual=shortcut_first,
        replace_stride_with_dilation=[False, False, config.dilation],
    )
    blocks = {name: block for name, block in network.named_children() if name not in ("avgpool", "fc")}
    if config.stride_in_1x1:
        for layer in (network.layer2, network.layer3, network.layer4):
            first = layer[0]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
    expansion = network.inplanes // 512
    channels = [64, *(64 * expansion * 2**i for i in range(4))]
    parts = split(blocks, [4, 5, 6, 7, 8])  # conv1, bn1, relu and maxpool are the stem
    stages = [Stage(*stage) for stage in zip(parts, config.stage_strides, channels, strict=True)]
    return StagedBackbone(stages, config.strides, config.frozen_stages)
