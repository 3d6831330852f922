"""Which prediction answers for which object: what every assigner says.

Legend: N predictions (anchors, priors, proposals, cells or queries) of one image, M objects of that image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from detkit.ops.iou import box_iof
from detkit.structures import Target

BACKGROUND = -1


@dataclass(frozen=True, eq=False)
class Assignment:
    """
    index   int64 `[N]`: the object (a row of `target.not_ignored()`) that each prediction answers for, or BACKGROUND
    weight  float32 `[N]`: of the prediction in the loss of its class or objectness; 0: it takes no part
    """

    index: Tensor
    weight: Tensor

    @property
    def positive(self) -> Tensor:
        """bool `[N]`: the prediction answers for an object."""
        return self.index >= 0

    @property
    def background(self) -> Tensor:
        """bool `[N]`: the prediction should find nothing, and the loss says so."""
        return (self.index == BACKGROUND) & (self.weight > 0)


AssignmentT = TypeVar("AssignmentT", bound=Assignment)


class Assigner(ABC):
    """`assign(boxes, target)` for the boxes of anchors, priors or proposals of one image."""

    @abstractmethod
    def assign(self, boxes: Tensor, target: Target) -> Assignment:
        """boxes `[N, 4]` xyxy in input px."""


def spare_ignored(assignment: AssignmentT, boxes: Tensor, target: Target, threshold: float | None) -> AssignmentT:
    """Takes background out of the loss where it may lie on an object: inside one that is to be ignored.

    threshold  part of a box `[N, 4]` that must lie inside an ignored object; None: nothing is taken out, as published
               by those whose ignored objects are background like everything else
    """
    ignored = target.ignored().boxes
    if threshold is None or not len(ignored) or not len(boxes):
        return assignment
    inside = box_iof(boxes, ignored).amax(dim=1) >= threshold
    neutral = inside & (assignment.index == BACKGROUND)
    return replace(assignment, weight=assignment.weight.masked_fill(neutral, 0.0))


def sample(assignment: Assignment, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draws at most `count` predictions, at most `positive_fraction` of them positive; background fills the rest.

    Returns the indices of positives and of background, each drawn uniformly without replacement from torch's global
    generator.
    """
    positive = torch.nonzero(assignment.positive).squeeze(1)
    background = torch.nonzero(assignment.background).squeeze(1)
    num_positive = min(len(positive), int(count * positive_fraction))
    num_background = min(len(background), count - num_positive)
    return _draw(positive, num_positive), _draw(background, num_background)


def _draw(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
