"""Boxes with their names, drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

Colour = tuple[int, int, int]  # RGB

PALETTE: Sequence[Colour] = (
    (230, 57, 70),
    (29, 120, 216),
    (42, 157, 80),
    (244, 140, 6),
    (131, 56, 236),
    (0, 150, 160),
    (214, 51, 132),
    (110, 90, 60),
)
GREY: Colour = (140, 140, 140)
FONT = cv2.FONT_HERSHEY_SIMPLEX
DASH = 6  # px, and as much between two


def draw_box(canvas: np.ndarray, box: Sequence[float], text: str, colour: Colour, *, dashed: bool = False) -> None:
    """Draws on `canvas`, uint8 `[H, W, 3]`: the box, xyxy in its pixels, and the text above its upper left
    corner, or as near as the borders allow."""
    scale = max(0.4, min(canvas.shape[:2]) / 900)
    thickness = max(1, round(2 * scale))
    x1, y1, x2, y2 = (round(side) for side in box)
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    if dashed:
        for start, end in pairwise(corners):
            _draw_dashes(canvas, start, end, colour, thickness)
    else:
        cv2.rectangle(canvas, corners[0], corners[2], colour, thickness, cv2.LINE_AA)
    (width, height), base = cv2.getTextSize(text, FONT, scale, thickness)
    left, top = max(0, min(x1, canvas.shape[1] - width)), max(0, y1 - height - base)
    cv2.rectangle(canvas, (left, top), (left + width, top + height + base), colour, -1)
    cv2.putText(canvas, text, (left, top + height), FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)


def _draw_dashes(
    canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int], colour: Colour, thickness: int
) -> None:
    """A dashed line that is level or upright."""
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    points = np.linspace(start, end, max(1, length // DASH) + 1).round().astype(int).tolist()
    for one, two in zip(points[::2], points[1::2], strict=False):
        cv2.line(canvas, one, two, colour, thickness, cv2.LINE_AA)
