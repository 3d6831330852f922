"""Task-aligned assignment, object by object and prediction by prediction (arXiv 2108.07755, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from tests.reference.assign import sides_from
from tests.reference.iou import Box, box_iou

EPS = 1e-9


def assign(
    points: Sequence[tuple[float, float]],
    boxes: Sequence[Box],
    scores: Sequence[Sequence[float]],
    objects: Sequence[tuple[Box, int]],
    *,
    top_k: int = 13,
    alpha: float = 1,
    beta: float = 6,
) -> list[tuple[int, float]]:
    """The object of each prediction, -1 for background, and the quality that its class learns."""

    def metric(row: int, number: int) -> float:
        box, label = objects[number]
        return scores[row][label] ** alpha * box_iou(boxes[row], box) ** beta  # type: ignore[no-any-return]

    claims: dict[int, list[int]] = {row: [] for row in range(len(points))}
    for number, (box, _) in enumerate(objects):
        inside = [row for row, point in enumerate(points) if min(sides_from(point, box)) > EPS]
        for row in sorted(inside, key=lambda row: -metric(row, number))[:top_k]:
            if metric(row, number) > 0:
                claims[row].append(number)
    owner = {}
    for row, claimed in claims.items():
        if len(claimed) == 1:
            owner[row] = claimed[0]
        elif claimed:  # as in the authors' code, of all objects and not only of those that claim it
            owner[row] = max(range(len(objects)), key=lambda number: box_iou(boxes[row], objects[number][0]))
    result = []
    for row in range(len(points)):
        if row not in owner:
            result.append((-1, 0.0))
            continue
        number = owner[row]
        mine = [other for other, owned in owner.items() if owned == number]
        best = max(metric(other, number) for other in mine)
        overlap = max(box_iou(boxes[other], objects[number][0]) for other in mine)
        result.append((number, metric(row, number) / (best + EPS) * overlap))
    return result
