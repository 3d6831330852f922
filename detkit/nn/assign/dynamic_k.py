"""The matching of DiffusionDet (arXiv 2211.09788, section 3.3): SimOTA's with the costs of a set loss. As many
predictions answer for an object as overlap it well, and every object has one.

Legend: B images, Q predictions of an image, M_b objects of one, C class logits.
Boxes are cxcywh in parts of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.hungarian import INVALID_COST, Pairs, SetTargets
from detkit.nn.assign.sim_ota import match_cheapest
from detkit.ops.boxes import cxcywh_to_xyxy
from detkit.ops.iou import box_iou, generalized_box_iou

OUTSIDE = 100.0  # cost of a prediction whose centre is not both in the box and near the centre of the object
FAR = 1e4  # further cost of a prediction whose centre is neither, for any object


class DynamicKConfig(Config):
    """Defaults: DiffusionDet."""

    top_k: int = Field(5, ge=1)  # predictions whose IoUs with an object, added, are the number that answer for it
    center_radius: float = Field(2.5, gt=0)  # in sides of the object, along each axis


class DynamicKAssigner:
    """
    class_cost  takes logits `[1, Q, C]` and labels `[M_b]` and returns `[1, Q, M_b]`
    weights     of the costs of a pair: of the class, of the L1 distance between corners and of -GIoU
    """

    def __init__(
        self,
        config: DynamicKConfig,
        class_cost: Callable[[Tensor, Tensor], Tensor],
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
    ) -> None:
        self.config, self.class_cost = config, class_cost
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight

    @torch.no_grad()
    def assign(self, logits: Tensor, boxes: Tensor, targets: SetTargets) -> Pairs:
        """logits `[1, B, Q, C]`, boxes `[1, B, Q, 4]`: of one layer, as each may have another number of pairs."""
        images, predictions, objects = [], [], []
        first_object = 0
        parts = zip(
            torch.split(targets.boxes.float(), targets.counts), torch.split(targets.labels, targets.counts), strict=True
        )
        for image, (target_boxes, labels) in enumerate(parts):
            if len(labels):
                cost, iou = self._costs(logits[0, image].float(), boxes[0, image].float(), target_boxes, labels)
                match, positive = match_every_object(cost, iou, self.config.top_k)
                rows = torch.nonzero(positive).squeeze(1)
                images.append(torch.full_like(rows, image))
                predictions.append(rows)
                objects.append(match[rows] + first_object)
                first_object += len(labels)
        none = targets.labels[:0]
        return Pairs(
            torch.cat([none, *images]), torch.cat([none, *predictions])[None], torch.cat([none, *objects])[None]
        )

    def _costs(self, logits: Tensor, boxes: Tensor, target_boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Costs and IoUs, `[M_b, Q]` each; a cost that is not finite counts as a very high one."""
        corners, target_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)
        offset = (boxes[:, :2] - target_boxes[:, None, :2]).abs()
        inside = (offset < target_boxes[:, None, 2:] / 2).all(dim=2)
        near = (offset < target_boxes[:, None, 2:] * self.config.center_radius).all(dim=2)
        cost = (
            self.class_weight * self.class_cost(logits[None], labels)[0].T
            + self.l1_weight * torch.cdist(target_corners, corners, p=1)
            - self.giou_weight * generalized_box_iou(target_corners, corners)
            + OUTSIDE * ~(inside & near)
            + FAR * ~(inside | near).any(dim=0)
        )
        iou = box_iou(target_corners, corners).nan_to_num(0.0)
        return cost.nan_to_num(INVALID_COST, INVALID_COST, INVALID_COST), iou


def match_every_object(cost: Tensor, iou: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """`match_cheapest`, after which each object that is alone takes the cheapest prediction that answers for none; of
    those that take the same one the cheapest has it, and the others take another.

    cost, iou  `[M_b, Q]`
    Returns int64 `[Q]`, the object of each prediction, and bool `[Q]`, whether it answers for it. Objects stay alone
    only where there are fewer predictions than objects.
    """
    match, positive = match_cheapest(cost, iou, top_k)
    while True:
        counts = match[positive].bincount(minlength=len(cost))
        alone = torch.nonzero(counts == 0).squeeze(1)
        if not len(alone) or bool(positive.all()):
            return match, positive
        cheapest = torch.where(positive, torch.inf, cost[alone]).argmin(dim=1)
        takes = torch.zeros_like(cost, dtype=torch.bool)
        takes[alone, cheapest] = True
        match = torch.where(takes.any(dim=0), torch.where(takes, cost, torch.inf).argmin(dim=0), match)
        positive = positive | takes.any(dim=0)
