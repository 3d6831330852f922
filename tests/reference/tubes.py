"""Tubes by the letter of the published rules (facts: arXiv 1705.01861 and its release), on inclusive pixels.

A tube is `{frame: [x1, y1, x2, y2]}` without gaps, where x2 and y2 are the last pixels inside.
"""

from collections.abc import Hashable
from itertools import pairwise

Box = list[float]
Boxes = dict[int, Box]


def pixel_iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a, area_b = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def tube_iou(a: Boxes, b: Boxes) -> float:
    first, last = max(min(a), min(b)), min(max(a), max(b))
    if last < first:
        return 0.0
    temporal = (last - first + 1) / (max(*a, *b) - min(*a, *b) + 1)
    return temporal * sum(pixel_iou(a[t], b[t]) for t in range(first, last + 1)) / (last - first + 1)


def average_precision(
    objects: list[tuple[Hashable, Boxes, bool]], detections: list[tuple[Hashable, float, Boxes]], threshold: float
) -> float:
    """Of one class. objects: (group, boxes, ignored); detections: (group, score, boxes); at least one object counts."""
    open_objects = list(range(len(objects)))
    total = sum(not ignored for _, _, ignored in objects)
    true = false = 0
    curve = [(0.0, 1.0)]
    for group, _, boxes in sorted(detections, key=lambda detection: -detection[1]):
        best, best_overlap = -1, -1.0
        for index in open_objects:
            if objects[index][0] == group and tube_iou(boxes, objects[index][1]) > best_overlap:
                best, best_overlap = index, tube_iou(boxes, objects[index][1])
        if best_overlap >= threshold and objects[best][2]:
            continue
        if best_overlap >= threshold:
            open_objects.remove(best)
            true += 1
        else:
            false += 1
        curve.append((true / total, true / (true + false)))
    return sum((r2 - r1) * (p1 + p2) / 2 for (r1, p1), (r2, p2) in pairwise(curve))


Tubelet = tuple[list[Box], float]  # K boxes, score


def mean_iou(a: list[Box], b: list[Box]) -> float:
    return sum(pixel_iou(x, y) for x, y in zip(a, b, strict=True)) / len(a)


def link(frames: list[list[Tubelet]], nms: float = 0.3, top: int = 10, overlap: float = 0.2, misses: int = 5) -> list:
    """(score, boxes) of all tubes of one class that were ever started; `frames[t]` start at frame t. A frame that no
    tubelet covers has no box."""
    current: list[list[tuple[int, Tubelet]]] = []
    finished = []
    for t, tubelets in enumerate(frames):
        remaining: list[Tubelet] = []
        for tubelet in sorted(tubelets, key=lambda each: -each[1]):
            if len(remaining) < top and not any(mean_iou(tubelet[0], other[0]) > nms for other in remaining):
                remaining.append(tubelet)
        current.sort(key=lambda tube: -sum(score for _, (_, score) in tube) / len(tube))
        ending = []
        for tube in current:
            last, (last_boxes, _) = tube[-1]
            choices = []
            for tubelet in remaining:
                boxes = tubelet[0]
                common = [(boxes[s - t], last_boxes[s - last]) for s in range(t, last + len(last_boxes))]
                common = common or [(boxes[0], last_boxes[-1])]
                if sum(pixel_iou(x, y) for x, y in common) / len(common) >= overlap:
                    choices.append(tubelet)
            if choices:
                best = max(choices, key=lambda each: each[1])
                tube.append((t, best))
                remaining = [tubelet for tubelet in remaining if tubelet is not best]
            elif t - last >= misses:
                ending.append(tube)
        finished += ending
        current = [tube for tube in current if not any(tube is other for other in ending)]
        current += [[(t, tubelet)] for tubelet in remaining]
    return [_merge(tube) for tube in finished + current]


def _merge(tube: list[tuple[int, Tubelet]]) -> tuple[float, Boxes]:
    covering: dict[int, list[Box]] = {}
    for start, (boxes, _) in tube:
        for k, box in enumerate(boxes):
            covering.setdefault(start + k, []).append(box)
    means = {t: [sum(c) / len(c) for c in zip(*boxes, strict=True)] for t, boxes in covering.items()}
    return sum(score for _, (_, score) in tube) / len(tube), means
