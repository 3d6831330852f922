"""Adaptive training sample selection (Zhang, Chi, Yao, Lei, Li, arXiv 1912.02424, algorithm 1): what is positive for an
object follows from the overlaps of the boxes around its centre.

Legend: N anchors and M objects of one image, L levels, C candidates of an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.assignment import BACKGROUND, Assigner, Assignment, spare_ignored
from detkit.nn.assign.points import distances_to_sides
from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.iou import box_iou
from detkit.structures import Target

INSIDE = 0.01  # px that the centre of a positive lies inside the object, as in the authors' code


class ATSSAssignerConfig(Config):
    """Defaults: the paper's, section 4.2."""

    name: Literal["atss"] = "atss"
    top_k: int = Field(9, ge=1)  # anchors of each level that are candidates of an object
    # sides of the boxes that are compared, in sides of those that the head predicts from; FCOS's points have squares of
    # one stride, and 8 makes them the paper's anchors
    enlarge: float = Field(1.0, gt=0)


class ATSSAssigner(Assigner):
    """Candidates of an object are the anchors of each level whose centres are nearest to its own. Those are positive
    whose IoU is at least the mean of all candidates' plus their standard deviation, and whose centre is inside.

    An anchor that several objects take answers for the one of the highest IoU.

    counts       anchors of each level, finest first
    ignored_iof  as for `IoUAssigner`
    """

    def __init__(self, config: ATSSAssignerConfig, counts: Sequence[int], ignored_iof: float | None = None) -> None:
        self.config, self.counts, self.ignored_iof = config, counts, ignored_iof

    def assign(self, boxes: Tensor, target: Target) -> Assignment:
        objects = target.not_ignored().boxes.to(boxes.dtype)
        index = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
        if len(objects) and len(boxes):
            iou = box_iou(self._anchors(boxes), objects)
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            candidates = self._candidates(centers, objects)  # [C, M]
            overlaps = iou.gather(0, candidates)
            spread = overlaps.std(dim=0) if len(overlaps) > 1 else torch.zeros_like(overlaps[0])
            inside = distances_to_sides(centers[candidates], objects).amin(dim=2) > INSIDE
            positive = (overlaps >= overlaps.mean(dim=0) + spread) & inside
            taken = torch.zeros_like(iou, dtype=torch.bool).scatter(0, candidates, positive)
            best, match = torch.where(taken, iou, -1.0).max(dim=1)
            index = torch.where(best >= 0, match, index)
        return spare_ignored(Assignment(index, boxes.new_ones(len(boxes))), boxes, target, self.ignored_iof)

    def _anchors(self, boxes: Tensor) -> Tensor:
        if self.config.enlarge == 1:
            return boxes
        centers, sides = xyxy_to_cxcywh(boxes).chunk(2, dim=1)
        return cxcywh_to_xyxy(torch.cat([centers, sides * self.config.enlarge], dim=1))

    def _candidates(self, centers: Tensor, objects: Tensor) -> Tensor:
        """int64 `[C, M]`: rows of anchors with centres `[N, 2]`; of equally near ones any."""
        distance = torch.cdist(centers, (objects[:, :2] + objects[:, 2:]) / 2)  # [N, M]
        rows, start = [], 0
        for count in self.counts:
            nearest = distance[start : start + count].topk(min(self.config.top_k, count), dim=0, largest=False)
            rows.append(nearest.indices + start)
            start += count
        return torch.cat(rows)
