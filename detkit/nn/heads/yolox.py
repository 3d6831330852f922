"""YOLOX's predictions (Ge, Liu, Wang, Li, Sun, arXiv 2107.08430, section 2): every cell of every level predicts one
box, its classes in one branch, and the box and how certain it is that there is one in another.

Legend: B images, L levels, N cells of all levels together, finest first and row by row, P positives of the batch,
K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.anchors import grid_cells
from detkit.nn.assign.positives import Positives, positives_of
from detkit.nn.assign.sim_ota import SimOTAAssigner, SimOTAAssignment, SimOTAConfig
from detkit.nn.blocks import per_anchor
from detkit.nn.csp import conv, spatial_conv
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.head import Head
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, scores_of_pairs, select_detections
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.iou import box_iou
from detkit.structures import Size, Target

FIRST_SCORE = 0.01  # of every class and of objectness before training


class YOLOXSelectionConfig(SelectionConfig):
    """Defaults: YOLOX's evaluation."""

    score_threshold: float = Field(0.01, ge=0, le=1)
    nms_threshold: float | None = Field(0.65, ge=0, le=1)
    max_detections: int = Field(300, ge=1)


class YOLOXHeadConfig(Config):
    """Defaults: that of YOLOX-s."""

    at_test: ClassVar = ()

    channels: int = Field(128, ge=1)  # of the branches: 256 times the width of the backbone
    depthwise: bool = False  # 3x3 convolutions of each channel alone (YOLOX-nano)
    assigner: SimOTAConfig = SimOTAConfig()
    box_weight: float = Field(5.0, ge=0)
    # training images after which an absolute error of the raw predictions is added; null: never. As published the last
    # 15 of 300 epochs, without mosaic: from 285 times the images of the data on
    l1_after_images: int | None = Field(None, ge=0)
    ignored_iof: float | None = Field(None, gt=0, le=1)  # as in YOLOv3's head
    selection: YOLOXSelectionConfig = YOLOXSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class YOLOXOutputs:
    """
    boxes       `[B, N, 4]`: offset x, y of the centre from the corner of its cell and log of the sides, in cells
    objectness  `[B, N]` logits
    logits      `[B, N, K]`
    cells       int64 `[N, 2]`: column and row
    strides     `[N, 1]`: input px of a cell
    """

    boxes: Tensor
    objectness: Tensor
    logits: Tensor
    cells: Tensor
    strides: Tensor

    def decoded(self) -> Tensor:
        """`[B, N, 4]` xyxy in input px."""
        raw = at_least_float32(self.boxes)
        center = (raw[..., :2] + self.cells) * self.strides
        return cxcywh_to_xyxy(torch.cat([center, raw[..., 2:].exp() * self.strides], dim=-1))


class YOLOXHead(Head[YOLOXOutputs]):
    """A stem for each level, then two branches of two convolutions ("decoupled head", section 2.2)."""

    def __init__(
        self, config: YOLOXHeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.assigner = SimOTAAssigner(config.assigner, config.ignored_iof)
        channels, depthwise = config.channels, config.depthwise
        self.stems = nn.ModuleList(conv(width, channels, 1) for width in in_channels)
        self.class_branch, self.box_branch = (
            nn.ModuleList(
                nn.Sequential(*(spatial_conv(channels, channels, depthwise=depthwise) for _ in range(2)))
                for _ in strides
            )
            for _ in range(2)
        )
        self.classifier, self.regressor, self.objectness = (
            nn.ModuleList(nn.Conv2d(channels, outputs, 1) for _ in strides) for outputs in (num_classes, 4, 1)
        )
        for layer in (*self.classifier, *self.objectness):
            nn.init.constant_(layer.bias, math.log(FIRST_SCORE / (1 - FIRST_SCORE)))

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> YOLOXOutputs:
        boxes, objectness, logits, cells, strides = [], [], [], [], []
        for number, (level, stride) in enumerate(zip(features, self.strides, strict=True)):
            stem = self.stems[number](level)
            logits.append(per_anchor(self.classifier[number](self.class_branch[number](stem)), self.num_classes))
            hidden = self.box_branch[number](stem)
            boxes.append(per_anchor(self.regressor[number](hidden), 4))
            objectness.append(self.objectness[number](hidden).flatten(1))
            cells.append(grid_cells(level.shape[2], level.shape[3], level.device))
            strides.append(torch.full((len(cells[-1]), 1), float(stride), device=level.device))
        return YOLOXOutputs(
            torch.cat(boxes, dim=1),
            torch.cat(objectness, dim=1),
            torch.cat(logits, dim=1),
            torch.cat(cells),
            torch.cat(strides),
        )

    def assign(self, outputs: YOLOXOutputs, targets: Sequence[Target]) -> list[SimOTAAssignment]:
        points, boxes = (outputs.cells + 0.5) * outputs.strides, outputs.decoded()
        return [
            self.assigner.assign(points, outputs.strides, boxes[i], outputs.logits[i], outputs.objectness[i], target)
            for i, target in enumerate(targets)
        ]

    def criterion(self, outputs: YOLOXOutputs, targets: Sequence[Target], images_seen: int = 0) -> dict[str, Tensor]:
        """Sums over the batch, divided by its positives (the authors' code; a class learns the IoU of its box).

        images_seen  training images of this process before this batch
        """
        assignments = self.assign(outputs, targets)
        positives = positives_of(assignments, targets)
        count = max(1, len(positives.boxes))
        at = (positives.image, positives.prediction)
        iou = box_iou(outputs.decoded()[at], positives.boxes, paired=True)
        weight = torch.stack([each.weight for each in assignments])
        positive = torch.stack([each.positive for each in assignments])
        objectness = F.binary_cross_entropy_with_logits(
            outputs.objectness.float(), positive.float(), weight, reduction="sum"
        )
        quality = torch.stack([each.iou for each in assignments])[at]
        class_targets = F.one_hot(positives.labels, self.num_classes) * quality[:, None]
        factors = None if self.class_weights is None else self.class_weights[positives.labels, None]
        classes = F.binary_cross_entropy_with_logits(
            outputs.logits[at].float(), class_targets, factors, reduction="sum"
        )
        losses = {
            "yolox_box": self.config.box_weight * (1 - iou**2).sum(),
            "yolox_object": objectness,
            "yolox_class": classes,
        }
        if self.config.l1_after_images is not None and images_seen >= self.config.l1_after_images:
            losses["yolox_l1"] = self._absolute_error(outputs, positives)
        return {name: loss / count for name, loss in losses.items()}

    def _absolute_error(self, outputs: YOLOXOutputs, positives: Positives) -> Tensor:
        strides, cells = outputs.strides[positives.prediction], outputs.cells[positives.prediction]
        boxes = xyxy_to_cxcywh(positives.boxes) / strides
        box_targets = torch.cat([boxes[:, :2] - cells, torch.log(boxes[:, 2:] + 1e-8)], dim=1)
        predicted = outputs.boxes[positives.image, positives.prediction].float()
        return F.l1_loss(predicted, box_targets, reduction="sum")

    def detect(self, outputs: YOLOXOutputs, windows: Tensor) -> DetectionRows:
        """A cell is one detection at most, of its likeliest class."""
        best, labels = at_least_float32(outputs.logits).max(dim=2)
        scores = best.sigmoid() * at_least_float32(outputs.objectness).sigmoid()
        boxes, config = outputs.decoded(), self.config.selection
        if torch.compiler.is_compiling():  # an exported program has candidates of a fixed number
            pairs = scores_of_pairs(labels.flatten(), scores.flatten(), self.num_classes)
            return select_detections(boxes, pairs.view(*scores.shape, -1), None, windows, config)
        images, cells = torch.nonzero(scores > config.score_threshold, as_tuple=True)
        pairs = scores_of_pairs(labels[images, cells], scores[images, cells], self.num_classes)
        return select_detections(boxes[images, cells], pairs, images, windows, config)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {f"classifier.{level}": rows(range(num_classes)) for level in range(len(self.strides))}
