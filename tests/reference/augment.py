"""Augmentations from their definition: a loop over pixels, a loop over boxes.

A box is a list x1, y1, x2, y2; a pixel (row, column) has its centre at (column + 1/2, row + 1/2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Box = Sequence[float]


def warp(image: np.ndarray, matrix: np.ndarray, height: int, width: int, fill: float) -> np.ndarray:
    """float `[height, width, 3]`: each pixel is the bilinear value at the point that `matrix` `[2, 3]` sends to it."""
    inverse = np.linalg.inv(matrix[:, :2])
    result = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            x, y = inverse @ (np.array([column + 0.5, row + 0.5]) - matrix[:, 2]) - 0.5
            left, top = math.floor(x), math.floor(y)
            value = np.zeros(3)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                inside = 0 <= top + i < image.shape[0] and 0 <= left + j < image.shape[1]
                value += weight * (image[top + i, left + j] if inside else fill)
            result[row, column] = value
    return result


def warp_box(box: Box, matrix: np.ndarray, height: int, width: int) -> tuple[list[float], float]:
    """The box around the four moved corners, cut off at the canvas, and the part of it that is left."""
    corners = [matrix @ (x, y, 1) for x in (box[0], box[2]) for y in (box[1], box[3])]
    xs, ys = [float(corner[0]) for corner in corners], [float(corner[1]) for corner in corners]
    whole = [min(xs), min(ys), max(xs), max(ys)]
    cut = cut_box(whole, [0, 0, width, height])
    return cut, area(cut) / area(whole)


def cut_box(box: Box, window: Box) -> list[float]:
    x1, y1, x2, y2 = window
    return [min(max(v, low), high) for v, low, high in zip(box, (x1, y1, x1, y1), (x2, y2, x2, y2), strict=True)]


def area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def cells(size: int, grid: int, moves: Sequence[float]) -> list[tuple[int, int]]:
    """(start, end) along one axis of the cells of a mosaic, whose inner lines are moved by these parts of a square."""
    lines = [0, *(round(size * (line + 1 + move)) for line, move in enumerate(moves)), grid * size]
    return list(pairwise(lines))


def begins(extent: int, spans: list[tuple[int, int]]) -> list[int]:
    """Where a picture of this extent begins in each cell: ends at the first inner line, begins at the last one, or lies
    in the middle of its cell."""
    middle = [start + (end - start - extent) // 2 for start, end in spans[1:-1]]
    return [spans[0][1] - extent, *middle, spans[-1][0]]


def mosaic(
    pictures: Sequence[tuple[np.ndarray, Sequence[Box]]], size: int, rows: Sequence[float], columns: Sequence[float]
) -> tuple[np.ndarray, list[tuple[int, int, list[float]]]]:
    """The canvas, and of each box of which a quarter is visible (picture, row of the box, box on the canvas).

    pictures       grid^2 of (image, boxes), already of the size in which they are shown
    rows, columns  by which the inner lines are moved, in squares
    """
    grid = len(rows) + 1
    tall, wide = cells(size, grid, rows), cells(size, grid, columns)
    canvas = np.full((grid * size, grid * size, 3), 114, np.uint8)
    found = []
    for number, (image, boxes) in enumerate(pictures):
        row, column = number // grid, number % grid
        top, left = begins(image.shape[0], tall)[row], begins(image.shape[1], wide)[column]
        for y in range(*tall[row]):
            for x in range(*wide[column]):
                if 0 <= y - top < image.shape[0] and 0 <= x - left < image.shape[1]:
                    canvas[y, x] = image[y - top, x - left]
        window = [wide[column][0], tall[row][0], wide[column][1], tall[row][1]]
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            cut = cut_box([x1 + left, y1 + top, x2 + left, y2 + top], window)
            if area(cut) / area((x1, y1, x2, y2)) >= 0.25:
                found.append((number, index, cut))
    return canvas, found


def touched(box: Box) -> tuple[range, range]:
    """The rows and the columns of the pixels that a box touches."""
    return range(math.floor(box[1]), math.ceil(box[3])), range(math.floor(box[0]), math.ceil(box[2]))


def hidden_part(box: Box, covered: np.ndarray) -> float:
    """The part of the pixels of a box that are covered, bool `[H, W]`."""
    rows, columns = touched(box)
    return sum(bool(covered[y, x]) for y in rows for x in columns) / (len(rows) * len(columns))


def paste(image: np.ndarray, other: np.ndarray, boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """The rectangles of `boxes` in `other` over `image`, and where they are, bool `[H, W]`."""
    result, covered = image.copy(), np.zeros(image.shape[:2], np.bool_)
    for box in boxes:
        rows, columns = touched(box)
        for y in rows:
            for x in columns:
                result[y, x], covered[y, x] = other[y, x], True
    return result, covered


def with_companions(boxes: Sequence[Box], chosen: set[int]) -> set[int]:
    """`chosen`, and every box of which one of those chosen shows a quarter, and so on."""
    for number, box in enumerate(boxes):
        for one in chosen:
            if number not in chosen and area(cut_box(box, boxes[one])) >= 0.25 * area(box):
                return with_companions(boxes, chosen | {number})
    return chosen


def warp_mask(mask: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool `[height, width]`: each pixel is the one of `mask` with the point that `matrix` sends to its centre."""
    inverse = np.linalg.inv(matrix[:, :2])
    result = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            x, y = inverse @ (np.array([column + 0.5, row + 0.5]) - matrix[:, 2])
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                result[row, column] = mask[math.floor(y), math.floor(x)]
    return result


def window_of_mask(mask: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """bool `[height, width]`: the pixels of `mask` from (top, left) on, none where it has no pixel."""
    result = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            if 0 <= row + top < mask.shape[0] and 0 <= column + left < mask.shape[1]:
                result[row, column] = mask[row + top, column + left]
    return result
