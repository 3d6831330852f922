"""SimOTA, prediction by prediction and object by object (arXiv 2107.08430, section 2.3). -1: background."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.assign import center
from tests.reference.iou import Box, box_iou


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def cross_entropy(probability: float, target: int) -> float:
    return -max(math.log(probability if target else 1 - probability), -100.0)


def allowed(point: tuple[float, float], stride: float, box: Box, radius: float, rule: str) -> tuple[bool, bool]:
    """Whether a cell is a candidate for an object, and whether at no extra cost."""
    middle = center(box)
    near = max(abs(point[0] - middle[0]), abs(point[1] - middle[1])) < radius * stride
    inside = box[0] < point[0] < box[2] and box[1] < point[1] < box[3]
    return (near or inside, near and inside) if rule == "box" else (near, near)


def assign(
    points: Sequence[tuple[float, float]],
    strides: Sequence[float],
    boxes: Sequence[Box],
    classes: Sequence[Sequence[float]],
    objectness: Sequence[float],
    objects: Sequence[tuple[Box, int]],
    *,
    radius: float = 1.5,
    rule: str = "center",
    top_k: int = 10,
) -> list[int]:
    def is_allowed(row: int, box: Box) -> tuple[bool, bool]:
        return allowed(points[row], strides[row], box, radius, rule)

    candidates = [row for row in range(len(points)) if any(is_allowed(row, box)[0] for box, _ in objects)]
    claims: dict[int, list[int]] = {row: [] for row in candidates}
    costs: dict[tuple[int, int], float] = {}
    for number, (box, label) in enumerate(objects):
        overlaps = {row: box_iou(boxes[row], box) for row in candidates}
        for row in candidates:
            cost = sum(
                cross_entropy(math.sqrt(sigmoid(logit) * sigmoid(objectness[row])), int(c == label))
                for c, logit in enumerate(classes[row])
            )
            cost += -3 * math.log(overlaps[row] + 1e-8) + (0 if is_allowed(row, box)[1] else 1e6)
            costs[number, row] = cost
        count = max(1, int(sum(sorted(overlaps.values(), reverse=True)[:top_k])))
        for row in sorted(candidates, key=lambda row: costs[number, row])[:count]:
            claims[row].append(number)
    result = [-1] * len(points)
    for row, claimed in claims.items():
        if len(claimed) == 1:
            result[row] = claimed[0]
        elif claimed:  # as in the authors' code, of all objects and not only of those that claim it
            result[row] = min(range(len(objects)), key=lambda number: costs[number, row])
    return result
