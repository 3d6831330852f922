"""RetinaNet (Lin, Goyal, Girshick, He, Dollar, arXiv 1708.02002): one pass over a pyramid, and the focal loss.

Two published forms are two configurations: torchvision's versions 1 and 2, of which the second has P6 from C5, group
norm in its towers and the GIoU loss.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector, check_pyramid
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.retinanet import RetinaNetHead, RetinaNetHeadConfig, RetinaNetOutputs
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks.fpn import FPN, DenseFPNConfig
from detkit.structures import Categories


class RetinaNet(SingleShotDetector[RetinaNetOutputs]):
    """A pyramid from C3 on, and two towers on every level of it."""


class RetinaNetConfig(Config):
    """Defaults: torchvision's `retinanet_resnet50_fpn`."""

    name: Literal["retinanet"] = "retinanet"
    backbone: BackboneConfig = ResNetConfig(strides=(8, 16, 32))
    neck: DenseFPNConfig = DenseFPNConfig()
    head: RetinaNetHeadConfig = RetinaNetHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> RetinaNetConfig:
        levels = check_pyramid(self.backbone.strides, self.neck, self.head.tower)
        if len(self.head.anchors.sizes) != levels:
            raise ValueError(
                f"head.anchors.sizes: expected {levels} lists, one a feature level, "
                f"found {len(self.head.anchors.sizes)}"
            )
        return self


def build_retinanet(config: RetinaNetConfig, categories: Categories) -> RetinaNet:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides)
    head = RetinaNetHead(config.head, neck.out_channels, neck.out_strides, len(categories))
    return RetinaNet(backbone, neck, head, ImageInput(config.input, backbone.out_strides[-1]), categories)
