"""Assignment by overlap: by thresholds (R-CNN family), and one box of its own for every object first (SSD).

Legend: N anchors, priors or proposals and M objects of one image.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.assignment import BACKGROUND, Assigner, Assignment, spare_ignored
from detkit.ops.iou import box_iou
from detkit.structures import Objects, Target

BETWEEN = -2  # of `match_by_iou`: neither object nor background


class IoUAssignerConfig(Config):
    """Defaults: RetinaNet (arXiv 1708.02002, section 4) as torchvision and Detectron2 have it."""

    name: Literal["iou"] = "iou"
    fg_threshold: float = Field(0.5, ge=0, le=1)  # IoU
    bg_threshold: float = Field(0.4, ge=0, le=1)
    best_for_each_object: bool = True  # the anchors nearest to an object are positive however low; the paper has false

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> IoUAssignerConfig:
        if self.bg_threshold > self.fg_threshold:
            raise ValueError(f"bg_threshold {self.bg_threshold} is above fg_threshold {self.fg_threshold}")
        return self


class IoUAssigner(Assigner):
    """`match_by_iou` of the objects that are not ignored; a box that is BETWEEN takes no part in the loss.

    ignored_iof  background that lies inside an ignored object with at least this part of its area takes no part
                 either; None: it is background
    """

    def __init__(
        self,
        fg_threshold: float,
        bg_threshold: tuple[float, float],
        best_for_each_object: bool,
        ignored_iof: float | None = None,
    ) -> None:
        self.fg_threshold, self.bg_threshold = fg_threshold, bg_threshold
        self.best_for_each_object, self.ignored_iof = best_for_each_object, ignored_iof

    def assign(self, boxes: Tensor, target: Target) -> Assignment:
        matches = match_by_iou(
            boxes,
            target.not_ignored().boxes,
            fg_threshold=self.fg_threshold,
            bg_threshold=self.bg_threshold,
            best_for_each_object=self.best_for_each_object,
        )
        assignment = Assignment(matches.clamp(min=BACKGROUND), (matches != BETWEEN).float())
        return spare_ignored(assignment, boxes, target, self.ignored_iof)


class BipartiteAssigner(Assigner):
    """`match_bipartite` of the objects that are not ignored.

    ignored_iof  as for `IoUAssigner`
    """

    def __init__(self, fg_threshold: float, ignored_iof: float | None = None) -> None:
        self.fg_threshold, self.ignored_iof = fg_threshold, ignored_iof

    def assign(self, boxes: Tensor, target: Target) -> Assignment:
        matches = match_bipartite(self.overlaps(boxes, target.not_ignored()), self.fg_threshold)
        assignment = Assignment(matches, torch.ones_like(matches, dtype=torch.float32))
        return spare_ignored(assignment, boxes, target, self.ignored_iof)

    def overlaps(self, boxes: Tensor, objects: Objects[Tensor]) -> Tensor:
        """IoU `[M, N]` of objects and boxes `[N, 4]`."""
        return box_iou(objects.boxes, boxes)


def match_by_iou(
    boxes: Tensor,
    objects: Tensor,
    *,
    fg_threshold: float,
    bg_threshold: tuple[float, float],
    best_for_each_object: bool,
) -> Tensor:
    """The object that each box answers for.

    boxes `[N, 4]`, objects `[M, 4]` -> int64 `[N]`: index of the object with the highest IoU if that is at least
    `fg_threshold`, BACKGROUND if it lies in `[low, high)` of `bg_threshold`, else BETWEEN. With `best_for_each_object`
    (the RPN, Faster R-CNN section 3.1.2) every box that ties for the best IoU of an object is positive too and keeps
    its own best object; an object that overlaps no box makes none positive. Without objects every box is BACKGROUND
    if 0 is in its range.
    """
    low, high = bg_threshold
    if len(objects) == 0 or len(boxes) == 0:
        return boxes.new_full((len(boxes),), BACKGROUND if low <= 0 < high else BETWEEN, dtype=torch.int64)
    iou = box_iou(objects, boxes)
    best, match = iou.max(dim=0)
    result = torch.full_like(match, BETWEEN)
    result[(best >= low) & (best < high)] = BACKGROUND
    positive = best >= fg_threshold
    if best_for_each_object:
        best_of_object = iou.max(dim=1, keepdim=True).values
        positive |= ((iou == best_of_object) & (best_of_object > 0)).any(dim=0)
    return torch.where(positive, match, result)


def match_bipartite(iou: Tensor, fg_threshold: float) -> Tensor:
    """SSD's matching (arXiv 1512.02325, section 2.2), as Caffe does it.

    IoU of objects and boxes `[M, N]` -> int64 `[N]`: index of an object or BACKGROUND. First, pair after pair, highest
    IoU first, each object gets one box that no other has; an object that overlaps no free box gets none. Then every box
    left whose best IoU is at least `fg_threshold` answers for that object.
    """
    num_objects, num_boxes = iou.shape
    if num_objects == 0 or num_boxes == 0:
        return iou.new_full((num_boxes,), BACKGROUND, dtype=torch.int64)
    best, match = iou.max(dim=0)
    matches = torch.where(best >= fg_threshold, match, BACKGROUND)
    free = iou.clone()  # 0 for boxes and objects that are paired already
    overlap, box = free.max(dim=1)  # the best free box of each object
    for _ in range(num_objects):
        winner = int(overlap.argmax())
        if overlap[winner] <= 0:
            break
        taken = box[winner].clone()
        matches[taken] = winner
        free[:, taken] = 0
        free[winner] = 0
        again = (box == taken) | (overlap <= 0)
        again[winner] = True
        overlap[again], box[again] = free[again].max(dim=1)
    return matches
