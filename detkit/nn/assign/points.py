"""FCOS's assignment (Tian, Shen, Chen, He, arXiv 1904.01355 and 2006.09214): points near the centre of an object answer
for it, on the level of its size.

Legend: N points and M objects of one image, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.assignment import BACKGROUND, Assigner, Assignment, spare_ignored
from detkit.ops.boxes import box_area
from detkit.structures import Target


class PointAssignerConfig(Config):
    """Defaults: torchvision's FCOS. A stride is the side of the square of a point."""

    name: Literal["points"] = "points"
    # distance in strides, along each axis, from the centre of an object within which points are positive; null: all
    # points inside the object (arXiv 1904.01355)
    center_radius: float | None = Field(1.5, gt=0)
    # strides between which the largest distance to a side must lie; the finest level has no lower limit and the
    # coarsest no upper one
    distances: tuple[float, float] = (4.0, 8.0)

    @model_validator(mode="after")
    def _limits_in_order(self) -> PointAssignerConfig:
        if not 0 <= self.distances[0] < self.distances[1]:
            raise ValueError(f"distances: expected a smaller and a larger number, found {list(self.distances)}")
        return self


class PointAssigner(Assigner):
    """Of several objects a point answers for the one of the smallest area (arXiv 1904.01355, section 3.1).

    Limits are exclusive, as in torchvision: a point on the border of an object, or whose largest distance equals a
    limit, is background. (torchvision rounds areas to 8 px^2, and of two that are then equal takes the first object.)

    counts       points of each level, finest first
    ignored_iof  as for `IoUAssigner`
    """

    def __init__(self, config: PointAssignerConfig, counts: Sequence[int], ignored_iof: float | None = None) -> None:
        self.config, self.counts, self.ignored_iof = config, counts, ignored_iof

    def assign(self, boxes: Tensor, target: Target) -> Assignment:
        """boxes `[N, 4]`: squares of a stride around the points, xyxy in input px."""
        objects = target.not_ignored().boxes
        index = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
        if len(objects):
            points, stride = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2] - boxes[:, 0]
            to_sides = distances_to_sides(points[:, None], objects)  # [N, M, 4]
            nearest, farthest = to_sides.amin(dim=2), to_sides.amax(dim=2)
            low, high = self._limits(stride)
            matches = (nearest > 0) & (farthest > low) & (farthest < high)
            if self.config.center_radius is not None:
                centers = (objects[:, :2] + objects[:, 2:]) / 2
                offset = (points[:, None] - centers).abs().amax(dim=2)
                matches &= offset < self.config.center_radius * stride[:, None]
            area, smallest = torch.where(matches, box_area(objects), torch.inf).min(dim=1)
            index = torch.where(area.isinf(), index, smallest)
        return spare_ignored(Assignment(index, boxes.new_ones(len(boxes))), boxes, target, self.ignored_iof)

    def _limits(self, stride: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 1]` each, in px."""
        low, high = (stride[:, None] * factor for factor in self.config.distances)
        low[: self.counts[0]] = 0
        high[len(high) - self.counts[-1] :] = torch.inf
        return low, high


def distances_to_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """`[..., 4]`: how far points `[..., 2]` are from the left, upper, right and lower side of boxes `[..., 4]`; less
    than 0 beyond it."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """`[...]`: 1 in the centre of a box and 0 on its border (arXiv 1904.01355, equation 3), for points inside."""
    left_top, right_bottom = distances_to_sides(points, boxes).chunk(2, dim=-1)
    ratios = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom)
    return ratios.clamp(min=0).prod(dim=-1).sqrt()
