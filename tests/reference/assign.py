"""Which box answers for which object, object by object and box by box. -1: background."""

from __future__ import annotations

import math
import statistics

from tests.reference.iou import Box, area, box_iou


def center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def sides_from(point: tuple[float, float], box: Box) -> tuple[float, float, float, float]:
    return point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]


def fcos(
    levels: list[list[Box]], objects: list[Box], radius: float | None, distances: tuple[float, float]
) -> list[int]:
    """arXiv 1904.01355, section 3.1, and the centre sampling of arXiv 2006.09214, section 2.4."""
    result = []
    for number, level in enumerate(levels):
        for square in level:
            point, stride = center(square), square[2] - square[0]
            low = 0 if number == 0 else distances[0] * stride
            high = math.inf if number == len(levels) - 1 else distances[1] * stride
            best = -1
            for index, box in enumerate(objects):
                sides = sides_from(point, box)
                x, y = center(box)
                near = radius is None or max(abs(point[0] - x), abs(point[1] - y)) < radius * stride
                if (
                    min(sides) > 0
                    and low < max(sides) < high
                    and near
                    and (best < 0 or area(box) < area(objects[best]))
                ):
                    best = index
            result.append(best)
    return result


def atss(levels: list[list[Box]], objects: list[Box], top_k: int) -> list[int]:
    """arXiv 1912.02424, algorithm 1."""
    anchors = [box for level in levels for box in level]
    best = [(-1.0, -1)] * len(anchors)  # IoU and object
    for index, box in enumerate(objects):
        candidates, start = [], 0
        for level in levels:
            order = sorted(range(len(level)), key=lambda row: math.dist(center(level[row]), center(box)))
            candidates += [start + row for row in order[:top_k]]
            start += len(level)
        overlaps = [box_iou(anchors[row], box) for row in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for row, overlap in zip(candidates, overlaps, strict=True):
            if overlap >= threshold and min(sides_from(center(anchors[row]), box)) > 0.01 and overlap > best[row][0]:
                best[row] = (overlap, index)
    return [index for _, index in best]
