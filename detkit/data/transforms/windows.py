"""Random windows of a picture, and canvases around it.

A window larger than the picture, or partly outside of it, puts the picture on a canvas.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from detkit.data.transforms.entry import Draws, Transform
from detkit.data.transforms.geometry import Window, box_areas, take_window
from detkit.structures import Sample

MIN_CROP = 0.3  # of either side of the picture (SSD)
MEAN = (123, 117, 104)  # ImageNet's mean, RGB: the canvas of SSD's expansion
CROP_OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # SSD, section 2.2: the whole picture, minimum IoUs, any window
CROP_TRIALS = 50
DETR_SHORT_SIDES = (400, 500, 600)  # px, of the picture in which DETR's window is measured
DETR_WINDOW = (384, 600)  # px, minimum and maximum of either side of the window


class ExpandConfig(Transform):
    """SSD: the picture lies on a canvas up to `max_ratio` times larger (the paper has 4), in the mean colour."""

    name: Literal["expand"] = "expand"
    probability: float | None = Field(0.5, ge=0, le=1)
    max_ratio: float = Field(4.0, ge=1, le=10)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        ratio = draws.rng.uniform(1, self.max_ratio)
        size = [round(side * ratio) for side in sample.size]
        top, left = (-int(draws.rng.integers(0, size[axis] - sample.size[axis] + 1)) for axis in (0, 1))
        return take_window(sample, Window(top, left, (size[0], size[1]), fill=MEAN))


class IoUCropConfig(Transform):
    """SSD's batch sampler (section 2.2): a window that overlaps an object by a drawn minimum IoU, or the whole picture.

    The window has .3 to 1 of the picture in the root of its area, and half to double its aspect. Objects stay if their
    centre is inside.
    """

    name: Literal["iou_crop"] = "iou_crop"

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        window = _iou_crop(sample, draws.rng)
        return sample if window is None else take_window(sample, window)


def _iou_crop(sample: Sample, rng: np.random.Generator) -> Window | None:
    """A window of Caffe's sampler; None for the whole picture. Ignored objects guide no window.

    Each choice of a minimum IoU has its trials, and one of the windows that fit is taken.
    """
    boxes = sample.objects.boxes[~sample.objects.ignore]
    if not len(boxes):
        return None
    # In a random order the first choice that has a fitting window is any of those that have one, equally likely.
    for number in rng.permutation(len(CROP_OVERLAPS)):
        overlap = CROP_OVERLAPS[number]
        if overlap is None:
            return None
        if (window := _try_crops(sample, rng, boxes, overlap)) is not None:
            return window
    return None


def _try_crops(sample: Sample, rng: np.random.Generator, boxes: np.ndarray, min_iou: float) -> Window | None:
    """The first of `CROP_TRIALS` windows that overlaps a box by this IoU and has the centre of one inside, or None."""
    height, width = sample.size
    for _ in range(CROP_TRIALS):
        scale = rng.uniform(MIN_CROP, 1)
        ratio = rng.uniform(max(0.5, scale**2), min(2, 1 / scale**2))  # so that no side passes the picture's
        w, h = max(1, round(width * scale * ratio**0.5)), max(1, round(height * scale / ratio**0.5))
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        window = np.array([left, top, left + w, top + h], np.float32)
        shared = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
        shared_area = np.prod(shared.clip(min=0), axis=1)
        iou = shared_area / (box_areas(boxes) + w * h - shared_area)
        if iou.max() >= min_iou:
            centred = _centres_inside(sample.objects.boxes, window)
            if centred[~sample.objects.ignore].any():
                return Window(top, left, (h, w), keep=centred)
    return None


def _centres_inside(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((centres > window[:2]) & (centres < window[2:])).all(axis=1))


class ResizeCropConfig(Transform):
    """DETR (section 4): a window of 384 to 600 px a side of the picture at a shorter side of 400, 500 or 600 px.

    It is measured in pixels of the picture as it is: the resize to the input's size is the only one. Objects stay of
    which any part is left.
    """

    name: Literal["resize_crop"] = "resize_crop"
    probability: float | None = Field(0.5, ge=0, le=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        rng, shape = draws.rng, sample.size
        scale = rng.choice(DETR_SHORT_SIDES) / min(shape)
        shortest, longest = DETR_WINDOW
        drawn = [round(rng.integers(shortest, min(round(s * scale), longest), endpoint=True) / scale) for s in shape]
        height, width = (max(1, min(side, limit)) for side, limit in zip(drawn, shape, strict=True))
        top, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
        return take_window(sample, Window(top, left, (height, width), keep=np.ones(len(sample.objects), np.bool_)))


class CropConfig(Transform):
    """A random window that keeps every object whole and `MIN_CROP` of either side."""

    name: Literal["crop"] = "crop"
    probability: float | None = Field(0.5, ge=0, le=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        height, width = sample.size
        x1, y1 = sample.objects.boxes[:, :2].min(axis=0, initial=np.inf)
        x2, y2 = sample.objects.boxes[:, 2:].max(axis=0, initial=0)
        left, right = _draw_interval(draws.rng, width, x1, x2)
        top, bottom = _draw_interval(draws.rng, height, y1, y2)
        return take_window(sample, Window(top, left, (bottom - top, right - left)))


def _draw_interval(rng: np.random.Generator, extent: int, first: float, last: float) -> tuple[int, int]:
    """Whole numbers `0 <= start <= first`, `last <= end <= extent` that keep `MIN_CROP` of `extent`."""
    minimum = math.ceil(MIN_CROP * extent)
    start = int(rng.integers(0, math.floor(min(first, extent - minimum)) + 1))
    end = int(rng.integers(math.ceil(max(last, start + minimum)), extent + 1))
    return start, end
