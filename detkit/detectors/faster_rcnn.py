"""Faster R-CNN (Ren, He, Girshick, Sun, arXiv 1506.01497), trained end to end.

Three published forms are three configurations: VGG16 C5 with RoIPool (the paper), ResNet-50-FPN and
MobileNetV3-Large-320-FPN (torchvision).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn
from typing_extensions import Self

from detkit.config import Config, UserError
from detkit.detectors.region_based import (
    RegionBasedDetector,
    RegionBasedOutputs,
    check_pooled_levels,
    required_targets,
)
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import StagedBackbone, consecutive
from detkit.nn.heads.branch import Branch, BranchOutputs
from detkit.nn.heads.keypoint import KeypointBranch, KeypointConfig
from detkit.nn.heads.mask import MaskBranch, MaskConfig
from detkit.nn.heads.regions import RegionHead, RegionTargets
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.heads.rpn import RPN, RPNConfig, RPNOutputs
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.necks import build_neck
from detkit.nn.necks.fpn import FPNConfig
from detkit.nn.necks.neck import Neck
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.structures import Categories, Column, KeypointCategories, Target

LEARNED: dict[str, Column] = {"mask": "masks", "keypoint": "keypoints"}  # by each branch


class TwoStageConfig(Config):
    """What Faster, Cascade, Mask and Keypoint R-CNN are made of. Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    name: str
    backbone: BackboneConfig = ResNetConfig()
    neck: FPNConfig | None = FPNConfig()  # null: the backbone's levels as they are
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()
    mask: MaskConfig | None = None  # a branch that learns masks; null: none
    keypoint: KeypointConfig | None = None  # a branch that learns keypoints
    input: InputConfig = InputConfig()

    @property
    def columns(self) -> tuple[Column, ...]:
        """What of the data set it learns beside boxes."""
        branches: dict[Column, object] = {"masks": self.mask, "keypoints": self.keypoint}
        return tuple(column for column, branch in branches.items() if branch)

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
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


class FasterRCNNConfig(TwoStageConfig):
    """Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    name: Literal["faster_rcnn"] = "faster_rcnn"


@register_outputs
@dataclass(frozen=True, eq=False)
class FasterRCNNOutputs(RegionBasedOutputs[Any]):
    """Those of the region proposal network too; of the region head `RoIOutputs`, or those of a cascade.

    branches  of each branch by its name, in training
    """

    rpn: RPNOutputs
    branches: dict[str, BranchOutputs]


class FasterRCNN(RegionBasedDetector[FasterRCNNOutputs]):
    """Shared features, an RPN that proposes, a region head that classifies and refines, and further branches."""

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: Neck | None,
        rpn: RPN,
        roi: RegionHead[Any],
        image_input: ImageInput,
        categories: Categories,
        branches: Mapping[str, Branch] | None = None,
    ) -> None:
        super().__init__(backbone, neck, roi, image_input, categories)
        self.rpn = rpn
        self.branches = nn.ModuleDict(branches or {})
        self.columns = tuple(column for branch, column in LEARNED.items() if branch in self.branches)

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
        roi = self.classify(features, regions, region_targets, targets, sizes)
        detections, outputs = self.detect_in_evaluation(roi, sizes), {}
        for name, branch in self.branches.items():
            assert isinstance(branch, Branch)
            if detections is not None:
                detections = branch.detect(features, detections)
            elif region_targets is not None:
                outputs[name] = branch.outputs_of_objects(features, regions, region_targets, self.input.windows(sizes))
        return FasterRCNNOutputs(roi, detections, rpn, outputs)

    def classify(
        self,
        features: list[Tensor],
        regions: Regions,
        region_targets: RegionTargets | None,
        targets: Sequence[Target] | None,  # noqa: ARG002
        sizes: Tensor,  # noqa: ARG002
    ) -> Any:
        """The outputs of the region head. Only a cascade, whose stages find their own targets, needs the last two."""
        return self.roi(features, regions, region_targets)

    def propose(self, images: Tensor, sizes: Tensor) -> Regions:
        """The proposals of the RPN alone, for `images` and `sizes` as `network` takes them."""
        return self.rpn.propose(self._rpn_outputs(self.features(images), images, sizes))

    def _rpn_outputs(self, features: list[Tensor], images: Tensor, sizes: Tensor) -> RPNOutputs:
        canvas = (images.shape[-2], images.shape[-1])
        outputs: RPNOutputs = self.rpn(features, self.input.windows(sizes), canvas)
        return outputs

    def criterion(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        losses = {**self.rpn.criterion(outputs.rpn, targets), **self.roi.criterion(outputs.roi)}
        for name, part in outputs.branches.items():
            losses |= self.branches[name].criterion(part, targets)  # type: ignore[operator]
        return losses


def build_faster_rcnn(
    config: TwoStageConfig, categories: Categories, detector: type[FasterRCNN] = FasterRCNN
) -> FasterRCNN:
    built = build_two_stage(config, categories, detector, RoIHead)
    assert isinstance(built.roi, RoIHead)
    if note := load_classifier(config.backbone, built.roi.hidden):
        built.notes.append(note)
    return built


def build_two_stage(
    config: TwoStageConfig,
    categories: Categories,
    detector: type[FasterRCNN],
    head: Callable[[Any, int, Sequence[int], int], RegionHead[Any]],
) -> FasterRCNN:
    """head  takes its configuration, the channels of the features, the strides that it pools from, and the classes."""
    backbone = build_backbone(config.backbone)
    neck = build_neck(config.neck, backbone.out_channels, backbone.out_strides)
    channels, strides = (neck or backbone).out_channels, (neck or backbone).out_strides
    rpn = RPN(config.rpn, channels[0], strides)
    roi = head(config.roi, channels[0], backbone.out_strides, len(categories))
    branches: dict[str, Branch] = {}
    if config.mask:
        branches["mask"] = MaskBranch(config.mask, channels[0], backbone.out_strides, len(categories))
    if config.keypoint:
        num_keypoints = len(required_keypoints(categories).names)
        branches["keypoint"] = KeypointBranch(config.keypoint, channels[0], backbone.out_strides, num_keypoints)
    image_input = ImageInput(config.input, backbone.out_strides[-1])
    return detector(backbone, neck, rpn, roi, image_input, categories, branches)


def required_keypoints(categories: Categories) -> KeypointCategories:
    if categories.keypoints is None:
        raise UserError("model.keypoint: a detector of keypoints needs data with keypoints; these have none")
    return categories.keypoints
