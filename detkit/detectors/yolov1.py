"""YOLOv1 (Redmon, Divvala, Girshick, Farhadi, arXiv 1506.02640).

Three published forms are three configurations: the paper (24 convolutions without batch norm, fully connected),
yolov1.cfg (batch norm, a locally connected layer, three boxes a cell) and yolov1-tiny.cfg.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.darknet import DarknetConfig
from detkit.nn.heads.yolo_v1 import YOLOv1Head, YOLOv1HeadConfig, YOLOv1Outputs
from detkit.nn.input import DarknetInputConfig, ImageInput, StretchConfig
from detkit.structures import Categories


class YOLOv1(SingleShotDetector[YOLOv1Outputs]):
    """A single coarse level, read as a whole."""


class YOLOv1Config(Config):
    """Defaults: the paper."""

    name: Literal["yolov1"] = "yolov1"
    backbone: BackboneConfig = DarknetConfig(name="yolov1", norm="none", strides=(64,))
    head: YOLOv1HeadConfig = YOLOv1HeadConfig()
    input: DarknetInputConfig = DarknetInputConfig(resize=StretchConfig(size=448))

    @model_validator(mode="after")
    def _one_size(self) -> YOLOv1Config:
        resize = self.input.resize
        if not isinstance(resize, StretchConfig) or resize.train_sizes:
            raise ValueError("input.resize: the fully connected layers read one size; use {name: stretch, size: 448}")
        if len(self.backbone.strides) != 1:
            raise ValueError(f"backbone.strides: expected one level, found {list(self.backbone.strides)}")
        return self


def build_yolov1(config: YOLOv1Config, categories: Categories) -> YOLOv1:
    backbone = build_backbone(config.backbone)
    (channels,), (stride,) = backbone.out_channels, backbone.out_strides
    assert isinstance(config.input.resize, StretchConfig)
    side = -(-config.input.resize.size // stride)
    head = YOLOv1Head(config.head, channels, (side, side), len(categories))
    return YOLOv1(backbone, None, head, ImageInput(config.input, stride), categories)
