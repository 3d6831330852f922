"""RT-DETR (Zhao et al., arXiv 2304.08069) and RT-DETRv2 (Lv et al., arXiv 2407.17140): set prediction in real time.

| | backbone | neck | head |
|---|---|---|---|
| R18 | resnet18_vd | expansion .5 | 3 decoder layers |
| R34 | resnet34_vd | expansion .5 | 4 decoder layers |
| R50-m | resnet50_vd | expansion .5 | 6 decoder layers, of which 3 run in evaluation |
| R50 | resnet50_vd | | 6 decoder layers |
| R101 | resnet101_vd | width 384, feedforward 2048 | 6 decoder layers |
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from detkit.config import Config
from detkit.detectors.denoised import DenoisedDetector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet_vd import ResNetVDConfig
from detkit.nn.heads.rt_detr import RTDETRHead, RTDETRHeadConfig
from detkit.nn.input import ImageInput, InputConfig, ResizeConfig, StretchConfig
from detkit.nn.necks.hybrid_encoder import HybridEncoder, HybridEncoderConfig
from detkit.structures import Categories


class RTDETRInputConfig(InputConfig):
    """RGB from 0 to 1 on a square, whatever the aspect."""

    resize: ResizeConfig = StretchConfig(size=640)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)


class RTDETRConfig(Config):
    """Defaults: RT-DETR R50."""

    name: Literal["rt_detr"] = "rt_detr"
    backbone: BackboneConfig = ResNetVDConfig()
    neck: HybridEncoderConfig = HybridEncoderConfig()
    head: RTDETRHeadConfig = RTDETRHeadConfig()
    input: RTDETRInputConfig = RTDETRInputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> RTDETRConfig:
        self.head.transformer.points_of(len(self.backbone.strides))
        check_canvas(self.input, self.backbone.strides)
        return self


def check_canvas(config: InputConfig, strides: tuple[int, ...]) -> None:
    """Raises ValueError unless pictures fill a canvas that the coarsest level of a `HybridEncoder` divides."""
    if not isinstance(config.resize, StretchConfig):
        raise ValueError(
            "input.resize: expected {name: stretch, size: ...}, as attention within the coarsest level masks no "
            f"padding, found {config.resize.name}"
        )
    for size in (config.resize.size, *config.resize.train_sizes):
        if size % strides[-1]:
            raise ValueError(f"input.resize: expected multiples of {strides[-1]}, found {size}")


class RTDETR(DenoisedDetector):
    """Levels exchange what they see once, and attention within the coarsest one is all that the encoder has."""


def build_rt_detr(config: RTDETRConfig, categories: Categories) -> RTDETR:
    backbone = build_backbone(config.backbone)
    neck = HybridEncoder(config.neck, backbone.out_channels, backbone.out_strides)
    head = RTDETRHead(config.head, neck.out_channels, len(categories))
    return RTDETR(backbone, neck, head, ImageInput(config.input, neck.out_strides[-1]), categories)
