"""YOLOv2 (Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv 1612.08242): Darknet-19 and a passthrough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.darknet import DarknetConfig
from detkit.nn.heads.yolo_v2 import YOLOv2Head, YOLOv2HeadConfig
from detkit.nn.input import DarknetInputConfig, ImageInput
from detkit.nn.necks.yolo import Passthrough, PassthroughConfig


class YOLOv2(SingleShotDetector):
    """Anchors on one level, which the passthrough fills with finer detail."""


class YOLOv2Config(Config):
    """Defaults: yolov2-voc.cfg."""

    name: Literal["yolov2"] = "yolov2"
    backbone: BackboneConfig = DarknetConfig(name="darknet19", levels=(4, 5))
    neck: PassthroughConfig = PassthroughConfig()
    head: YOLOv2HeadConfig = YOLOv2HeadConfig()
    input: DarknetInputConfig = DarknetInputConfig()

    @model_validator(mode="after")
    def _two_levels(self) -> YOLOv2Config:
        levels = self.backbone.levels
        if len(levels) != 2 or levels[1] != levels[0] + 1:
            raise ValueError(f"backbone.levels: the passthrough joins two neighbouring levels, found {list(levels)}")
        return self


def build_yolov2(config: YOLOv2Config, class_names: Sequence[str]) -> YOLOv2:
    backbone = build_backbone(config.backbone)
    neck = Passthrough(config.neck, backbone.out_channels, backbone.out_strides)
    head = YOLOv2Head(config.head, neck.out_channels, neck.out_strides, class_names)
    return YOLOv2(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), class_names)
