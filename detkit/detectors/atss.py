"""ATSS (Zhang, Chi, Yao, Lei, Li, arXiv 1912.02424): one square anchor in each cell, and positives by the statistics of
the overlaps.

The assigner is what the paper is about; RetinaNet and FCOS take it too (`head.assigner: {name: atss}`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector, check_pyramid
from detkit.nn.assign.atss import ATSSAssignerConfig
from detkit.nn.assign.points import PointAssignerConfig
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.fcos import FCOSHead, FCOSHeadConfig, FCOSOutputs, FCOSSelectionConfig, FCOSTowerConfig
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks.fpn import FPN, DenseFPNConfig
from detkit.structures import Categories


class ATSSTowerConfig(FCOSTowerConfig):
    bias: bool = False


class ATSSSelectionConfig(FCOSSelectionConfig):
    score_threshold: float = Field(0.0, ge=0, le=1)


class ATSSHeadConfig(FCOSHeadConfig):
    """Defaults: the authors' code, with anchors, and MMDetection's `atss_r50_fpn_1x_coco`, whose counts these are."""

    tower: ATSSTowerConfig = ATSSTowerConfig()
    side: float = Field(8.0, gt=0)
    spacing: Literal["stride", "image"] = "stride"
    boxes: Literal["sides", "deltas"] = "deltas"
    level_scales: bool = True
    assigner: Annotated[PointAssignerConfig | ATSSAssignerConfig, Field(discriminator="name")] = ATSSAssignerConfig()
    box_scale: float = Field(2.0, ge=0)
    box_by_centerness: bool = True
    class_threshold: float = Field(0.05, ge=0, le=1)
    selection: ATSSSelectionConfig = ATSSSelectionConfig()


class ATSS(SingleShotDetector[FCOSOutputs]):
    """FCOS's network on anchors, with another choice of what is positive."""


class ATSSConfig(Config):
    """Defaults: ResNet-50-FPN on COCO."""

    name: Literal["atss"] = "atss"
    backbone: BackboneConfig = ResNetConfig(strides=(8, 16, 32))
    neck: DenseFPNConfig = DenseFPNConfig()
    head: ATSSHeadConfig = ATSSHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> ATSSConfig:
        check_pyramid(self.backbone.strides, self.neck, self.head.tower)
        return self


def build_atss(config: ATSSConfig, categories: Categories) -> ATSS:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides)
    head = FCOSHead(config.head, neck.out_channels, neck.out_strides, len(categories))
    return ATSS(backbone, neck, head, ImageInput(config.input, backbone.out_strides[-1]), categories)
