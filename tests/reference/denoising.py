"""Denoising queries one by one, from the figures of DN-DETR (arXiv 2203.01305, section 4.2) and DINO (arXiv 2203.03605,
section 3.3), with the random numbers given.

Boxes are lists cx, cy, w, h in parts of the picture's sides.
"""

from collections.abc import Sequence

Box = Sequence[float]


def move_corners(
    box: Box, parts: Sequence[float], signs: Sequence[int], noise: float, negative: bool, swap: bool
) -> list[float]:
    """Each of x1, y1, x2, y2 moves by `noise` times half of its side, times a part from 0 to 1, of a negative from 1 to
    2, forwards or backwards; then it is kept in the picture. swap: those that passed each other change places; without,
    the side is negative."""
    cx, cy, w, h = box
    corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    for axis, half in enumerate([w / 2, h / 2, w / 2, h / 2]):
        part = parts[axis] + 1 if negative else parts[axis]
        corners[axis] = min(max(corners[axis] + signs[axis] * part * half * noise, 0.0), 1.0)
    x1, y1, x2, y2 = corners
    if swap:
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def move_center(box: Box, parts: Sequence[float], noise: float) -> list[float]:
    """The centre moves by at most `noise` halves of the sides, each side by at most `noise` of itself. `parts` are from
    0 to 1: back, or smaller, below 0.5."""
    _, _, w, h = box
    reach = [w / 2, h / 2, w, h]
    moved = [value + (2 * part - 1) * noise * far for value, part, far in zip(box, parts, reach, strict=True)]
    return [min(max(value, 0.0), 1.0) for value in moved]


def may_attend(query: int, other: int, num_denoising: int, groups: int) -> bool:
    """Of D denoising queries in `groups` of equal size, then the matching ones: whether `query` may see `other`."""
    size = num_denoising // groups
    if other >= num_denoising:  # everyone sees the matching queries
        return True
    if query >= num_denoising:  # which see no denoising query
        return False
    return query // size == other // size
