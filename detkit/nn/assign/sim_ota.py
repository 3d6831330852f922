"""SimOTA (Ge et al., arXiv 2107.08430, section 2.3): the predictions with the lowest losses answer for an object, and
as many as overlap it well.

Legend: N predictions and M objects of one image, C candidates, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.assignment import BACKGROUND, Assignment, spare_ignored
from detkit.ops.iou import box_iou
from detkit.structures import Target

FAR = 1e6  # cost of a prediction that is not near the centre of the object
MIN_LOG = -100.0  # least logarithm in a cross-entropy, as in torch's


class SimOTAConfig(Config):
    """Defaults: YOLOX from release 0.3 on."""

    # center: cells whose middle is less than `center_radius` cells, along each axis, from the centre of an object.
    # box: those in its box too, at a cost unless they are both (the paper and the first releases, with a radius of 2.5)
    candidates: Literal["center", "box"] = "center"
    center_radius: float = Field(1.5, gt=0)  # in cells
    top_k: int = Field(10, ge=1)  # predictions whose IoUs with an object, added, are the number that answer for it
    iou_cost: float = Field(3.0, ge=0)  # factor of -log IoU beside the cross-entropy


@dataclass(frozen=True, eq=False)
class SimOTAAssignment(Assignment):
    """
    iou  float32 `[N]`: the IoU of each positive with its object, else 0
    """

    iou: Tensor


class SimOTAAssigner:
    """
    ignored_iof  as for `IoUAssigner`
    """

    def __init__(self, config: SimOTAConfig, ignored_iof: float | None = None) -> None:
        self.config, self.ignored_iof = config, ignored_iof

    @torch.no_grad()
    def assign(
        self, points: Tensor, strides: Tensor, boxes: Tensor, classes: Tensor, objectness: Tensor, target: Target
    ) -> SimOTAAssignment:
        """
        points      `[N, 2]`: the middle x, y of each cell in input px
        strides     `[N, 1]`: input px of a cell
        boxes       `[N, 4]`: predicted, xyxy in input px
        classes     `[N, K]` logits
        objectness  `[N]` logits
        """
        objects = target.not_ignored()
        near, rows = self._candidates(points, strides, objects.boxes)
        index = torch.full((len(points),), BACKGROUND, device=points.device)
        overlap = torch.zeros(len(points), device=points.device)
        if len(rows):
            iou = box_iou(objects.boxes, boxes[rows].float())  # [M, C]
            cost = matching_cost(
                iou, classes[rows].float(), objectness[rows].float(), objects.labels, self.config.iou_cost
            )
            match, positive = match_cheapest(cost + FAR * ~near[:, rows], iou, self.config.top_k)
            index[rows] = torch.where(positive, match, index[rows])
            overlap[rows] = torch.where(positive, iou.gather(0, match[None])[0], 0.0)
        assignment = SimOTAAssignment(index, torch.ones_like(overlap), overlap)
        return spare_ignored(assignment, boxes, target, self.ignored_iof)

    def _candidates(self, points: Tensor, strides: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        """bool `[M, N]`: whether a cell costs nothing extra, and int64 `[C]`: the cells that are compared."""
        center = (objects[:, :2] + objects[:, 2:]) / 2
        offset = (points - center[:, None]).abs().amax(dim=2)
        near = offset < self.config.center_radius * strides[:, 0]
        allowed = near
        if self.config.candidates == "box":
            inside = ((points > objects[:, None, :2]) & (points < objects[:, None, 2:])).all(dim=2)
            allowed, near = inside | near, inside & near
        return near, torch.nonzero(allowed.any(dim=0)).squeeze(1)


def matching_cost(iou: Tensor, classes: Tensor, objectness: Tensor, labels: Tensor, iou_cost: float) -> Tensor:
    """`[M, C]`: `iou_cost` times -log IoU, and the binary cross-entropy of all classes with that of the object, where
    the probability of a class is the root of its own times the objectness.

    iou         `[M, C]`
    classes     `[C, K]` logits
    objectness  `[C]` logits
    labels      int64 `[M]`
    """
    probability = (classes.sigmoid() * objectness.sigmoid()[:, None]).sqrt()  # [C, K]
    right, wrong = probability.log().clamp(min=MIN_LOG), (1 - probability).log().clamp(min=MIN_LOG)
    return (wrong - right).T[labels] - wrong.sum(dim=1) - iou_cost * torch.log(iou + 1e-8)


def match_cheapest(cost: Tensor, iou: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """int64 `[C]`: the object of each candidate, and bool `[C]`: whether it answers for it; costs and IoUs `[M, C]`.

    An object takes as many of its cheapest candidates as the sum of its `top_k` best IoUs, and at least one. A
    candidate that several objects take answers for the one of the lowest cost.
    """
    best = iou.topk(min(top_k, iou.shape[1]), dim=1).values
    counts = best.sum(dim=1).int().clamp(min=1)
    order = cost.topk(int(counts.max()), dim=1, largest=False).indices
    taken = torch.arange(order.shape[1], device=cost.device) < counts[:, None]
    chosen = torch.zeros_like(cost, dtype=torch.bool).scatter(1, order, taken)
    several = chosen.sum(dim=0) > 1
    return torch.where(several, cost.argmin(dim=0), chosen.int().argmax(dim=0)), chosen.any(dim=0)
