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
from detkit.detectors.region_based import (
    RegionBasedDetector,
    RegionBasedOutputs,
    check_pooled_levels,
    required_targets,
)
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import StagedBackbone, consecutive
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.heads.rpn import RPN, RPNConfig, RPNOutputs
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks import build_neck
from detkit.nn.necks.fpn import FPNConfig
from detkit.nn.necks.neck import Neck
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.structures import Categories, Target


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
        strides = self.backbone.strides
        check_pooled_levels(strides, self.neck, self.roi.pool)
        if not consecutive(strides):
            raise ValueError(f"backbone.strides: expected no gap between them, found {list(strides)}")
        levels = len(strides) + (self.neck.num_extra_levels if self.neck else 0)
        if len(self.rpn.anchors.sizes) != levels:
            raise ValueError(
                f"rpn.anchors.sizes: expected {levels} lists, one a feature level, found {len(self.rpn.anchors.sizes)}"
            )
        return self


@register_outputs
@dataclass(frozen=True, eq=False)
class FasterRCNNOutputs(RegionBasedOutputs[RoIOutputs]):
    """Those of the region proposal network too."""

    rpn: RPNOutputs


class FasterRCNN(RegionBasedDetector[FasterRCNNOutputs]):
    """Shared features, an RPN that proposes, a region head that classifies and refines."""

    roi: RoIHead

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: Neck | None,
        rpn: RPN,
        roi: RoIHead,
        image_input: ImageInput,
        categories: Categories,
    ) -> None:
        super().__init__(backbone, neck, roi, image_input, categories)
        self.rpn = rpn

    def network(
        self,
        images: Tensor,
        sizes: Tensor,
        proposals: Regions | None = None,
        targets: Sequence[Target] | None = None,
    ) -> FasterRCNNOutputs:
        """proposals  instead of those of the RPN"""
        if self.training:
            required_targets(targets)  # before the work
        features = self.features(images)
        rpn = self._rpn_outputs(features, images, sizes)
        if proposals is None:
            proposals = self.rpn.propose(rpn)
        regions, region_targets = self.regions_with_targets(proposals, targets)
        roi = self.roi(features, regions, region_targets)
        return FasterRCNNOutputs(roi, self.detect_in_evaluation(roi, sizes), rpn)

    def propose(self, images: Tensor, sizes: Tensor) -> Regions:
        """The proposals of the RPN alone, for `images` and `sizes` as `network` takes them."""
        return self.rpn.propose(self._rpn_outputs(self.features(images), images, sizes))

    def _rpn_outputs(self, features: list[Tensor], images: Tensor, sizes: Tensor) -> RPNOutputs:
        canvas = (images.shape[2], images.shape[3])
        outputs: RPNOutputs = self.rpn(features, self.input.windows(sizes), canvas)
        return outputs

    def criterion(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return {**self.rpn.criterion(outputs.rpn, targets), **self.roi.criterion(outputs.roi)}


def build_faster_rcnn(config: FasterRCNNConfig, categories: Categories) -> FasterRCNN:
    backbone = build_backbone(config.backbone)
    neck = build_neck(config.neck, backbone.out_channels, backbone.out_strides)
    channels, strides = (neck or backbone).out_channels, (neck or backbone).out_strides
    rpn = RPN(config.rpn, channels[0], strides)
    roi = RoIHead(config.roi, channels[0], backbone.out_strides, len(categories))
    image_input = ImageInput(config.input, backbone.out_strides[-1])
    detector = FasterRCNN(backbone, neck, rpn, roi, image_input, categories)
    if note := load_classifier(config.backbone, roi.hidden):
        detector.notes.append(note)
    return detector
