"""DINO (Zhang, Li, Liu, Zhang, Su, Zhu, Ni, Shum, ICLR 2023, arXiv 2203.03605): Deformable DETR's levels and encoder,
queries that the encoder proposes, and denoising queries in training.

The defaults are its form with four levels; `backbone.strides: [4, 8, 16, 32]` gives that with five.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.deformable_detr import check_parts
from detkit.detectors.denoised import DenoisedDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.dino import DINOHead, DINOHeadConfig
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks.projection import Projection, ProjectionConfig
from detkit.structures import Categories


class DINOConfig(Config):
    """Defaults: R50, four levels."""

    name: Literal["dino"] = "dino"
    backbone: BackboneConfig = ResNetConfig(strides=(8, 16, 32))
    neck: ProjectionConfig = ProjectionConfig()
    head: DINOHeadConfig = DINOHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> DINOConfig:
        check_parts(self.neck, self.head.transformer, self.input)
        return self


class DINO(DenoisedDetector):
    """Queries start at the likeliest cells of all levels."""


def build_dino(config: DINOConfig, categories: Categories) -> DINO:
    backbone = build_backbone(config.backbone)
    neck = Projection(config.neck, backbone.out_channels, backbone.out_strides)
    head = DINOHead(config.head, neck.out_channels, len(categories))
    return DINO(backbone, neck, head, ImageInput(config.input, stride=1), categories)
