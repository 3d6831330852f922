"""D-FINE (Peng et al., ICLR 2025, arXiv 2410.13842): RT-DETR with boxes that are distributions, which layers refine.
With the loss and the activations of DEIM (Huang et al., CVPR 2025, arXiv 2412.04234).

The published sizes, from the defaults; `backbone.model` is hgnetv2_b0 in N and S:

| | backbone | neck | head |
|---|---|---|---|
| N | strides 16 32 | width 128, feedforward 512, expansion .34, depth .5 | as the neck, 3 decoder layers, points 6 6 |
| S | | expansion .5, depth .34 | 3 decoder layers |
| M | hgnetv2_b2 | depth .67 | 4 decoder layers |
| L | hgnetv2_b4, frozen_bn | | 6 decoder layers |
| X | hgnetv2_b5, frozen_bn | width 384, feedforward 2048 | 6 decoder layers, edges of scale 8 |
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from detkit.config import Config
from detkit.detectors.denoised import DenoisedDetector
from detkit.detectors.rt_detr import RTDETRInputConfig, check_canvas
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.timm import TimmConfig
from detkit.nn.heads.d_fine import DFINEHead, DFINEHeadConfig
from detkit.nn.input import ImageInput
from detkit.nn.necks.hybrid_encoder import HybridEncoder, HybridEncoderConfig
from detkit.structures import Categories


class DFINENeckConfig(HybridEncoderConfig):
    form: Literal["rt_detr", "d_fine"] = "d_fine"


class DFINEConfig(Config):
    """Defaults: D-FINE L, whose backbone needs the extra `timm`."""

    name: Literal["d_fine"] = "d_fine"
    # built when it is asked for, as looking a network up imports timm
    backbone: BackboneConfig = Field(default_factory=lambda: TimmConfig(model="hgnetv2_b4", norm="frozen_bn"))
    neck: DFINENeckConfig = DFINENeckConfig()
    head: DFINEHeadConfig = DFINEHeadConfig()
    input: RTDETRInputConfig = RTDETRInputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> DFINEConfig:
        self.head.transformer.points_of(len(self.backbone.strides))
        check_canvas(self.input, self.backbone.strides)
        return self


class DFINE(DenoisedDetector):
    """Every decoder layer moves the edges of the first layer's boxes, by distributions that it refines."""


def build_d_fine(config: DFINEConfig, categories: Categories) -> DFINE:
    backbone = build_backbone(config.backbone)
    neck = HybridEncoder(config.neck, backbone.out_channels, backbone.out_strides)
    head = DFINEHead(config.head, neck.out_channels, len(categories))
    return DFINE(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
