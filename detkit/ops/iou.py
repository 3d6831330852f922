"""Overlap of boxes: IoU, its generalisations, and IoF.

Legend: N, M boxes, `...` any leading dimensions.
Every function has the same arguments:

    boxes1     `[..., N, 4]` xyxy
    boxes2     `[..., M, 4]` xyxy, or the shape of `boxes1` if paired
    paired     compare row by row instead of all with all
    inclusive  x2 and y2 are the last pixels inside: width = x2 - x1 + 1, as in R-CNN and VOC

and returns `[..., N, M]`, or `[..., N]` if paired, at least float32. Zero boxes give an empty result. Where a
denominator is zero (two boxes without area) the quotient is 0. Gradients are finite everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detkit.ops.boxes import at_least_float32, box_area, box_sides, check_boxes
from detkit.ops.dispatch import attempt


def box_iou(boxes1: Tensor, boxes2: Tensor, *, paired: bool = False, inclusive: bool = False) -> Tensor:
    """Intersection over union (Jaccard index), in [0, 1]."""
    boxes1, boxes2 = _broadcastable(boxes1, boxes2, paired)
    if not paired and _kernel_takes(boxes1, boxes2):
        result: Tensor | None = attempt("box_iou", boxes1[:, 0], boxes2[0], inclusive)
        if result is not None:
            return result
    return _quotient(*_intersection_and_union(boxes1, boxes2, inclusive))


def box_iof(boxes1: Tensor, boxes2: Tensor, *, paired: bool = False, inclusive: bool = False) -> Tensor:
    """Intersection over the area of `boxes1` ("foreground"), in [0, 1]: COCO's overlap of a detection with a crowd."""
    boxes1, boxes2 = _broadcastable(boxes1, boxes2, paired)
    return _quotient(_intersection(boxes1, boxes2, inclusive), box_area(boxes1, inclusive=inclusive))


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, *, paired: bool = False, inclusive: bool = False) -> Tensor:
    """GIoU = IoU - (C - U) / C with U the union and C the smallest enclosing box, in [-1, 1]; arXiv 1902.09630."""
    boxes1, boxes2 = _broadcastable(boxes1, boxes2, paired)
    intersection, union = _intersection_and_union(boxes1, boxes2, inclusive)
    width, height = _enclosing_sides(boxes1, boxes2, inclusive)
    enclosing = width * height
    return _quotient(intersection, union) - _quotient(enclosing - union, enclosing)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, *, paired: bool = False, inclusive: bool = False) -> Tensor:
    """DIoU = IoU - d^2 / c^2 with d the distance of the centres and c the diagonal of the smallest enclosing box.

    In (-1, 1]; arXiv 1911.08287, eq. 7.
    """
    boxes1, boxes2 = _broadcastable(boxes1, boxes2, paired)
    iou = _quotient(*_intersection_and_union(boxes1, boxes2, inclusive))
    return iou - _center_distance(boxes1, boxes2, inclusive)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, *, paired: bool = False, inclusive: bool = False) -> Tensor:
    """CIoU = DIoU - alpha v, with v = (4 / pi^2) (atan(w1 / h1) - atan(w2 / h2))^2 and alpha = v / (1 - IoU + v).

    alpha is a constant in the gradient. arXiv 1911.08287, eq. 8-11.
    """
    boxes1, boxes2 = _broadcastable(boxes1, boxes2, paired)
    iou = _quotient(*_intersection_and_union(boxes1, boxes2, inclusive))
    v = (4 / math.pi**2) * (_shape_angle(boxes1, inclusive) - _shape_angle(boxes2, inclusive)) ** 2
    with torch.no_grad():
        alpha = _quotient(v, 1 - iou + v)
    return iou - _center_distance(boxes1, boxes2, inclusive) - alpha * v


def scylla_box_iou(boxes1: Tensor, boxes2: Tensor, *, paired: bool = False, inclusive: bool = False) -> Tensor:
    """SIoU = IoU - (D + S) / 2 with costs of distance D and of shape S, in (-1, 1]; arXiv 2205.12740.

    D = sum of 1 - exp(-(2 - A) (d / c)^2) over both axes, with d the distance of the centres and c the side of the
    smallest enclosing box, and A = sin(2 alpha), where alpha is the angle of the line between the centres: distance
    counts least on a diagonal. S = sum of (1 - exp(-|s1 - s2| / max(s1, s2)))^4 over both sides.
    """
    boxes1, boxes2 = _broadcastable(boxes1, boxes2, paired)
    iou = _quotient(*_intersection_and_union(boxes1, boxes2, inclusive))
    offset = [distance.abs() for distance in _center_offset(boxes1, boxes2)]
    angle = _quotient(2 * offset[0] * offset[1], offset[0] ** 2 + offset[1] ** 2)
    cost = torch.zeros_like(iou)
    for distance, enclosing in zip(offset, _enclosing_sides(boxes1, boxes2, inclusive), strict=True):
        enclosing = torch.maximum(enclosing, distance)  # as it is, but for boxes of negative sides
        cost = cost + 1 - torch.exp((angle - 2) * _quotient(distance**2, enclosing**2))
    sides = (box_sides(boxes, inclusive=inclusive) for boxes in (boxes1, boxes2))
    for side1, side2 in zip(*sides, strict=True):
        side1, side2 = side1.clamp(min=0), side2.clamp(min=0)
        cost = cost + (1 - torch.exp(-_quotient((side1 - side2).abs(), torch.maximum(side1, side2)))) ** 4
    return iou - cost / 2


def _broadcastable(boxes1: Tensor, boxes2: Tensor, paired: bool) -> tuple[Tensor, Tensor]:
    """Both sets in shapes that broadcast to each other: `[..., N, 1, 4]` and `[..., 1, M, 4]` unless paired."""
    check_boxes("boxes1", boxes1)
    check_boxes("boxes2", boxes2)
    boxes1, boxes2 = at_least_float32(boxes1), at_least_float32(boxes2)
    if not paired:
        return boxes1.unsqueeze(-2), boxes2.unsqueeze(-3)
    if boxes1.shape != boxes2.shape:
        raise ValueError(
            f"paired boxes: expected equal shapes, got boxes1 {list(boxes1.shape)}, boxes2 {list(boxes2.shape)}"
        )
    return boxes1, boxes2


def _kernel_takes(boxes1: Tensor, boxes2: Tensor) -> bool:
    """Whether the CPU kernel can compare these: `[N, 1, 4]` and `[1, M, 4]` of one dtype, without gradients."""
    needs_gradient = torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad)
    return boxes1.ndim == boxes2.ndim == 3 and boxes1.dtype == boxes2.dtype and not needs_gradient


def _intersection(boxes1: Tensor, boxes2: Tensor, inclusive: bool) -> Tensor:
    # Each coordinate by itself, because corners [N, M, 2] would take twice the memory of all other tensors.
    width = torch.minimum(boxes1[..., 2], boxes2[..., 2]) - torch.maximum(boxes1[..., 0], boxes2[..., 0])
    height = torch.minimum(boxes1[..., 3], boxes2[..., 3]) - torch.maximum(boxes1[..., 1], boxes2[..., 1])
    if inclusive:
        width, height = width + 1, height + 1
    return width.clamp(min=0) * height.clamp(min=0)


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor, inclusive: bool) -> tuple[Tensor, Tensor]:
    intersection = _intersection(boxes1, boxes2, inclusive)
    area1, area2 = box_area(boxes1, inclusive=inclusive), box_area(boxes2, inclusive=inclusive)
    return intersection, area1 + area2 - intersection


def _enclosing_sides(boxes1: Tensor, boxes2: Tensor, inclusive: bool) -> tuple[Tensor, Tensor]:
    width = torch.maximum(boxes1[..., 2], boxes2[..., 2]) - torch.minimum(boxes1[..., 0], boxes2[..., 0])
    height = torch.maximum(boxes1[..., 3], boxes2[..., 3]) - torch.minimum(boxes1[..., 1], boxes2[..., 1])
    return (width + 1, height + 1) if inclusive else (width, height)


def _center_distance(boxes1: Tensor, boxes2: Tensor, inclusive: bool) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box, in [0, 1)."""
    width, height = _enclosing_sides(boxes1, boxes2, inclusive)
    dx, dy = _center_offset(boxes1, boxes2)
    return _quotient(dx**2 + dy**2, width**2 + height**2)


def _center_offset(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """From the centre of `boxes2` to that of `boxes1`, x and y."""
    dx = (boxes1[..., 0] + boxes1[..., 2] - boxes2[..., 0] - boxes2[..., 2]) / 2
    dy = (boxes1[..., 1] + boxes1[..., 3] - boxes2[..., 1] - boxes2[..., 3]) / 2
    return dx, dy


def _shape_angle(boxes: Tensor, inclusive: bool) -> Tensor:
    """atan(w / h) of each box, in [0, pi / 2]; 0 for a point, which has no shape."""
    width, height = (side.clamp(min=0) for side in box_sides(boxes, inclusive=inclusive))
    is_point = width**2 + height**2 <= torch.finfo(width.dtype).tiny
    return torch.atan2(width, torch.where(is_point, 1, height))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, or / 1 where the denominator is zero, so that value and gradient stay finite."""
    tiny = torch.finfo(denominator.dtype).tiny
    return numerator / torch.where(denominator > tiny, denominator, 1)
