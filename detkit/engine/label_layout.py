"""Where labels lie on a picture, so that none covers another.

Legend: a rectangle is (x1, y1, x2, y2) in whole pixels; that of a label ends before x2 and y2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.structures import Size

Rectangle = tuple[int, int, int, int]

RINGS = (1.5, 3.0, 4.5)  # how far away a label is looked for, in heights of it


@dataclass(frozen=True)
class Spot:
    """Of a label; `away` from its box, so that a line has to say which it is of."""

    rectangle: Rectangle
    away: bool


class LabelLayout:
    """Gives each label a spot on a picture of `size` (h, w) that is free when it comes: the most important first."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.taken = np.zeros((0, 4), np.int64)

    def place(self, box: Rectangle, label: Size) -> Spot | None:
        """Where the label of this (h, w) goes, which is less where the picture is smaller; None: there is no room."""
        height, width = min(label[0], self.size[0]), min(label[1], self.size[1])
        for away, corners in enumerate((_beside(box, height, width), _around(box, height, width))):
            spots = self._on_picture(corners, height, width)
            free = np.flatnonzero(~self._overlaps(spots))
            if len(free):
                spot = spots[free[0]]
                self.taken = np.vstack([self.taken, spot])
                x1, y1, x2, y2 = spot.tolist()
                return Spot((x1, y1, x2, y2), bool(away))
        return None

    def _on_picture(self, corners: np.ndarray, height: int, width: int) -> np.ndarray:
        """int64 `[N, 4]` of upper left corners `[N, 2]`; shifted sideways onto the picture, without those that are
        above or below it."""
        corners = corners[(corners[:, 1] >= 0) & (corners[:, 1] + height <= self.size[0])]
        x = corners[:, 0].clip(0, self.size[1] - width)
        return np.stack([x, corners[:, 1], x + width, corners[:, 1] + height], axis=1)

    def _overlaps(self, spots: np.ndarray) -> np.ndarray:
        """bool `[N]`: whether each spot has a pixel in common with one that is taken."""
        one, two = spots[:, None], self.taken[None]
        apart = (one[..., :2] >= two[..., 2:]) | (two[..., :2] >= one[..., 2:])  # [N, M, 2], sideways and upright
        return np.asarray((~apart[..., 0] & ~apart[..., 1]).any(axis=1))


def _beside(box: Rectangle, height: int, width: int) -> np.ndarray:
    """Upper left corners int64 `[N, 2]`, the best first: above the box, below, inside, on its right, on its left."""
    x1, y1, x2, y2 = box
    right = x2 + 1 - width
    above, below = y1 - height, y2 + 1
    return np.array(
        [
            *((x1, above), (right, above), (x1, below), (right, below)),
            *((x1, y1), (right, y1), (x1, below - height), (right, below - height)),
            *((x2 + 1, y1), (x2 + 1, below - height), (x1 - width, y1), (x1 - width, below - height)),
        ]
    )


def _around(box: Rectangle, height: int, width: int) -> np.ndarray:
    """Upper left corners int64 `[N, 2]` at some distance from the box, the nearest first."""
    x1, y1, x2, y2 = box
    middle = (x1 + x2 - width) // 2
    corners = []
    for ring in RINGS:
        far = round(ring * height)
        left, right, above, below = x1 - width - far, x2 + far, y1 - height - far, y2 + far
        corners += [(x, y) for y in (above, below) for x in (middle, left, right)]
        corners += [(x, y) for x in (left, right) for y in ((y1 + y2 - height) // 2, y1, y2 - height)]
    return np.array(corners)
