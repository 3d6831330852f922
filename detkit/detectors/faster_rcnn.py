"""Faster R-CNN (Ren, He, Girshick, Sun, arXiv 1506.01497), trained end to end.

Three published forms are three configurations: VGG16 C5 with RoIPool (the paper), ResNet-50-FPN and
MobileNetV3-Large-320-FPN (torchvision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator
from torch import Tensor

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector, check_pooled_levels
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.heads.rpn import RPN, RPNConfig, RPNOutputs
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks.fpn import FPN, FPNConfig
from detkit.structures import Batch, Detections, ImageInfo, Target


class FasterRCNNConfig(Config):
    """Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    name: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: BackboneConfig = ResNetConfig()
    neck: FPNConfig | None = FPNConfig()  # null: the backbone's levels as they are
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _levels_agree(self) -> FasterRCNNConfig:
        check_pooled_levels(self.backbone.levels, self.neck, self.roi.pool)
        levels = len(self.backbone.levels)
        if list(self.backbone.levels) != list(range(self.backbone.levels[0], self.backbone.levels[0] + levels)):
            raise ValueError(f"backbone.levels: expected no gap between them, found {list(self.backbone.levels)}")
        levels += self.neck is not None and self.neck.extra_level != "none"
        if len(self.rpn.anchors.sizes) != levels:
            raise ValueError(
                f"rpn.anchors.sizes: expected {levels} lists, one a feature level, found {len(self.rpn.anchors.sizes)}"
            )
        return self


@dataclass(frozen=True, eq=False)
class FasterRCNNOutputs:
    rpn: RPNOutputs
    roi: RoIOutputs


class FasterRCNN(RegionBasedDetector):
    """Shared features, an RPN that proposes, a region head that decides."""

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: FPN | None,
        rpn: RPN,
        roi: RoIHead,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(backbone, neck, roi, image_input, class_names)
        self.rpn = rpn

    def forward(self, batch: Batch) -> FasterRCNNOutputs:
        images = self.input(batch)
        features = self.features(images)
        rpn = self.rpn(features, batch.input_sizes, (images.shape[2], images.shape[3]))
        proposals, samples = self.chosen(self.rpn.propose(rpn, batch.infos), batch)
        return FasterRCNNOutputs(rpn, self.roi(features, proposals, samples))

    def criterion(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return {**self.rpn.criterion(outputs.rpn, targets), **self.roi.criterion(outputs.roi)}

    def postprocess(self, outputs: FasterRCNNOutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        return self.roi.postprocess(outputs.roi, infos)


def build_faster_rcnn(config: FasterRCNNConfig, class_names: Sequence[str]) -> FasterRCNN:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides) if config.neck else None
    channels, strides = (neck or backbone).out_channels, (neck or backbone).out_strides
    rpn = RPN(config.rpn, channels[0], strides)
    roi = RoIHead(config.roi, channels[0], backbone.out_strides, class_names)
    load_classifier(config.backbone, roi.hidden)
    return FasterRCNN(backbone, neck, rpn, roi, ImageInput(config.input, backbone.out_strides[-1]), class_names)
