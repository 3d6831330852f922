"""Overlap of two boxes `(x1, y1, x2, y2)`; with `inclusive` x2 and y2 are the last pixels inside."""

import math

Box = tuple[float, float, float, float]


def quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


def sides(box: Box, inclusive: bool = False) -> tuple[float, float]:
    x1, y1, x2, y2 = box
    return max(x2 - x1 + inclusive, 0.0), max(y2 - y1 + inclusive, 0.0)


def area(box: Box, inclusive: bool = False) -> float:
    width, height = sides(box, inclusive)
    return width * height


def intersection(a: Box, b: Box, inclusive: bool = False) -> float:
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])), inclusive)


def union(a: Box, b: Box, inclusive: bool = False) -> float:
    return area(a, inclusive) + area(b, inclusive) - intersection(a, b, inclusive)


def enclosing(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def box_iou(a: Box, b: Box, inclusive: bool = False) -> float:
    return quotient(intersection(a, b, inclusive), union(a, b, inclusive))


def box_iof(a: Box, b: Box, inclusive: bool = False) -> float:
    return quotient(intersection(a, b, inclusive), area(a, inclusive))


def generalized_box_iou(a: Box, b: Box, inclusive: bool = False) -> float:
    hull = area(enclosing(a, b), inclusive)
    return box_iou(a, b, inclusive) - quotient(hull - union(a, b, inclusive), hull)


def distance_box_iou(a: Box, b: Box, inclusive: bool = False) -> float:
    width, height = sides(enclosing(a, b), inclusive)
    dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    return box_iou(a, b, inclusive) - quotient(dx**2 + dy**2, width**2 + height**2)


def complete_box_iou(a: Box, b: Box, inclusive: bool = False) -> float:
    iou = box_iou(a, b, inclusive)
    v = 4 / math.pi**2 * (math.atan2(*sides(a, inclusive)) - math.atan2(*sides(b, inclusive))) ** 2
    return distance_box_iou(a, b, inclusive) - quotient(v, 1 - iou + v) * v


def scylla_box_iou(a: Box, b: Box, inclusive: bool = False) -> float:
    """arXiv 2205.12740: equation 1 (angle), 2 and 3 (distance), 4 and 5 (shape), 6."""
    dx = abs((a[0] + a[2]) / 2 - (b[0] + b[2]) / 2)
    dy = abs((a[1] + a[3]) / 2 - (b[1] + b[3]) / 2)
    sine = min(1.0, quotient(dy, math.hypot(dx, dy)))
    angle = 1 - 2 * math.sin(math.asin(sine) - math.pi / 4) ** 2
    distance = shape = 0.0
    for offset, hull in zip((dx, dy), sides(enclosing(a, b), inclusive), strict=True):
        distance += 1 - math.exp(-(2 - angle) * quotient(offset, hull) ** 2)
    for side1, side2 in zip(sides(a, inclusive), sides(b, inclusive), strict=True):
        shape += (1 - math.exp(-quotient(abs(side1 - side2), max(side1, side2)))) ** 4
    return box_iou(a, b, inclusive) - (distance + shape) / 2
