"""FCOS's predictions (Tian, Shen, Chen, He, arXiv 1904.01355 and 2006.09214): every cell of every level predicts the
distances to the sides of its object, its classes, and how near to the centre it is. ATSS (arXiv 1912.02424) differs in
what is positive, and predicts from one square anchor in each cell.

Legend: B images, L levels, A_l cells of level l, A of all levels together, P positives of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.anchors import AnchorConfig, AnchorGrid
from detkit.nn.assign.assignment import Assigner
from detkit.nn.assign.atss import ATSSAssigner, ATSSAssignerConfig
from detkit.nn.assign.points import PointAssigner, PointAssignerConfig, centerness
from detkit.nn.assign.positives import positives_of
from detkit.nn.blocks import per_anchor
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.dense import (
    DenseSelectionConfig,
    TowerConfig,
    build_tower,
    classifier,
    focal_class_loss,
    init_convs,
)
from detkit.nn.heads.head import Head
from detkit.nn.losses import FocalLossConfig, giou_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, best_pairs_of_levels, scores_of_pairs, select_detections
from detkit.ops.boxes import at_least_float32
from detkit.ops.coders import BoxCoder, SideCoder
from detkit.structures import Size, Target


class FCOSTowerConfig(TowerConfig):
    groups: int | None = Field(32, ge=1)


class FCOSSelectionConfig(DenseSelectionConfig):
    """Defaults: torchvision's FCOS."""

    score_threshold: float = Field(0.2, ge=0, le=1)  # of the root of the class score times the centre-ness
    nms_threshold: float | None = Field(0.6, ge=0, le=1)
    max_detections: int = Field(100, ge=1)


class FCOSHeadConfig(Config):
    """Defaults: torchvision's `fcos_resnet50_fpn`."""

    at_test: ClassVar = ("class_threshold",)

    tower: FCOSTowerConfig = FCOSTowerConfig()
    side: float = Field(1.0, gt=0)  # of the square of a cell, in strides
    spacing: Literal["stride", "image"] = "image"  # as for anchors
    offset: float = 0.0  # centre of a cell's square in strides; 0.5 in the paper
    boxes: Literal["sides", "deltas"] = "sides"  # what is predicted: distances to the box's sides, or R-CNN's deltas
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / std of deltas
    level_scales: bool = False  # a learned factor on the boxes of each level (arXiv 1904.01355, section 3.2)
    assigner: Annotated[PointAssignerConfig | ATSSAssignerConfig, Field(discriminator="name")] = PointAssignerConfig()
    # part of a cell's square that must lie inside an ignored object (crowd, difficult) for it to be neutral instead of
    # background; null: background, as published
    ignored_iof: float | None = Field(None, gt=0, le=1)
    focal: FocalLossConfig = FocalLossConfig()
    box_scale: float = Field(1.0, ge=0)  # factor of the box loss
    box_by_centerness: bool = False  # boxes weigh their centre-ness, and are divided by its sum
    class_threshold: float = Field(0.0, ge=0, le=1)  # class scores must be higher, before the centre-ness counts
    selection: FCOSSelectionConfig = FCOSSelectionConfig()

    @model_validator(mode="after")
    def _points_have_squares_of_a_stride(self) -> FCOSHeadConfig:
        if isinstance(self.assigner, PointAssignerConfig) and self.side != 1:
            raise ValueError(f"side: the assigner `points` measures in strides and needs 1, found {self.side:g}")
        return self


@register_outputs
@dataclass(frozen=True, eq=False)
class FCOSOutputs:
    """
    logits      L x `[B, A_l, K]`
    boxes       `[B, A, 4]`: distances in sides of the square, not negative, or deltas
    centerness  L x `[B, A_l, 1]` logits
    cells       `[A, 4]`: the squares, xyxy in input px
    """

    logits: tuple[Tensor, ...]
    boxes: Tensor
    centerness: tuple[Tensor, ...]
    cells: Tensor


class FCOSHead(Head[FCOSOutputs]):
    """Two towers with shared weights; centre-ness belongs to that of the boxes (arXiv 2006.09214, section 2.4)."""

    def __init__(
        self, config: FCOSHeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.coder = SideCoder() if config.boxes == "sides" else BoxCoder(weights=config.delta_weights)
        squares = AnchorConfig(
            sizes=tuple((stride * config.side,) for stride in strides),
            ratios=(1.0,),
            rounding="none",
            spacing=config.spacing,
            offset=config.offset,
        )
        self.cells = AnchorGrid(squares, strides)
        channels = in_channels[0]
        self.class_tower, self.box_tower = (build_tower(channels, config.tower) for _ in range(2))
        self.classifier = classifier(channels, num_classes)
        self.regressor = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        init_convs(self.regressor)
        init_convs(self.centerness)
        self.level_scales = nn.Parameter(torch.ones(len(strides))) if config.level_scales else None

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> FCOSOutputs:
        logits, boxes, centers = [], [], []
        for number, level in enumerate(features):
            logits.append(per_anchor(self.classifier(self.class_tower(level)), self.num_classes))
            hidden = self.box_tower(level)
            predicted = per_anchor(self.regressor(hidden), 4)
            if self.level_scales is not None:
                predicted = predicted * self.level_scales[number]
            boxes.append(F.relu(predicted) if self.config.boxes == "sides" else predicted)
            centers.append(per_anchor(self.centerness(hidden), 1))
        cells = self.cells([(level.shape[2], level.shape[3]) for level in features], canvas)
        return FCOSOutputs(tuple(logits), torch.cat(boxes, dim=1), tuple(centers), cells)

    def assigner(self, outputs: FCOSOutputs) -> Assigner:
        counts, config = [level.shape[1] for level in outputs.logits], self.config
        if isinstance(config.assigner, ATSSAssignerConfig):
            return ATSSAssigner(config.assigner, counts, config.ignored_iof)
        return PointAssigner(config.assigner, counts, config.ignored_iof)

    def criterion(self, outputs: FCOSOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses are divided by the positives of the batch (equation 2); where boxes weigh their centre-ness, those of
        boxes by its sum."""
        config, assigner = self.config, self.assigner(outputs)
        assignments = [assigner.assign(outputs.cells, target) for target in targets]
        positives = positives_of(assignments, targets)
        count = max(1, len(positives.boxes))
        logits = torch.cat(outputs.logits, dim=1).float()
        classes = focal_class_loss(logits, assignments, positives, config.focal, self.class_weights).sum()
        cells = outputs.cells[positives.prediction]
        predicted = outputs.boxes[positives.image, positives.prediction].float()
        boxes = giou_loss(self.coder.decode(predicted, cells), positives.boxes)
        centers = centerness((cells[:, :2] + cells[:, 2:]) / 2, positives.boxes)
        if config.box_by_centerness:
            box = (boxes * centers).sum() / centers.sum().clamp(min=torch.finfo(centers.dtype).eps)
        else:
            box = boxes.sum() / count
        center_logits = torch.cat(outputs.centerness, dim=1)[positives.image, positives.prediction, 0].float()
        center = F.binary_cross_entropy_with_logits(center_logits, centers, reduction="sum")
        return {
            "fcos_class": classes / count,
            "fcos_box": config.box_scale * box,
            "fcos_centerness": center / count,
        }

    def detect(self, outputs: FCOSOutputs, windows: Tensor) -> DetectionRows:
        """A detection scores the root of its class score times its centre-ness."""
        config = self.config.selection
        scores = []
        for level, centers in zip(outputs.logits, outputs.centerness, strict=True):
            classes = at_least_float32(level).sigmoid()
            score = (classes * at_least_float32(centers).sigmoid()).sqrt()
            scores.append(torch.where(classes > self.config.class_threshold, score, 0.0))
        images, cells, labels, best = best_pairs_of_levels(scores, config.score_threshold, config.top_k_per_level)
        boxes = self.coder.decode(at_least_float32(outputs.boxes[images, cells]), outputs.cells[cells])
        return select_detections(boxes, scores_of_pairs(labels, best, self.num_classes), images, windows, config)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {"classifier": rows(range(num_classes))}
