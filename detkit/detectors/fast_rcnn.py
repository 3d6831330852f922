"""Fast R-CNN (Girshick, ICCV 2015, arXiv 1504.08083): proposals from elsewhere, one shared map, one region head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector, check_pooled_levels
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import VGGConfig
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.input import ImageInput, InputConfig, ShortSideConfig
from detkit.nn.necks.fpn import FPN, FPNConfig
from detkit.nn.proposals import ProposalsConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.ops.boxes import box_area
from detkit.structures import Batch

CANONICAL_AREA = 224.0**2  # px^2, of a region in the scale that is chosen for it


class FastRoIConfig(RoIConfig):
    """The paper's (sections 2.3 and 3.1): RoIPool, fc6 and fc7, 64 regions of each of two images."""

    pool: Literal["align", "pool"] = "pool"
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = Field(0.5, ge=0, lt=1)
    bg_threshold: tuple[float, float] = (0.1, 0.5)  # its lower end is the paper's hard mining
    batch_size_per_image: int = Field(64, ge=1)
    smooth_l1_beta: float = Field(1.0, ge=0)
    nms_threshold: float = Field(0.3, ge=0, le=1)


class FastRCNNConfig(Config):
    """Defaults: VGG16 on VOC."""

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
        check_pooled_levels(self.backbone.levels, self.neck, self.roi.pool)
        resize = self.input.resize
        if self.test_sizes and not (isinstance(resize, ShortSideConfig) and min(self.test_sizes) >= 1):
            raise ValueError("test_sizes: expected sizes of the shorter side under input.resize {name: short_side}")
        if self.test_sizes and max(self.test_sizes) > resize.size:  # type: ignore[union-attr]
            raise ValueError(f"test_sizes: expected at most input.resize.size, found {max(self.test_sizes)}")
        return self


class FastRCNN(RegionBasedDetector):
    """Faster R-CNN without the network that proposes: `batch.proposals` come with the images."""

    roi: RoIHead

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: FPN | None,
        roi: RoIHead,
        proposals: ProposalsConfig,
        image_input: ImageInput,
        class_names: Sequence[str],
        test_scales: Sequence[float] = (),
    ) -> None:
        super().__init__(backbone, neck, roi, image_input, class_names)
        self.proposals = proposals
        self.test_scales = tuple(test_scales)  # of the input

    def forward(self, batch: Batch) -> RoIOutputs:
        proposals, samples = self.chosen(batch.proposals, batch)
        images = self.input(batch)
        if self.test_scales and not self.training:
            return self.roi.decide(self.pool_at_best_scale(images, proposals), proposals, None)
        outputs: RoIOutputs = self.roi(self.features(images), proposals, samples)
        return outputs

    def pool_at_best_scale(self, images: Tensor, proposals: Sequence[Tensor]) -> Tensor:
        """Features of each region from the one of the resized images in which its area is nearest to 224 x 224."""
        scales = images.new_tensor(self.test_scales)
        best = [(box_area(boxes)[:, None] * scales**2 - CANONICAL_AREA).abs().argmin(dim=1) for boxes in proposals]
        rows, pooled = [], []
        for number, scale in enumerate(self.test_scales):
            here = [of_image == number for of_image in best]
            rows.append(torch.cat(here).nonzero().squeeze(1))
            if not len(rows[-1]):
                continue
            size = [max(1, round(side * scale)) for side in images.shape[2:]]
            resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
            ratio = images.new_tensor([size[1] / images.shape[3], size[0] / images.shape[2]] * 2)
            boxes = [of_image[chosen] * ratio for of_image, chosen in zip(proposals, here, strict=True)]
            pooled.append(self.roi.pool(self.features(resized), boxes))
        if not pooled:
            return self.roi.pool(self.features(images), proposals)
        found = torch.cat(pooled)
        return torch.empty_like(found).index_copy_(0, torch.cat(rows), found)


def build_fast_rcnn(config: FastRCNNConfig, class_names: Sequence[str]) -> FastRCNN:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides) if config.neck else None
    roi = RoIHead(config.roi, (neck or backbone).out_channels[0], backbone.out_strides, class_names)
    load_classifier(config.backbone, roi.hidden)
    image_input = ImageInput(config.input, backbone.out_strides[-1])
    scales = [size / config.input.resize.size for size in config.test_sizes]  # type: ignore[union-attr]
    return FastRCNN(backbone, neck, roi, config.proposals, image_input, class_names, scales)
