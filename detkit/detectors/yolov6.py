"""YOLOv6, release 0.4 (Li et al., arXiv 2209.02976 and 2301.05586): re-parameterised convolutions and task-aligned
assignment.

s is the default. Of the others `width`, `depth`, `neck.blocks` (12 times the depth) and `form` are: n .25, 1/3, 4, rep;
m .75, .6, 7, csp_rep; l 1, 1, 12, csp_conv. n has `head.box_loss: siou`; m and l have `head.reg_max: 16`.

Left out: self-distillation (m, l) and anchor-aided training, which add losses from a teacher and from a second head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.detectors.yolov5 import YOLOv5InputConfig
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.efficient_rep import EfficientRepConfig
from detkit.nn.backbones.staged import consecutive
from detkit.nn.heads.yolo_v6 import YOLOv6Head, YOLOv6HeadConfig, YOLOv6Outputs
from detkit.nn.input import ImageInput
from detkit.nn.necks.rep_pan import RepPAN, RepPANConfig
from detkit.structures import Categories, Target


class YOLOv6Config(Config):
    """Defaults: YOLOv6-s."""

    name: Literal["yolov6"] = "yolov6"
    backbone: BackboneConfig = EfficientRepConfig()
    neck: RepPANConfig = RepPANConfig()
    head: YOLOv6HeadConfig = YOLOv6HeadConfig()
    input: YOLOv5InputConfig = YOLOv5InputConfig()

    @model_validator(mode="after")
    def _each_level_is_half_of_the_finer_one(self) -> YOLOv6Config:
        strides = self.backbone.strides
        if len(strides) < 3 or len(set(strides)) < len(strides) or not consecutive(strides):
            raise ValueError(
                f"backbone.strides: expected three or more, each double the one before it, found {list(strides)}; "
                f"the finest is joined with the next and not predicted on"
            )
        return self


class YOLOv6(SingleShotDetector[YOLOv6Outputs]):
    """Each cell predicts one box; those learn an object that score and overlap it best."""

    head: YOLOv6Head

    @override
    def criterion(self, outputs: YOLOv6Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.head.criterion(outputs, targets, self.images_seen)


def build_yolov6(config: YOLOv6Config, categories: Categories) -> YOLOv6:
    backbone = build_backbone(config.backbone)
    neck = RepPAN(config.neck, backbone.out_channels, backbone.out_strides)
    head = YOLOv6Head(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOv6(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
