"""SSD (Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, arXiv 1512.02325).

SSD300, SSD512, MobileNet-SSD and SSDLite are configurations; the head also goes onto other backbones and necks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from detkit.config import Config
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.vgg import SSDVGGConfig
from detkit.nn.heads.ssd import SSDHead, SSDHeadConfig, SSDOutputs
from detkit.nn.input import ImageInput, InputConfig, ResizeConfig, StretchConfig
from detkit.nn.necks import build_neck
from detkit.nn.necks.extra_levels import ExtraLevelsConfig
from detkit.nn.necks.fpn import FPNConfig
from detkit.structures import Categories

SSDNeckConfig = Annotated[ExtraLevelsConfig | FPNConfig, Field(discriminator="name")]


class SSDInputConfig(InputConfig):
    """Caffe's mean, in RGB as torchvision's weights expect it."""

    resize: ResizeConfig = StretchConfig(size=300)
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class SSD(SingleShotDetector[SSDOutputs]):
    """Default boxes of growing size on ever coarser levels."""


class PriorBasedConfig(Config):
    """What SSD and ACT share. Defaults: SSD300 on VOC."""

    name: str
    backbone: BackboneConfig = SSDVGGConfig()
    neck: SSDNeckConfig | None = ExtraLevelsConfig()  # null: the backbone's levels as they are
    head: SSDHeadConfig = SSDHeadConfig()
    input: SSDInputConfig = SSDInputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.backbone.strides) + (self.neck.num_extra_levels if self.neck else 0)
        sizes, resize = self.head.priors.min_sizes, self.input.resize
        if len(sizes) != levels:
            raise ValueError(
                f"head.priors.min_sizes: expected {levels} entries, one for each feature level, found {len(sizes)}"
            )
        if not isinstance(resize, StretchConfig):
            raise ValueError("input.resize: priors are laid out for one input size; use {name: stretch, size: 300}")
        if getattr(self.backbone, "weights", None) == "IMAGENET1K_V1" and max(self.input.std) < 2:
            raise ValueError(
                "input.std: backbone.weights IMAGENET1K_V1 need ImageNet's pixels, mean [123.675, 116.28, 103.53] and "
                f"std [58.395, 57.12, 57.375], found {list(self.input.std)}"
            )
        if resize.train_sizes and self.head.priors.steps:
            raise ValueError("input.resize.train_sizes: head.priors.steps are those of one input size; use steps: null")
        return self


class SSDConfig(PriorBasedConfig):
    name: Literal["ssd"] = "ssd"


def build_ssd(config: SSDConfig, categories: Categories) -> SSD:
    backbone = build_backbone(config.backbone)
    neck = build_neck(config.neck, backbone.out_channels, backbone.out_strides)
    head = SSDHead(config.head, (neck or backbone).out_channels, len(categories))
    return SSD(backbone, neck, head, ImageInput(config.input, stride=1), categories)
