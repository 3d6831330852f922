"""YOLOv5 (Jocher et al. 2020, release 6.0; there is no paper): CSPDarknet, PAN, anchors with neighbour cells.

n, s, m, l and x differ in `depth` and `width`: (1/3, .25), (1/3, .5), (2/3, .75), (1, 1), (4/3, 1.25).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig
from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v5 import YOLOv5Head, YOLOv5HeadConfig
from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig, ResizeConfig
from detkit.nn.necks.pan import PAN, PANConfig
from detkit.structures import Categories


class YOLOv5InputConfig(InputConfig):
    """RGB / 255, in the middle of a grey square."""

    resize: ResizeConfig = LetterboxConfig(size=640, fill=114)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)


class YOLOv5Config(Config):
    """Defaults: YOLOv5s."""

    name: Literal["yolov5"] = "yolov5"
    backbone: BackboneConfig = CSPDarknetConfig(form="yolov5")
    neck: PANConfig = PANConfig()
    head: YOLOv5HeadConfig = YOLOv5HeadConfig()
    input: YOLOv5InputConfig = YOLOv5InputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> YOLOv5Config:
        levels = len(self.backbone.strides)
        if len(self.head.anchors) != levels:
            raise ValueError(f"head.anchors: expected {levels} lists, one a level, found {len(self.head.anchors)}")
        return self


class YOLOv5(SingleShotDetector[YOLOOutputs]):
    """Up to three cells, with all anchors of a similar shape, answer for an object on each level."""


def build_yolov5(config: YOLOv5Config, categories: Categories) -> YOLOv5:
    backbone = build_backbone(config.backbone)
    neck = PAN(config.neck, backbone.out_channels, backbone.out_strides)
    head = YOLOv5Head(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOv5(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
