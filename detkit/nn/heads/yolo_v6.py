"""YOLOv6's predictions (Li et al., arXiv 2209.02976 and 2301.05586): every cell of every level predicts its classes in
one branch and the distances to the sides of its box in another; there is no objectness.

Legend: B images, L levels, N cells of all levels together, finest first and row by row, P positives of the batch,
K classes, R bins of a distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.anchors import grid_cells
from detkit.nn.assign.atss import ATSSAssigner, ATSSAssignerConfig
from detkit.nn.assign.points import distances_to_sides
from detkit.nn.assign.positives import Positives, positives_of
from detkit.nn.assign.task_aligned import (
    QualityAssignment,
    TaskAlignedAssigner,
    TaskAlignedConfig,
    quality_of_overlap,
)
from detkit.nn.blocks import per_anchor
from detkit.nn.csp import conv
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.head import Head
from detkit.nn.losses import VarifocalLossConfig, distribution_focal_loss, giou_loss, siou_loss, varifocal_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.ops.boxes import at_least_float32
from detkit.structures import Size, Target

FIRST_SCORE = 0.01  # of every class before training
FIRST_DISTANCE = 1.0  # in strides; of a distribution: the logit of every bin
BELOW_LAST = 0.01  # strides that the target of a distribution stays below its last bin


class YOLOv6SelectionConfig(SelectionConfig):
    """Defaults: YOLOv6's evaluation."""

    score_threshold: float = Field(0.03, ge=0, le=1)
    nms_threshold: float | None = Field(0.65, ge=0, le=1)
    max_detections: int = Field(300, ge=1)


class YOLOv6WarmupConfig(ATSSAssignerConfig):
    """Defaults: YOLOv6's, with squares of 5 strides around the points."""

    enlarge: float = Field(5.0, gt=0)


class YOLOv6HeadConfig(Config):
    """Defaults: that of YOLOv6-s."""

    at_test: ClassVar = ()

    # null: a distance is one number, in strides (n, s); else a distribution over 0, 1, ..., reg_max strides (m, l: 16)
    reg_max: int | None = Field(None, ge=1)
    assigner: TaskAlignedConfig = TaskAlignedConfig()
    # training images of this process before which ATSS assigns; 0 in release 0.4, four epochs in 0.2
    warmup_images: int = Field(0, ge=0)
    warmup_assigner: YOLOv6WarmupConfig = YOLOv6WarmupConfig()
    varifocal: VarifocalLossConfig = VarifocalLossConfig()
    class_weight: float = Field(1.0, ge=0)
    box_loss: Literal["giou", "siou"] = "giou"  # siou: n
    box_weight: float = Field(2.5, ge=0)
    distribution_weight: float = Field(0.5, ge=0)
    ignored_iof: float | None = Field(None, gt=0, le=1)  # as in YOLOv3's head
    selection: YOLOv6SelectionConfig = YOLOv6SelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class YOLOv6Outputs:
    """
    sides    `[B, N, 4, R]`: left, upper, right, lower; R = 1: the distance in strides, else logits of its bins
    logits   `[B, N, K]`
    points   `[N, 2]`: the middle x, y of each cell in input px
    strides  `[N, 1]`: input px of a cell
    """

    sides: Tensor
    logits: Tensor
    points: Tensor
    strides: Tensor

    def decoded(self) -> Tensor:
        """`[B, N, 4]` xyxy in input px; not in order where distances are negative."""
        sides = at_least_float32(self.sides)
        bins = sides.shape[-1]
        if bins == 1:
            distances = sides[..., 0]
        else:
            distances = (sides.softmax(dim=-1) * torch.arange(bins, device=sides.device)).sum(dim=-1)
        before, after = (distances * self.strides).chunk(2, dim=-1)
        return torch.cat([self.points - before, self.points + after], dim=-1)


class YOLOv6Head(Head[YOLOv6Outputs]):
    """A stem for each level, then one convolution for the classes and one for the box ("efficient decoupled head")."""

    def __init__(
        self, config: YOLOv6HeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.assigner = TaskAlignedAssigner(config.assigner, config.ignored_iof)
        self.bins = 1 if config.reg_max is None else config.reg_max + 1
        self.stems = nn.ModuleList(conv(width, width, 1) for width in in_channels)
        self.class_branch, self.box_branch = (
            nn.ModuleList(conv(width, width, 3) for width in in_channels) for _ in range(2)
        )
        self.classifier, self.regressor = (
            nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in in_channels)
            for outputs in (num_classes, 4 * self.bins)
        )
        first_logit = math.log(FIRST_SCORE / (1 - FIRST_SCORE))
        for bias, layers in ((first_logit, self.classifier), (FIRST_DISTANCE, self.regressor)):
            for weights in layers.parameters():
                nn.init.constant_(weights, bias if weights.ndim == 1 else 0.0)

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> YOLOv6Outputs:
        sides, logits, points, strides = [], [], [], []
        for number, (level, stride) in enumerate(zip(features, self.strides, strict=True)):
            stem = self.stems[number](level)
            logits.append(per_anchor(self.classifier[number](self.class_branch[number](stem)), self.num_classes))
            sides.append(per_anchor(self.regressor[number](self.box_branch[number](stem)), 4 * self.bins))
            points.append((grid_cells(level.shape[2], level.shape[3], level.device) + 0.5) * stride)
            strides.append(torch.full((len(points[-1]), 1), float(stride), device=level.device))
        joined = torch.cat(sides, dim=1)
        return YOLOv6Outputs(
            joined.view(*joined.shape[:2], 4, self.bins),
            torch.cat(logits, dim=1),
            torch.cat(points),
            torch.cat(strides),
        )

    def assign(
        self, outputs: YOLOv6Outputs, targets: Sequence[Target], images_seen: int = 0
    ) -> list[QualityAssignment]:
        points, strides, boxes = outputs.points, outputs.strides, outputs.decoded().detach()
        if images_seen < self.config.warmup_images:
            counts = [int((strides == stride).sum()) for stride in self.strides]
            warmup = ATSSAssigner(self.config.warmup_assigner, counts, self.config.ignored_iof)
            squares = torch.cat([points - strides / 2, points + strides / 2], dim=1)
            return [
                quality_of_overlap(warmup.assign(squares, target), own, target)
                for own, target in zip(boxes, targets, strict=True)
            ]
        scores = outputs.logits.detach().float().sigmoid()
        return [self.assigner.assign(points, boxes[i], scores[i], target) for i, target in enumerate(targets)]

    def criterion(self, outputs: YOLOv6Outputs, targets: Sequence[Target], images_seen: int = 0) -> dict[str, Tensor]:
        """Sums over the batch, divided by the qualities of its positives, which also weigh the losses of their boxes.

        images_seen  training images of this process before this batch
        """
        config = self.config
        assignments = self.assign(outputs, targets, images_seen)
        positives = positives_of(assignments, targets)
        at = (positives.image, positives.prediction)
        quality = torch.stack([each.quality for each in assignments])[at]
        predicted, sides = outputs.decoded()[at], outputs.sides[at].float()
        overlap = giou_loss if config.box_loss == "giou" else siou_loss
        losses = {
            "yolo_class": config.class_weight * self._class_loss(outputs, assignments, positives, quality),
            "yolo_box": config.box_weight * (overlap(predicted, positives.boxes) * quality).sum(),
        }
        if config.reg_max is not None:
            points, strides = outputs.points[positives.prediction], outputs.strides[positives.prediction]
            distances = distances_to_sides(points, positives.boxes) / strides
            loss = distribution_focal_loss(sides, distances.clamp(0, config.reg_max - BELOW_LAST)).mean(dim=1)
            losses["yolo_distribution"] = config.distribution_weight * (loss * quality).sum()
        total = quality.sum().clamp(min=1)
        return {name: loss / total for name, loss in losses.items()}

    def _class_loss(
        self,
        outputs: YOLOv6Outputs,
        assignments: Sequence[QualityAssignment],
        positives: Positives,
        quality: Tensor,
    ) -> Tensor:
        logits = outputs.logits.float()
        positive, targets, weights = torch.zeros_like(logits), torch.zeros_like(logits), torch.ones_like(logits)
        at = (positives.image, positives.prediction, positives.labels)
        positive[at], targets[at] = 1.0, quality
        if self.class_weights is not None:
            weights[at] = self.class_weights[positives.labels]
        weights = weights * torch.stack([each.weight for each in assignments])[..., None]
        return (varifocal_loss(logits, targets, positive, self.config.varifocal) * weights).sum()

    def detect(self, outputs: YOLOv6Outputs, windows: Tensor) -> DetectionRows:
        """A cell may be several classes."""
        scores, boxes, config = at_least_float32(outputs.logits).sigmoid(), outputs.decoded(), self.config.selection
        return select_detections(boxes, scores, None, windows, config)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {f"classifier.{level}": rows(range(num_classes)) for level in range(len(self.strides))}
