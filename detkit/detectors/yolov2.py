"""YOLOv2 (Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv 1612.08242): Darknet-19 and a passthrough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator
from torch import Tensor

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.darknet import DarknetConfig
from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v2 import YOLOv2Head, YOLOv2HeadConfig
from detkit.nn.input import DarknetInputConfig, ImageInput
from detkit.nn.necks.yolo import Passthrough, PassthroughConfig
from detkit.structures import Categories, Target


class YOLOv2(SingleShotDetector[YOLOOutputs]):
    """Anchors on one level, which the passthrough fills with finer detail."""

    head: YOLOv2Head

    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.head.criterion(outputs, targets, self.images_seen)


class YOLOv2Config(Config):
    """Defaults: yolov2-voc.cfg."""

    name: Literal["yolov2"] = "yolov2"
    backbone: BackboneConfig = DarknetConfig(name="darknet19", strides=(16, 32))
    neck: PassthroughConfig = PassthroughConfig()
    head: YOLOv2HeadConfig = YOLOv2HeadConfig()
    input: DarknetInputConfig = DarknetInputConfig()

    @model_validator(mode="after")
    def _two_levels(self) -> YOLOv2Config:
        strides = self.backbone.strides
        if len(strides) != 2 or strides[1] != 2 * strides[0]:
            raise ValueError(f"backbone.strides: the passthrough joins two neighbouring levels, found {list(strides)}")
        return self


def build_yolov2(config: YOLOv2Config, categories: Categories) -> YOLOv2:
    backbone = build_backbone(config.backbone)
    neck = Passthrough(backbone.out_channels, backbone.out_strides)
    head = YOLOv2Head(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOv2(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
