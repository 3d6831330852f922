"""DETR (Carion, Massa, Synnaeve, Usunier, Kirillov, Zagoruyko, ECCV 2020, arXiv 2005.12872).

R50, R50-DC5 and R101 are configurations. The paper's head is the default. Its descendants on one level learn sooner:

    head: {name: conditional_detr}          Conditional DETR (Meng et al., ICCV 2021, arXiv 2108.06152)
    head: {name: dab_detr}                  DAB-DETR (Liu et al., ICLR 2022, arXiv 2201.12329)
    head: {name: dab_detr, denoising: {}}   DN-DETR (Li et al., CVPR 2022, arXiv 2203.01305)

Padding: attention is masked and positions are counted without it, so the head gives each image the same in a batch as
alone (except where the canvas is no multiple of the stride: the nearest-neighbour mask may count one more row or column
of cells). The backbone does not: alone, every convolution sees zeros beyond the image's border; in a padded batch, the
outermost cells see padding that biases and norms have changed. Published numbers therefore depend on the batch size of
the evaluation, and `eval.batch_size: 1` has no padding at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from detkit.config import Config
from detkit.detectors.denoised import DenoisedDetector
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.conditional_detr import ConditionalDETRHead, ConditionalDETRHeadConfig
from detkit.nn.heads.dab_detr import DABDETRHead, DABDETRHeadConfig
from detkit.nn.heads.detr import DETRHead, DETRHeadConfig
from detkit.nn.heads.set_head import SetHead
from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig
from detkit.structures import Categories

HeadConfig = Annotated[DETRHeadConfig | ConditionalDETRHeadConfig | DABDETRHeadConfig, Field(discriminator="name")]


class DETRConfig(Config):
    """Defaults: DETR R50."""

    name: Literal["detr"] = "detr"
    backbone: BackboneConfig = ResNetConfig(strides=(32,))
    head: HeadConfig = DETRHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _one_level_without_letterbox(self) -> DETRConfig:
        if len(self.backbone.strides) != 1:
            raise ValueError(f"backbone.strides: the transformer reads one level, found {list(self.backbone.strides)}")
        if isinstance(self.input.resize, LetterboxConfig):
            raise ValueError("input.resize: padding is masked here, a letterbox gains nothing; use {name: short_side}")
        return self


def build_detr(config: DETRConfig, categories: Categories) -> SingleShotDetector[Any]:
    backbone = build_backbone(config.backbone)
    (channels,) = backbone.out_channels
    # stride 1: as published, a batch is as large as its largest images, and one image has no padding
    image_input = ImageInput(config.input, stride=1)
    match config.head:
        case DETRHeadConfig():
            head: SetHead[Any] = DETRHead(config.head, channels, len(categories))
        case ConditionalDETRHeadConfig():
            head = ConditionalDETRHead(config.head, channels, len(categories))
        case DABDETRHeadConfig():
            dab = DABDETRHead(config.head, channels, len(categories))
            return DenoisedDetector(backbone, None, dab, image_input, categories)
    return SingleShotDetector(backbone, None, head, image_input, categories)
