"""Cascade R-CNN (arXiv 1712.00726), region by region: what a stage is trained on, and what all detect together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.iou import Box, box_iou


def targets(boxes: Sequence[Box], objects: Sequence[Box], labels: Sequence[int], threshold: float) -> list[int]:
    """The class of each box, from 1, of the object that it overlaps most and by the threshold of the stage; or 0."""
    result = []
    for box in boxes:
        overlaps = [box_iou(box, each) for each in objects]
        best = max(range(len(objects)), key=overlaps.__getitem__, default=None)
        result.append(0 if best is None or overlaps[best] < threshold else labels[best] + 1)
    return result


def refine(box: Box, delta: Sequence[float], weights: Sequence[float], size: tuple[int, int] | None) -> Box:
    """Where a stage moves a box, cut off at the borders of an image of `(h, w)`."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (value / weight for value, weight in zip(delta, weights, strict=True))
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if size is not None:
        corners = [min(max(value, 0), limit) for value, limit in zip(corners, (size[1], size[0]) * 2, strict=True)]
    return tuple(corners)  # type: ignore[return-value]


def scores(logits: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the stages of the probability of each class, background (index 0) left out."""
    stages = []
    for stage in logits:
        exponents = [math.exp(value) for value in stage]
        stages.append([value / sum(exponents) for value in exponents])
    return [sum(stage[label] for stage in stages) / len(stages) for label in range(1, len(logits[0]))]
