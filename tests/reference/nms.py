"""Greedy and soft suppression, one box after the other."""

import math

from tests.reference.iou import Box, box_iou


def nms(boxes: list[Box], scores: list[float], iou_threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(box_iou(boxes[i], boxes[k]) <= iou_threshold for k in kept):
            kept.append(i)
    return kept


def class_aware_nms(boxes: list[Box], scores: list[float], labels: list[int], iou_threshold: float) -> list[int]:
    kept: list[int] = []
    for label in set(labels):
        members = [i for i in range(len(boxes)) if labels[i] == label]
        found = nms([boxes[i] for i in members], [scores[i] for i in members], iou_threshold)
        kept += [members[i] for i in found]
    return sorted(kept, key=lambda i: (-scores[i], i))


def soft_nms(
    boxes: list[Box],
    scores: list[float],
    labels: list[int],
    method: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> tuple[list[int], list[float]]:
    """Bodla et al., figure 2."""
    scores, left = list(scores), list(range(len(boxes)))
    kept: list[int] = []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        kept.append(best)
        for i in left:
            if labels[i] == labels[best]:
                iou = box_iou(boxes[best], boxes[i])
                if method == "gaussian":
                    scores[i] *= math.exp(-(iou**2) / sigma)
                elif iou >= iou_threshold:
                    scores[i] *= 1 - iou
    kept = [i for i in kept if scores[i] >= score_threshold]
    return kept, [scores[i] for i in kept]


def merge(boxes: list[Box], scores: list[float], iou_threshold: float) -> list[tuple[Box, float]]:
    """OverFeat's merging of the boxes of one class, with sets of boxes: join the two sets whose means overlap most."""
    sets = [[i] for i in range(len(boxes))]

    def mean(members: list[int]) -> Box:
        return tuple(sum(boxes[i][side] for i in members) / len(members) for side in range(4))  # type: ignore[return-value]

    while len(sets) > 1:
        pairs = [(a, b) for a in range(len(sets)) for b in range(a + 1, len(sets))]
        a, b = max(pairs, key=lambda pair: box_iou(mean(sets[pair[0]]), mean(sets[pair[1]])))
        if box_iou(mean(sets[a]), mean(sets[b])) <= iou_threshold:
            break
        sets[a] += sets.pop(b)
    return [(mean(members), 1 - math.prod(1 - scores[i] for i in members)) for members in sets]
