"""Fast R-CNN (Girshick, ICCV 2015, arXiv 1504.08083): proposals from elsewhere, one shared map, one region head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector, RegionBasedOutputs, check_pooled_levels
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import VGGConfig
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.input import ImageInput, InputConfig, ShortSideConfig
from detkit.nn.necks import build_neck
from detkit.nn.necks.fpn import FPNConfig
from detkit.nn.necks.neck import Neck
from detkit.nn.proposals import ProposalsConfig
from detkit.nn.proposals.regions import Regions
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.nn.selection import SelectionConfig
from detkit.ops.boxes import box_area
from detkit.structures import Categories, Target

CANONICAL_AREA = 224.0**2  # px^2, to which a region is nearest in its scale


class FastSelectionConfig(SelectionConfig):
    nms_threshold: float | None = Field(0.3, ge=0, le=1)


class FastRoIConfig(RoIConfig):
    """The paper's (sections 2.3 and 3.1): RoIPool, fc6 and fc7, 64 regions of each of two images."""

    pool: Literal["align", "pool"] = "pool"
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = Field(0.5, ge=0, lt=1)
    bg_threshold: tuple[float, float] = (0.1, 0.5)  # its lower end is the paper's hard mining
    batch_size_per_image: int = Field(64, ge=1)
    smooth_l1_beta: float = Field(1.0, ge=0)
    selection: FastSelectionConfig = FastSelectionConfig()


class FastRCNNConfig(Config):
    """Defaults: VGG16 on VOC."""

    at_test: ClassVar[tuple[str, ...]] = ("proposals", "test_sizes")

    name: Literal["fast_rcnn"] = "fast_rcnn"
    backbone: BackboneConfig = VGGConfig()
    neck: FPNConfig | None = None  # null: the backbone's levels as they are
    roi: FastRoIConfig = FastRoIConfig()
    proposals: ProposalsConfig = SelectiveSearchConfig(max_boxes=2000)
    input: InputConfig = InputConfig(resize=ShortSideConfig(size=600, max_size=1000))
    # px of the shorter side, up to that of `input`: evaluation pools each region where it is nearest to 224 x 224
    # (section 2.4); empty: one scale
    test_sizes: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> FastRCNNConfig:
        check_pooled_levels(self.backbone.strides, self.neck, self.roi.pool)
        resize = self.input.resize
        if not self.test_sizes:
            return self
        if not isinstance(resize, ShortSideConfig) or min(self.test_sizes) < 1:
            raise ValueError("test_sizes: expected sizes of the shorter side under input.resize {name: short_side}")
        if max(self.test_sizes) > resize.size:
            raise ValueError(f"test_sizes: expected at most input.resize.size, found {max(self.test_sizes)}")
        return self


class FastRCNN(RegionBasedDetector[RegionBasedOutputs[RoIOutputs]]):
    """Faster R-CNN without the network that proposes: `batch.proposals` come with the images."""

    roi: RoIHead

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: Neck | None,
        roi: RoIHead,
        proposals: ProposalsConfig,
        image_input: ImageInput,
        categories: Categories,
        test_scales: Sequence[float] = (),
    ) -> None:
        super().__init__(backbone, neck, roi, image_input, categories)
        self.proposals = proposals
        self.test_scales = tuple(test_scales)  # of the input

    def network(
        self,
        images: Tensor,
        sizes: Tensor,
        proposals: Regions | None = None,
        targets: Sequence[Target] | None = None,
    ) -> RegionBasedOutputs[RoIOutputs]:
        regions, region_targets = self.regions_with_targets(proposals, targets)
        if self.test_scales and not self.training:
            roi = self.roi.predict(self.pool_at_best_scale(images, regions), regions, None)
        else:
            roi = self.roi(self.features(images), regions, region_targets)
        return RegionBasedOutputs(roi, self.detect_in_evaluation(roi, sizes))

    def pool_at_best_scale(self, images: Tensor, regions: Regions) -> Tensor:
        """Features of each region from the one of the resized images in which its area is nearest to 224 x 224."""
        scales = images.new_tensor(self.test_scales)
        best = (box_area(regions.boxes)[:, None] * scales**2 - CANONICAL_AREA).abs().argmin(dim=1)
        rows, pooled = [], []
        for number, scale in enumerate(self.test_scales):
            indices = torch.nonzero(best == number).squeeze(1)
            if not torch.compiler.is_compiling() and not len(indices):
                continue  # only saves time
            height, width = size = [max(1, round(side * scale)) for side in images.shape[-2:]]
            frames = images.flatten(1, -3)  # of a clip, as channels
            resized = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
            resized = resized.reshape(*images.shape[:-2], *size)
            ratio = images.new_tensor([width / images.shape[-1], height / images.shape[-2]] * 2)
            scaled = Regions(regions.boxes[indices] * ratio, regions.images[indices], regions.valid[indices])
            rows.append(indices)
            pooled.append(self.roi.pool(self.features(resized), scaled))
        if not pooled:
            return self.roi.pool(self.features(images), regions)
        parts = torch.cat(pooled)
        return parts.new_empty(best.shape[0], *parts.shape[1:]).index_copy_(0, torch.cat(rows), parts)


def build_fast_rcnn(config: FastRCNNConfig, categories: Categories) -> FastRCNN:
    backbone = build_backbone(config.backbone)
    neck = build_neck(config.neck, backbone.out_channels, backbone.out_strides)
    roi = RoIHead(config.roi, (neck or backbone).out_channels[0], backbone.out_strides, len(categories))
    image_input = ImageInput(config.input, backbone.out_strides[-1])
    scales = [size / config.input.resize.size for size in config.test_sizes]  # type: ignore[union-attr]
    detector = FastRCNN(backbone, neck, roi, config.proposals, image_input, categories, scales)
    if note := load_classifier(config.backbone, roi.hidden):
        detector.notes.append(note)
    return detector
