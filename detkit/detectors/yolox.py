"""YOLOX (Ge, Liu, Wang, Li, Sun, arXiv 2107.08430): no anchors, a decoupled head, and SimOTA.

Nano, tiny, s, m, l and x differ in `depth` and `width`: (1/3, .25, depthwise), (1/3, .375), (1/3, .5), (2/3, .75),
(1, 1), (4/3, 1.25).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import override

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig
from detkit.nn.heads.yolox import YOLOXHead, YOLOXHeadConfig, YOLOXOutputs
from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig, ResizeConfig
from detkit.nn.necks.pan import PAN, PANConfig
from detkit.structures import Categories, Target


class YOLOXInputConfig(InputConfig):
    """BGR from 0 to 255, in the upper left corner of a grey canvas."""

    resize: ResizeConfig = LetterboxConfig(size=640, centred=False, fill=114)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["rgb", "bgr"] = "bgr"


class YOLOXConfig(Config):
    """Defaults: YOLOX-s."""

    name: Literal["yolox"] = "yolox"
    backbone: BackboneConfig = CSPDarknetConfig()
    neck: PANConfig = PANConfig()
    head: YOLOXHeadConfig = YOLOXHeadConfig()
    input: YOLOXInputConfig = YOLOXInputConfig()


class YOLOX(SingleShotDetector[YOLOXOutputs]):
    """Each cell predicts one box; which cells learn an object follows from what they predict."""

    head: YOLOXHead

    @override
    def criterion(self, outputs: YOLOXOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.head.criterion(outputs, targets, self.images_seen)


def build_yolox(config: YOLOXConfig, categories: Categories) -> YOLOX:
    backbone = build_backbone(config.backbone)
    neck = PAN(config.neck, backbone.out_channels, backbone.out_strides)
    head = YOLOXHead(config.head, neck.out_channels, neck.out_strides, len(categories))
    return YOLOX(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
