"""Tubelets, lists of K boxes, one after the other and frame by frame."""

from tests.reference.iou import Box, box_iou

Tubelet = list[Box]


def mean_iou(a: Tubelet, b: Tubelet) -> float:
    return sum(box_iou(one, other) for one, other in zip(a, b, strict=True)) / len(a)


def nms(tubelets: list[Tubelet], scores: list[float], threshold: float) -> list[int]:
    """The indices of those that remain, best first."""
    remaining: list[int] = []
    for i in sorted(range(len(tubelets)), key=lambda i: -scores[i]):
        if all(mean_iou(tubelets[i], tubelets[k]) <= threshold for k in remaining):
            remaining.append(i)
    return remaining
