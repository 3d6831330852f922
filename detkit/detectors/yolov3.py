"""YOLOv3 (Redmon and Farhadi, arXiv 1804.02767): Darknet-53, predictions on three levels.

The SPP and tiny variants of darknet are configurations.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.darknet import DarknetConfig
from detkit.nn.backbones.staged import consecutive
from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v3 import YOLOv3Head, YOLOv3HeadConfig
from detkit.nn.input import DarknetInputConfig, ImageInput
from detkit.nn.necks.yolo import YOLONeck, YOLONeckConfig
from detkit.structures import Categories


class YOLOv3(SingleShotDetector[YOLOOutputs]):
    """Each level predicts the objects whose shape is nearest to one of its anchors."""


class YOLOv3Config(Config):
    """Defaults: yolov3.cfg."""

    name: Literal["yolov3"] = "yolov3"
    backbone: BackboneConfig = DarknetConfig(name="darknet53")
    neck: YOLONeckConfig = YOLONeckConfig()
    head: YOLOv3HeadConfig = YOLOv3HeadConfig()
    input: DarknetInputConfig = DarknetInputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> YOLOv3Config:
        strides, anchors = self.backbone.strides, self.head.anchors
        if not consecutive(strides):
            raise ValueError(f"backbone.strides: expected no gap between them, found {list(strides)}")
        if len(anchors) != len(strides):
            raise ValueError(f"head.anchors: expected {len(strides)} lists, one for each level, found {len(anchors)}")
        return self


def build_yolov3(config: YOLOv3Config, categories: Categories) -> YOLOv3:
    backbone = build_backbone(config.backbone)
    neck = YOLONeck(config.neck, backbone.out_channels, backbone.out_strides)
    head = YOLOv3Head(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOv3(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
