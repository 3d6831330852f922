"""DiffusionDet's matching, prediction by prediction and object by object (arXiv 2211.09788, section 3.3). -1: none."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.iou import Box, box_iou, generalized_box_iou


def corners(box: Sequence[float]) -> Box:
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def class_cost(logit: float) -> float:
    """By how much the focal loss is larger as that of an object than as that of background."""
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)


def centred(box: Sequence[float], target: Sequence[float], radius: float) -> bool:
    """Whether the centres are less than `radius` sides of the target apart, along each axis."""
    return all(abs(box[axis] - target[axis]) < radius * target[axis + 2] for axis in (0, 1))


def assign(
    logits: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
    objects: Sequence[tuple[Sequence[float], int]],
    *,
    top_k: int = 5,
    radius: float = 2.5,
) -> list[int]:
    """The object of each prediction; boxes are cxcywh."""
    rows = range(len(boxes))
    cost, overlap = [], []
    for target, label in objects:
        overlap.append([box_iou(corners(boxes[row]), corners(target)) for row in rows])
        cost.append([])
        for row in rows:
            l1 = sum(abs(a - b) for a, b in zip(corners(boxes[row]), corners(target), strict=True))
            value = 2 * class_cost(logits[row][label]) + 5 * l1
            value -= 2 * generalized_box_iou(corners(boxes[row]), corners(target))
            inside, near = centred(boxes[row], target, 0.5), centred(boxes[row], target, radius)
            value += 0 if inside and near else 100
            if not any(centred(boxes[row], other, 0.5) or centred(boxes[row], other, radius) for other, _ in objects):
                value += 10_000
            cost[-1].append(value)
    claims: dict[int, list[int]] = {row: [] for row in rows}
    for number in range(len(objects)):
        count = max(1, int(sum(sorted(overlap[number], reverse=True)[:top_k])))
        for row in sorted(rows, key=lambda row: cost[number][row])[:count]:
            claims[row].append(number)
    result = [-1] * len(boxes)
    for row, claimed in claims.items():
        if len(claimed) == 1:
            result[row] = claimed[0]
        elif claimed:
            result[row] = min(range(len(objects)), key=lambda number: cost[number][row])
    while alone := [number for number in range(len(objects)) if number not in result]:
        free = [row for row in rows if result[row] == -1]
        if not free:
            break
        choices = {number: min(free, key=lambda row: cost[number][row]) for number in alone}
        for row in set(choices.values()):
            result[row] = min((n for n in alone if choices[n] == row), key=lambda number: cost[number][row])
    return result
