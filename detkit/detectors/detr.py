"""DETR (Carion, Massa, Synnaeve, Usunier, Kirillov, Zagoruyko, ECCV 2020, arXiv 2005.12872).

R50, R50-DC5 and R101 are configurations. `head: {name: dab_detr}` learns sooner; the paper's head is the default.

On padding: attention never looks at it and positions do not count it, so the head gives each image what it gives it
alone (but that the nearest-neighbour mask may count a row or column of cells more where the canvas is no multiple of
the stride). The trunk is different: alone, an image ends in zeros at every convolution; in a padded batch its last
cells see what biases and norms made of the padding. Published numbers therefore depend on the evaluation's batch size,
and `eval.batch_size: 1` has no padding at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from detkit.config import Config
from detkit.detectors.detector import Detector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.dab_detr import DABDETRHead, DABDETRHeadConfig
from detkit.nn.heads.detr import DETRHead, DETRHeadConfig, DETROutputs, SetHead
from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig
from detkit.structures import Batch, Detections, ImageInfo, Target

HeadConfig = Annotated[DETRHeadConfig | DABDETRHeadConfig, Field(discriminator="name")]


class DETRConfig(Config):
    """Defaults: DETR R50."""

    name: Literal["detr"] = "detr"
    backbone: BackboneConfig = ResNetConfig(levels=(5,))
    head: HeadConfig = DETRHeadConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _one_level_without_a_border(self) -> DETRConfig:
        if len(self.backbone.levels) != 1:
            raise ValueError(f"backbone.levels: the transformer reads one level, found {list(self.backbone.levels)}")
        if isinstance(self.input.resize, LetterboxConfig):
            raise ValueError("input.resize: padding is masked here, a letterbox gains nothing; use {name: short_side}")
        return self


class DETR(Detector):
    """A trunk, and a head that says which objects there are: no anchors, no suppression."""

    def __init__(
        self, backbone: StagedBackbone, head: SetHead, image_input: ImageInput, class_names: Sequence[str]
    ) -> None:
        super().__init__(image_input, class_names)
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> DETROutputs:
        images = self.input(batch)
        (features,) = self.backbone(images)
        canvas = (images.shape[2], images.shape[3])
        outputs: DETROutputs = self.head(features, batch.input_sizes, canvas)
        return outputs

    def criterion(self, outputs: DETROutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.head.criterion(outputs, targets)

    def postprocess(self, outputs: DETROutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        return self.head.postprocess(outputs, infos)


def build_detr(config: DETRConfig, class_names: Sequence[str]) -> DETR:
    backbone = build_backbone(config.backbone)
    (channels,) = backbone.out_channels
    match config.head:
        case DETRHeadConfig():
            head: SetHead = DETRHead(config.head, channels, class_names)
        case DABDETRHeadConfig():
            head = DABDETRHead(config.head, channels, class_names)
    # stride 1: as published, a batch is as large as its largest images, and one image has no padding
    return DETR(backbone, head, ImageInput(config.input, stride=1), class_names)
