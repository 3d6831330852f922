"""A mask of S x S cells on the pixels of a picture, one pixel after the other. Masks are lists of rows."""

import math

from tests.reference.iou import Box

Mask = list[list[float]]


def paste_rounded(mask: Mask, box: Box, size: tuple[int, int]) -> Mask:
    """Probabilities in a picture of (h, w), as Detectron's first paste, which torchvision has: a ring of zeros around
    the mask, the box enlarged by it, cut to whole pixels, both ends included, and the mask resized to those."""
    cells = len(mask) + 2
    ring = [0.0] * cells
    padded = [ring, *([0.0, *row, 0.0] for row in mask), ring]
    left, right = _enlarged(box[0], box[2], cells / len(mask))
    top, bottom = _enlarged(box[1], box[3], cells / len(mask))

    def value(x: int, y: int) -> float:
        if not (left <= x <= right and top <= y <= bottom):
            return 0.0
        column = (x - left + 0.5) * cells / (right - left + 1) - 0.5
        row = (y - top + 0.5) * cells / (bottom - top + 1) - 0.5
        return _bilinear(padded, min(max(row, 0.0), cells - 1.0), min(max(column, 0.0), cells - 1.0))

    return [[value(x, y) for x in range(size[1])] for y in range(size[0])]


def _enlarged(low: float, high: float, factor: float) -> tuple[int, int]:
    middle, half = (low + high) / 2, (high - low) / 2 * factor
    return int(middle - half), int(middle + half)  # towards zero


def paste_exactly(mask: Mask, box: Box, size: tuple[int, int]) -> Mask:
    """Detectron2's: the probability at the middle of each pixel, between the middles of cells; zero beyond the mask."""
    cells = len(mask)

    def value(x: int, y: int) -> float:
        column = (x + 0.5 - box[0]) / (box[2] - box[0]) * cells - 0.5
        row = (y + 0.5 - box[1]) / (box[3] - box[1]) * cells - 0.5
        return _bilinear(mask, row, column)

    return [[value(x, y) for x in range(size[1])] for y in range(size[0])]


def _bilinear(mask: Mask, row: float, column: float) -> float:
    """Between the four cells around; those that there are not are zero."""
    total = 0.0
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < len(mask) and 0 <= c < len(mask[0]):
                total += max(0.0, 1 - abs(row - r)) * max(0.0, 1 - abs(column - c)) * mask[r][c]
    return total
