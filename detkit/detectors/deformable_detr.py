"""Deformable DETR (Zhu, Su, Lu, Li, Wang, Dai, ICLR 2021, arXiv 2010.04159): set prediction from several levels.

`head.refine` and `head.two_stage` are its two variants. `backbone.strides: [32]` and `neck.extra_levels: 0` give its
form with one level.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.deformable_detr import DeformableDETRHead, DeformableDETRHeadConfig
from detkit.nn.heads.set_head import ProposingOutputs
from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig
from detkit.nn.necks.projection import Projection, ProjectionConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Categories


class DeformableDETRConfig(Config):
    """Defaults: R50, four levels."""

    name: Literal["deformable_detr"] = "deformable_detr"
    backbone: BackboneConfig = ResNetConfig(strides=(8, 16, 32))
    neck: ProjectionConfig = ProjectionConfig()
    head: DeformableDETRHeadConfig = DeformableDETRHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> DeformableDETRConfig:
        check_parts(self.neck, self.head.transformer, self.input)
        return self


def check_parts(neck: ProjectionConfig, transformer: TransformerConfig, image_input: InputConfig) -> None:
    """Raises ValueError unless the levels of the neck have the width of the transformer and padding is masked."""
    if neck.out_channels != transformer.width:
        raise ValueError(
            f"neck.out_channels: expected head.transformer.width, {transformer.width}, found {neck.out_channels}"
        )
    if isinstance(image_input.resize, LetterboxConfig):
        raise ValueError("input.resize: padding is masked here, a letterbox gains nothing; use {name: short_side}")


class DeformableDETR(SingleShotDetector[ProposingOutputs]):
    """Every query attends to a few points near its position, in all levels."""


def build_deformable_detr(config: DeformableDETRConfig, categories: Categories) -> DeformableDETR:
    backbone = build_backbone(config.backbone)
    neck = Projection(config.neck, backbone.out_channels, backbone.out_strides)
    head = DeformableDETRHead(config.head, neck.out_channels, len(categories))
    return DeformableDETR(backbone, neck, head, ImageInput(config.input, stride=1), categories)
