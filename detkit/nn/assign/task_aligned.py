"""Task-aligned assignment (Feng, Zhong, Gao, Scott, Huang, arXiv 2108.07755, section 3.2): those predictions answer for
an object that are best in both, its class and its box.

Legend: N predictions and M objects of one image, C points that lie in an object, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.assignment import BACKGROUND, Assignment, spare_ignored
from detkit.nn.assign.points import distances_to_sides
from detkit.ops.iou import box_iou
from detkit.structures import Target

EPS = 1e-9  # as in the authors' code


class TaskAlignedConfig(Config):
    """Defaults: those of the paper, of YOLOv6 and of PP-YOLOE."""

    top_k: int = Field(13, ge=1)  # predictions that an object takes
    class_power: float = Field(1.0, ge=0)  # "alpha": of the score in the metric
    iou_power: float = Field(6.0, ge=0)  # "beta": of the IoU


@dataclass(frozen=True, eq=False)
class QualityAssignment(Assignment):
    """
    quality  float32 `[N]` in [0, 1]: what the class of a positive learns, else 0
    """

    quality: Tensor


class TaskAlignedAssigner:
    """The metric of a prediction for an object is score^alpha IoU^beta. An object takes those of the highest metric
    whose points lie in it; a prediction that is taken twice answers for the object of the highest IoU.

    A prediction of metric 0 (no overlap, or a score that is 0) is background.

    ignored_iof  as for `IoUAssigner`
    """

    def __init__(self, config: TaskAlignedConfig, ignored_iof: float | None = None) -> None:
        self.config, self.ignored_iof = config, ignored_iof

    @torch.no_grad()
    def assign(self, points: Tensor, boxes: Tensor, scores: Tensor, target: Target) -> QualityAssignment:
        """
        points  `[N, 2]`: x, y in input px
        boxes   `[N, 4]`: predicted, xyxy in input px
        scores  `[N, K]`: predicted, in [0, 1]
        """
        objects = target.not_ignored()
        index = torch.full((len(points),), BACKGROUND, device=points.device)
        quality = torch.zeros(len(points), device=points.device)
        inside = distances_to_sides(points, objects.boxes[:, None]).amin(dim=2) > EPS  # [M, N]
        rows = torch.nonzero(inside.any(dim=0)).squeeze(1)
        if len(rows):
            iou = box_iou(objects.boxes, boxes[rows].float())  # [M, C]
            metric = scores[rows].float().T[objects.labels] ** self.config.class_power * iou**self.config.iou_power
            match, positive = take_best(metric, iou, inside[:, rows], self.config.top_k)
            index[rows] = torch.where(positive, match, BACKGROUND)
            quality[rows] = qualities(metric, iou, match, positive)
        assignment = QualityAssignment(index, torch.ones_like(quality), quality)
        return spare_ignored(assignment, boxes.float(), target, self.ignored_iof)


def take_best(metric: Tensor, iou: Tensor, allowed: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """int64 `[C]`: the object of each prediction, and bool `[C]`: whether it answers for it; the others `[M, C]`.

    One that is taken twice gets the object of the highest IoU of all, which need not be one of those that take it: so
    it is in the authors' code.
    """
    best = torch.where(allowed, metric, 0.0).topk(min(top_k, metric.shape[1]), dim=1)
    taken = torch.zeros_like(allowed).scatter(1, best.indices, best.values > 0)
    contested = taken.sum(dim=0) > 1
    return torch.where(contested, iou.argmax(dim=0), taken.int().argmax(dim=0)), taken.any(dim=0)


def qualities(metric: Tensor, iou: Tensor, match: Tensor, positive: Tensor) -> Tensor:
    """`[C]`: the metric of each positive over the highest of its object, times the highest IoU of its object."""
    own = torch.zeros_like(metric, dtype=torch.bool).scatter(0, match[None], positive[None])
    metric, iou = torch.where(own, metric, 0.0), torch.where(own, iou, 0.0)
    share = metric / (metric.amax(dim=1, keepdim=True) + EPS)
    return (share * iou.amax(dim=1, keepdim=True)).amax(dim=0)


def quality_of_overlap(assignment: Assignment, boxes: Tensor, target: Target) -> QualityAssignment:
    """`assignment` in which the class of a positive learns the IoU of its predicted box, `boxes` `[N, 4]`."""
    quality = torch.zeros(len(boxes), device=boxes.device)
    rows = torch.nonzero(assignment.positive).squeeze(1)
    truth = target.not_ignored().boxes[assignment.index[rows]]
    quality[rows] = box_iou(boxes[rows].float(), truth, paired=True)
    return QualityAssignment(assignment.index, assignment.weight, quality)
