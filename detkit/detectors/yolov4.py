"""YOLOv4 (Bochkovskiy, Wang, Liao, arXiv 2004.10934): CSPDarknet53, spatial pyramid pooling, path aggregation.

yolov4-tiny has the backbone `csp_darknet53_tiny` at strides 16 and 32, the neck `yolov4_tiny` and its own anchors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.csp_darknet53 import CSPDarknet53Config
from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v4 import YOLOv4Head, YOLOv4HeadConfig
from detkit.nn.input import DarknetInputConfig, ImageInput, ResizeConfig, StretchConfig
from detkit.nn.necks.neck import Neck
from detkit.nn.necks.yolo import YOLONeck, YOLONeckConfig
from detkit.nn.necks.yolo_v4 import YOLOv4Neck, YOLOv4NeckConfig
from detkit.structures import Categories


class YOLOv4InputConfig(DarknetInputConfig):
    """RGB / 255, stretched: yolov4.cfg has no letterbox."""

    resize: ResizeConfig = StretchConfig(size=608)


class YOLOv4Config(Config):
    """Defaults: yolov4.cfg."""

    name: Literal["yolov4"] = "yolov4"
    backbone: BackboneConfig = CSPDarknet53Config()
    neck: Annotated[YOLOv4NeckConfig | YOLONeckConfig, Field(discriminator="name")] = YOLOv4NeckConfig()
    head: YOLOv4HeadConfig = YOLOv4HeadConfig()
    input: YOLOv4InputConfig = YOLOv4InputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> YOLOv4Config:
        levels = len(self.backbone.strides)
        if len(self.head.anchors) != levels:
            raise ValueError(f"head.anchors: expected {levels} lists, one a level, found {len(self.head.anchors)}")
        return self


class YOLOv4(SingleShotDetector[YOLOOutputs]):
    """YOLOv3's grid of anchors, of which several learn an object."""


def build_yolov4(config: YOLOv4Config, categories: Categories) -> YOLOv4:
    backbone = build_backbone(config.backbone)
    channels, strides = backbone.out_channels, backbone.out_strides
    neck: Neck = (
        YOLONeck(config.neck, channels, strides)
        if isinstance(config.neck, YOLONeckConfig)
        else YOLOv4Neck(channels, strides)
    )
    head = YOLOv4Head(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOv4(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
