"""DiffusionDet (Chen, Sun, Song, Luo, ICCV 2023, arXiv 2211.09788): boxes by diffusion, on a feature pyramid.

`head.num_boxes` and `head.steps` may be others in use than in training: `--set model.head.steps=4`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.denoised import DenoisedDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import consecutive
from detkit.nn.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig
from detkit.nn.necks.fpn import FPN, FPNConfig
from detkit.structures import Categories


class DiffusionFPNConfig(FPNConfig):
    extra_level: Literal["none"] = "none"  # boxes are pooled from the levels of the backbone's strides


class DiffusionDetConfig(Config):
    """Defaults: R50-FPN."""

    name: Literal["diffusiondet"] = "diffusiondet"
    backbone: BackboneConfig = ResNetConfig()
    neck: DiffusionFPNConfig = DiffusionFPNConfig()
    head: DiffusionHeadConfig = DiffusionHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> DiffusionDetConfig:
        strides, width, heads = self.backbone.strides, self.neck.out_channels, self.head.layer.heads
        if not consecutive(strides):
            raise ValueError(f"backbone.strides: expected no gap between them, found {list(strides)}")
        if width % heads or width % 2:
            raise ValueError(f"neck.out_channels: expected a multiple of 2 and of head.layer.heads, found {width}")
        if isinstance(self.input.resize, LetterboxConfig):
            raise ValueError("input.resize: boxes are in parts of the picture, not of a letterbox; use short_side")
        return self


class DiffusionDet(DenoisedDetector):
    """In training the head is given the objects with noise, in evaluation noise alone."""


def build_diffusiondet(config: DiffusionDetConfig, categories: Categories) -> DiffusionDet:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides)
    head = DiffusionHead(config.head, config.neck.out_channels, neck.out_strides, len(categories))
    return DiffusionDet(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
