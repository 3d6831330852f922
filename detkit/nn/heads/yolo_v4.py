"""YOLOv4's predictions (Bochkovskiy, Wang, Liao, arXiv 2004.10934), with the loss that darknet's yolo layer computes.

Legend: B images, L levels, N predictions of one image over all levels, M objects of one image, P pairs of a prediction
and an object that it learns, A anchors of all levels together, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from detkit.nn.assign.assignment import BACKGROUND, Assignment, spare_ignored
from detkit.nn.assign.grid import canvas_of, cells_of, shape_iou
from detkit.nn.heads.yolo import YOLOOutputs, YOLOSelectionConfig
from detkit.nn.heads.yolo_v3 import Anchors, YOLOv3Head, YOLOv3HeadConfig
from detkit.nn.losses import darknet_ciou_step
from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.ops.coders import GridCoder
from detkit.ops.iou import box_iou, complete_box_iou
from detkit.structures import Target

V4_ANCHORS: Anchors = (  # yolov4.cfg, of strides 8, 16, 32
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
CONFIDENT = 0.25  # probability of any class from which on a prediction that overlaps an object is not background


class YOLOv4SelectionConfig(YOLOSelectionConfig):
    """Defaults: yolov4.cfg on COCO."""

    score_threshold: float = Field(0.001, ge=0, le=1)
    nms_threshold: float | None = Field(0.6, ge=0, le=1)


class YOLOv4HeadConfig(YOLOv3HeadConfig):
    """Defaults: yolov4.cfg."""

    anchors: Anchors = V4_ANCHORS
    unused_anchors: tuple[tuple[float, float], ...] = ()  # that compete for objects, but predict nothing (yolov4-tiny)
    scale_xy: tuple[float, ...] = (1.2, 1.1, 1.05)  # grid sensitivity of each level
    iou_threshold: float = Field(0.213, ge=0, le=1)  # of shapes, above which an anchor learns beside the best; 1: none
    box_weight: float = Field(0.07, ge=0)
    max_step: float | None = Field(5.0, gt=0)  # largest step of a box for one object; null: no limit
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    selection: YOLOv4SelectionConfig = YOLOv4SelectionConfig()

    @model_validator(mode="after")
    def _a_scale_for_each_level(self) -> YOLOv4HeadConfig:
        if len(self.scale_xy) != len(self.anchors):
            raise ValueError(
                f"scale_xy: expected {len(self.anchors)} numbers, one a level, found {list(self.scale_xy)}"
            )
        return self


@dataclass(frozen=True, eq=False)
class Pairs:
    """What learns what, over the batch.

    index   int64 `[P]`: image * N + prediction
    boxes   `[P, 4]` xyxy in input px: the object's
    labels  int64 `[P]`
    """

    index: Tensor
    boxes: Tensor
    labels: Tensor


class YOLOv4Head(YOLOv3Head):
    """Of each object the anchor of the most similar shape learns, and every other that is similar enough."""

    config: YOLOv4HeadConfig

    @override
    def decode(self, outputs: YOLOOutputs, raw: Tensor, rows: Tensor | None = None) -> Tensor:
        chosen = slice(None) if rows is None else rows
        strides = outputs.strides[chosen]
        scales = zip(self.strides, self.config.scale_xy, strict=True)
        scale = sum((strides == stride) * scale for stride, scale in scales)
        return GridCoder(scale).decode(raw, outputs.cells[chosen], outputs.anchors[chosen], strides)

    @override
    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Sums over an image, averaged over the batch.

        Classes and objectness have binary cross-entropy, whose gradient is the step that the yolo layer takes. The
        value for boxes is that of CIoU, but the gradient is the layer's own (`darknet_ciou_step`), not its derivative.
        """
        raw, config = outputs.raw.float(), self.config
        pairs = self._pairs(outputs, targets)
        flat, count = raw.flatten(0, 1), raw.shape[1]
        index = torch.unique(pairs.index)
        class_targets = torch.zeros(len(flat), self.num_classes, device=raw.device)
        class_targets[pairs.index, pairs.labels] = 1
        class_targets = class_targets[index] * (1 - config.label_smoothing) + config.label_smoothing / 2
        factors = None
        if self.class_weights is not None:  # all K logits have the weight of the class whose box comes last
            owner = torch.zeros(len(flat), dtype=torch.int64, device=raw.device)
            owner[pairs.index] = pairs.labels
            factors = self.class_weights[owner[index], None]
        classes = F.binary_cross_entropy_with_logits(flat[index, 5:], class_targets, factors, reduction="sum")
        positive = torch.zeros(len(flat), device=raw.device)
        positive[index] = 1
        weight = self._object_weights(outputs, targets, index)
        objectness = F.binary_cross_entropy_with_logits(flat[:, 4], positive, weight, reduction="sum")
        divisors = torch.ones(len(flat), device=raw.device)
        if config.iou_threshold < 1:  # the steps of several objects on one prediction are divided by its classes
            rising = (class_targets - flat[index, 5:].detach().sigmoid() > 0).sum(dim=1)
            divisors[index] = rising.clamp(min=1).to(divisors.dtype)
        box = self._box_loss(outputs, flat, pairs, divisors, count)
        losses = {"yolo_box": box, "yolo_object": objectness, "yolo_class": classes}
        return {name: loss / len(raw) for name, loss in losses.items()}

    def _box_loss(self, outputs: YOLOOutputs, flat: Tensor, pairs: Pairs, divisors: Tensor, count: int) -> Tensor:
        rows, raw = pairs.index % count, flat[pairs.index, :4]
        canvas = canvas_of(outputs.cells, outputs.strides).repeat(2)
        predicted = self.decode(outputs, raw, rows)
        with torch.no_grad():
            shares = (xyxy_to_cxcywh(boxes) / canvas for boxes in (predicted, pairs.boxes))
            step = darknet_ciou_step(*shares)
            step[:, 2:] *= raw[:, 2:].exp()
            step = torch.nan_to_num(self.config.box_weight * step, nan=0.0, posinf=0.0, neginf=0.0)
            if self.config.max_step is not None:
                step = step.clamp(-self.config.max_step, self.config.max_step)
            step = step / divisors[pairs.index, None]
            value = self.config.box_weight * (1 - complete_box_iou(predicted, pairs.boxes, paired=True)).sum()
        descent = -(step * raw).sum()
        return descent - descent.detach() + value

    @torch.no_grad()
    def _pairs(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> Pairs:
        """Prediction by prediction: the best of all anchors, and those of this level above the threshold."""
        distinct = list(
            dict.fromkeys([*self.config.unused_anchors, *(a for level in self.config.anchors for a in level)])
        )
        sides = outputs.anchors.new_tensor(distinct)  # [A, 2]
        counts = canvas_of(outputs.cells, outputs.strides) / outputs.strides
        number = (outputs.anchors[:, None] == sides).all(dim=2).int().argmax(dim=1)  # [N]: of the anchor among all
        indices, boxes, labels = [], [], []
        for image, target in enumerate(targets):
            objects = target.not_ignored()
            similar = shape_iou(objects.boxes, sides)  # [M, A]
            learns = (
                similar > self.config.iou_threshold if self.config.iou_threshold < 1 else torch.zeros_like(similar) > 0
            )
            if len(similar):
                learns.scatter_(1, similar.argmax(dim=1, keepdim=True), True)
            in_cell = (cells_of(objects.boxes[:, None], outputs.strides, counts) == outputs.cells).all(dim=-1)  # [M, N]
            chosen, row = torch.nonzero(in_cell & learns[:, number], as_tuple=True)
            indices.append(row + image * len(number))
            boxes.append(objects.boxes[chosen])
            labels.append(objects.labels[chosen])
        return Pairs(torch.cat(indices), torch.cat(boxes), torch.cat(labels))

    @torch.no_grad()
    def _object_weights(self, outputs: YOLOOutputs, targets: Sequence[Target], index: Tensor) -> Tensor:
        """`[B N]`: 0 for background that overlaps an object and is sure of a class, 1 for all others."""
        weights = torch.ones(outputs.raw.shape[:2], device=outputs.raw.device)
        confident = (outputs.raw[..., 5:].amax(dim=2).float().sigmoid() > CONFIDENT).unbind()
        boxes = self.decode(outputs, outputs.raw[..., :4]).float()
        assigned = torch.full_like(weights, BACKGROUND, dtype=torch.int64)
        assigned.view(-1)[index] = 0
        rows = []
        for weight, is_confident, predicted, own, target in zip(
            weights, confident, boxes, assigned, targets, strict=True
        ):
            overlap = box_iou(target.not_ignored().boxes, predicted)  # [M, N]
            similar = (overlap > self.config.ignore_threshold).any(dim=0) & is_confident & (own == BACKGROUND)
            assignment = Assignment(own, weight.masked_fill(similar, 0.0))
            rows.append(spare_ignored(assignment, predicted, target, self.ignored_iof).weight)
        return torch.cat(rows)
