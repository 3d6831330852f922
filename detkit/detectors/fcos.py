"""FCOS (Tian, Shen, Chen, He, arXiv 1904.01355, with the changes of arXiv 2006.09214): a pyramid and no anchors."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector, check_pyramid
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.fcos import FCOSHead, FCOSHeadConfig, FCOSOutputs
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks.fpn import FPN, DenseFPNConfig
from detkit.structures import Categories


class FCOS(SingleShotDetector[FCOSOutputs]):
    """Each cell near the centre of an object predicts how far its sides are."""


class FCOSConfig(Config):
    """Defaults: torchvision's `fcos_resnet50_fpn`."""

    name: Literal["fcos"] = "fcos"
    backbone: BackboneConfig = ResNetConfig(strides=(8, 16, 32))
    neck: DenseFPNConfig = DenseFPNConfig()
    head: FCOSHeadConfig = FCOSHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> FCOSConfig:
        check_pyramid(self.backbone.strides, self.neck, self.head.tower)
        return self


def build_fcos(config: FCOSConfig, categories: Categories) -> FCOS:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides)
    head = FCOSHead(config.head, neck.out_channels, neck.out_strides, len(categories))
    return FCOS(backbone, neck, head, ImageInput(config.input, backbone.out_strides[-1]), categories)
