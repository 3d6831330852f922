"""The boxes of a data set as flat arrays in COCO's form, as both programs that compute the COCO numbers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class FlatBoxes(NamedTuple):
    """The boxes of all images of a data set, one image after the other.

    images  int64 `[N]`: the index of the image that a box is on
    labels  int64 `[N]`
    xywh    float64 `[N, 4]`: left, top, width, height
    areas   float64 `[N]`, px^2
    """

    images: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray

    @staticmethod
    def of_corners(counts: Sequence[int], boxes: np.ndarray, labels: np.ndarray) -> FlatBoxes:
        """From the number of boxes on each image, all boxes `[N, 4]` xyxy and all labels. The areas are box areas."""
        xywh = to_xywh(boxes)
        return FlatBoxes(np.repeat(np.arange(len(counts)), counts), labels, xywh, xywh[:, 2] * xywh[:, 3])

    def take(self, indices: np.ndarray) -> FlatBoxes:
        return FlatBoxes(*(column[indices] for column in self))


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO boxes, float64 `[N, 4]`, from boxes `[N, 4]` xyxy, rounded to a thousandth of a pixel.

    float32 corners are hardly more precise than that, and rounding restores the two decimals of a COCO file: a width
    of 348.26 would otherwise become 348.2600097656, which may lie on the other side of a threshold.
    """
    corners = boxes.astype(np.float64)
    return np.round(np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), 3)
