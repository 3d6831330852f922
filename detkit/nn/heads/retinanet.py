"""RetinaNet's predictions (Lin, Goyal, Girshick, He, Dollar, arXiv 1708.02002): every anchor of every level answers for
every class by itself, and the focal loss is what makes that learnable.

Legend: B images, L levels, A_l anchors of level l, A of all levels together, P positives of the batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.anchors import AnchorConfig, AnchorGrid
from detkit.nn.assign.assignment import Assigner
from detkit.nn.assign.atss import ATSSAssigner, ATSSAssignerConfig
from detkit.nn.assign.iou import IoUAssigner, IoUAssignerConfig
from detkit.nn.assign.positives import Positives, positives_of
from detkit.nn.blocks import per_anchor
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.dense import (
    DenseSelectionConfig,
    TowerConfig,
    build_tower,
    classifier,
    focal_class_loss,
    init_convs,
    sum_of_images,
)
from detkit.nn.heads.head import Head
from detkit.nn.losses import FocalLossConfig, giou_loss, smooth_l1_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, best_pairs_of_levels, scores_of_pairs, select_detections
from detkit.ops.boxes import at_least_float32
from detkit.ops.coders import BoxCoder
from detkit.structures import Size, Target

ROUNDING = 1e-3  # in logits: what is compared with the score threshold before the exact comparison of scores


class RetinaNetAnchorConfig(AnchorConfig):
    octave_scales: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), min_length=1)


class RetinaNetHeadConfig(Config):
    """Defaults: torchvision's `retinanet_resnet50_fpn`."""

    anchors: RetinaNetAnchorConfig = RetinaNetAnchorConfig()
    tower: TowerConfig = TowerConfig()
    assigner: Annotated[IoUAssignerConfig | ATSSAssignerConfig, Field(discriminator="name")] = IoUAssignerConfig()
    # part of an anchor that must lie inside an ignored object (crowd, difficult) for it to be neutral instead of
    # background; null: background, as published
    ignored_iof: float | None = Field(None, gt=0, le=1)
    focal: FocalLossConfig = FocalLossConfig()
    box_loss: Literal["l1", "giou"] = "l1"  # of deltas, or of the boxes that they give (torchvision's version 2)
    smooth_l1_beta: float = Field(0.0, ge=0)  # distance from which l1 is linear; the paper 1, Detectron2 0.1
    selection: DenseSelectionConfig = DenseSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class RetinaNetOutputs:
    """
    logits   L x `[B, A_l, K]`
    deltas   `[B, A, 4]`
    anchors  `[A, 4]` xyxy in input px
    """

    logits: tuple[Tensor, ...]
    deltas: Tensor
    anchors: Tensor


class RetinaNetHead(Head[RetinaNetOutputs]):
    """Two towers, of classes and of boxes, that slide over every level with shared weights (section 4)."""

    def __init__(
        self, config: RetinaNetHeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.coder = BoxCoder()
        self.anchors = AnchorGrid(config.anchors, strides)
        channels, per_cell = in_channels[0], self.anchors.per_cell
        self.class_tower, self.box_tower = (build_tower(channels, config.tower) for _ in range(2))
        self.classifier = classifier(channels, per_cell * num_classes)
        self.regressor = nn.Conv2d(channels, per_cell * 4, 3, padding=1)
        init_convs(self.regressor)

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> RetinaNetOutputs:
        logits = [per_anchor(self.classifier(self.class_tower(level)), self.num_classes) for level in features]
        deltas = [per_anchor(self.regressor(self.box_tower(level)), 4) for level in features]
        anchors = self.anchors([(level.shape[2], level.shape[3]) for level in features], canvas)
        return RetinaNetOutputs(tuple(logits), torch.cat(deltas, dim=1), anchors)

    def assigner(self, outputs: RetinaNetOutputs) -> Assigner:
        config, ignored_iof = self.config.assigner, self.config.ignored_iof
        if isinstance(config, ATSSAssignerConfig):
            return ATSSAssigner(config, [level.shape[1] for level in outputs.logits], ignored_iof)
        return IoUAssigner(config.fg_threshold, (0.0, config.bg_threshold), config.best_for_each_object, ignored_iof)

    def criterion(self, outputs: RetinaNetOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Both losses of an image are divided by its positives (section 4.1) and averaged over the batch."""
        assigner = self.assigner(outputs)
        assignments = [assigner.assign(outputs.anchors, target) for target in targets]
        positives = positives_of(assignments, targets)
        count = torch.stack([assignment.positive.sum() for assignment in assignments]).clamp(min=1)
        logits = torch.cat(outputs.logits, dim=1).float()
        classes = focal_class_loss(logits, assignments, positives, self.config.focal, self.class_weights)
        boxes = sum_of_images(self._box_losses(outputs, positives), positives.image, len(targets))
        return {"retinanet_class": (classes / count).mean(), "retinanet_box": (boxes / count).mean()}

    def _box_losses(self, outputs: RetinaNetOutputs, positives: Positives) -> Tensor:
        """`[P]`"""
        deltas = outputs.deltas[positives.image, positives.prediction].float()
        anchors = outputs.anchors[positives.prediction]
        if self.config.box_loss == "giou":
            return giou_loss(self.coder.decode(deltas, anchors), positives.boxes)
        target_deltas = self.coder.encode(positives.boxes, anchors)
        return smooth_l1_loss(deltas, target_deltas, self.config.smooth_l1_beta).sum(dim=1)

    def detect(self, outputs: RetinaNetOutputs, windows: Tensor) -> DetectionRows:
        config = self.config.selection
        images, anchors, labels, logits = best_pairs_of_levels(
            outputs.logits, _logit(config.score_threshold) - ROUNDING, config.top_k_per_level
        )
        boxes = self.coder.decode(outputs.deltas[images, anchors], outputs.anchors[anchors])
        scores = scores_of_pairs(labels, at_least_float32(logits).sigmoid(), self.num_classes)
        return select_detections(boxes, scores, images, windows, config)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {"classifier": rows(range(num_classes), repeat=self.anchors.per_cell)}


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))
