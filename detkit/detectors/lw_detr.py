"""LW-DETR (Chen, Su, Zhang, et al., arXiv 2406.03459): a plain vision transformer, a projector and a light decoder.

| | backbone | neck | head |
|---|---|---|---|
| tiny | layers 6, taps 2, 4, 6, global blocks 2, 4, 6 | | 100 queries |
| small | | | |
| medium | width 384 | | |
| large | width 384, drop path .1 | width 384, scales 2, .5 | width 384, heads 12, cross heads 24, 4 points |
| xlarge | width 768, drop path .1 | as large | as large |

RF-DETR (Robinson, Robicheaux, Popov, Ramanan, Peri, arXiv 2511.09554; its code) is the same on a DINOv2:

    backbone: {name: dinov2}
    neck: {norm: ln}

with 24 positions a side and 2 decoder layers in nano (pictures of 384 px), 32 and 3 in small (512 px), 36 and 4 in
medium (576 px), 44 and 4 in large (704 px).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.rt_detr import check_canvas
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.vit import ViTConfig, WindowedViTConfig
from detkit.nn.heads.lw_detr import LWDETRHead, LWDETRHeadConfig, LWDETROutputs
from detkit.nn.input import ImageInput, InputConfig, ResizeConfig, StretchConfig
from detkit.nn.necks.c2f_projector import C2fProjector, C2fProjectorConfig
from detkit.structures import Categories


class LWDETRInputConfig(InputConfig):
    """A square, whatever the aspect."""

    resize: ResizeConfig = StretchConfig(size=640)


class LWDETRConfig(Config):
    """Defaults: LW-DETR small."""

    name: Literal["lw_detr"] = "lw_detr"
    backbone: BackboneConfig = ViTConfig()
    neck: C2fProjectorConfig = C2fProjectorConfig()
    head: LWDETRHeadConfig = LWDETRHeadConfig()
    input: LWDETRInputConfig = LWDETRInputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> LWDETRConfig:
        if self.neck.width != self.head.transformer.width:
            raise ValueError(
                f"neck.width: expected head.transformer.width, {self.head.transformer.width}, found {self.neck.width}"
            )
        if len(set(self.backbone.strides)) != 1:
            raise ValueError(
                f"backbone.strides: the projector joins levels of one stride, found {list(self.backbone.strides)}"
            )
        self.head.transformer.points_of(len(self.neck.scales))
        stride = self.backbone.strides[0]
        windows = self.backbone.windows if isinstance(self.backbone, WindowedViTConfig) else 1
        check_canvas(self.input, (max(stride * windows, int(stride / self.neck.scales[-1])),))
        return self


class LWDETR(SingleShotDetector[LWDETROutputs]):
    """The transformer's encoder is the backbone."""


def build_lw_detr(config: LWDETRConfig, categories: Categories) -> LWDETR:
    backbone = build_backbone(config.backbone)
    neck = C2fProjector(config.neck, backbone.out_channels, backbone.out_strides)
    head = LWDETRHead(config.head, neck.out_channels, len(categories))
    return LWDETR(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
