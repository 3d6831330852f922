"""YOLOv7 (Wang, Bochkovskiy, Liao, arXiv 2207.02696): efficient layer aggregation, and assignment by predictions.

yolov7 is the default. yolov7-tiny has the backbone `elan_tiny`, the neck `elan_pan_tiny` and `head.block: leaky`;
yolov7x `elan_x`, `elan_pan_x` and `conv`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.detectors.yolov5 import YOLOv5InputConfig
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.elan import ELANConfig
from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v7 import YOLOv7Head, YOLOv7HeadConfig
from detkit.nn.input import ImageInput
from detkit.nn.necks.elan_pan import ELANPAN, ELANPANConfig
from detkit.structures import Categories


class YOLOv7Config(Config):
    """Defaults: yolov7."""

    name: Literal["yolov7"] = "yolov7"
    backbone: BackboneConfig = ELANConfig()
    neck: ELANPANConfig = ELANPANConfig()
    head: YOLOv7HeadConfig = YOLOv7HeadConfig()
    input: YOLOv5InputConfig = YOLOv5InputConfig()

    @model_validator(mode="after")
    def _three_levels(self) -> YOLOv7Config:
        if len(self.backbone.strides) != 3 or len(self.head.anchors) != 3:
            raise ValueError(
                f"backbone.strides: expected three, with as many lists of head.anchors, found "
                f"{list(self.backbone.strides)}"
            )
        return self


class YOLOv7(SingleShotDetector[YOLOOutputs]):
    """Of the predictions of similar shape near an object those learn it that predict it best already."""


def build_yolov7(config: YOLOv7Config, categories: Categories) -> YOLOv7:
    backbone = build_backbone(config.backbone)
    neck = ELANPAN(config.neck, backbone.out_channels, backbone.out_strides)
    head = YOLOv7Head(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOv7(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
