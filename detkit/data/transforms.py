"""Augmentation of one image with its boxes. The only file that imports albumentations.

What moves boxes is written out here, in whole pixels: flips and windows, so nothing but the colours passes through
albumentations. Everything random is a function of the seed that is passed in.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import cv2
import numpy as np
from pydantic import Field, field_validator

from detkit.config import Config
from detkit.structures import Sample, Size

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions when imported
import albumentations as A

MIN_VISIBLE = 0.25  # an object is dropped if less of its box than this is left in a window
MIN_CROP = 0.3  # of either side of the picture (SSD)
FILL = 114  # grey of the canvas around a picture that was scaled down


class AugmentConfig(Config):
    """What may happen to a training image, in this order. Everything is off but the flip.

    horizontal_flip  probability
    scale_jitter     (low, high): objects appear this many times larger (log-uniform). Above 1 a random window of the
                     picture is kept, below 1 the picture lies somewhere on a larger grey canvas (SSD's "expand")
    crop             probability of a random crop that keeps every object whole and `MIN_CROP` of either side
    photometric      probability of a change of brightness, contrast, saturation and hue, in the ranges of SSD
    """

    horizontal_flip: float = Field(0.5, ge=0, le=1)
    scale_jitter: tuple[float, float] | None = None
    crop: float = Field(0.0, ge=0, le=1)
    photometric: float = Field(0.0, ge=0, le=1)

    @field_validator("scale_jitter")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0.1 <= value[0] <= value[1] <= 10:
            raise ValueError(f"expected 0.1 <= low <= high <= 10, got {list(value)}")
        return value


class Augment:
    """`augment(sample, seed)`: the sample as it might also have been photographed; the same for the same seed."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self._change_colours = _color_jitter(config.photometric) if config.photometric else None

    def __call__(self, sample: Sample, seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        if rng.random() < self.config.horizontal_flip:
            sample = _flip(sample)
        if self.config.scale_jitter is not None:
            sample = _jitter_scale(sample, rng, self.config.scale_jitter)
        if rng.random() < self.config.crop:
            sample = _crop(sample, rng)
        if self._change_colours is not None:
            self._change_colours.set_random_seed(int(rng.integers(2**31)))
            sample = replace(sample, image=self._change_colours(image=sample.image)["image"])
        return sample


def resize_sample(sample: Sample, size: Size) -> Sample:
    """The sample stretched to `size` (h, w), bilinear."""
    height, width = sample.image.shape[:2]
    if (height, width) == size:
        return sample
    image = cv2.resize(sample.image, size[::-1], interpolation=cv2.INTER_LINEAR)
    scale = np.array([size[1] / width, size[0] / height] * 2)
    boxes = np.minimum(sample.boxes * scale, np.array(size[::-1] * 2)).astype(np.float32)
    return replace(sample, image=image, boxes=boxes)


def _flip(sample: Sample) -> Sample:
    width = np.float32(sample.image.shape[1])
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - sample.boxes[:, [2, 0]]
    return replace(sample, image=cv2.flip(sample.image, 1), boxes=boxes)


def _jitter_scale(sample: Sample, rng: np.random.Generator, limits: tuple[float, float]) -> Sample:
    factor = np.exp(rng.uniform(*np.log(limits)))
    height, width = (max(round(side / factor), 1) for side in sample.image.shape[:2])
    # The window may begin anywhere inside the picture, or the picture anywhere inside the window.
    top, left = (
        round(rng.uniform(min(0, free), max(0, free)))
        for free in (sample.image.shape[0] - height, sample.image.shape[1] - width)
    )
    return _window(sample, top, left, (height, width))


def _crop(sample: Sample, rng: np.random.Generator) -> Sample:
    """A random window around all boxes."""
    height, width = sample.image.shape[:2]
    x1, y1 = sample.boxes[:, :2].min(axis=0, initial=np.inf)
    x2, y2 = sample.boxes[:, 2:].max(axis=0, initial=0)
    left, right = _span(rng, width, x1, x2)
    top, bottom = _span(rng, height, y1, y2)
    return _window(sample, top, left, (bottom - top, right - left))


def _span(rng: np.random.Generator, extent: int, first: float, last: float) -> tuple[int, int]:
    """Whole numbers `0 <= start <= first`, `last <= end <= extent` that keep `MIN_CROP` of `extent`."""
    least = math.ceil(MIN_CROP * extent)
    start = int(rng.integers(0, math.floor(min(first, extent - least)) + 1))
    end = int(rng.integers(math.ceil(max(last, start + least)), extent + 1))
    return start, end


def _window(sample: Sample, top: int, left: int, size: Size) -> Sample:
    """What a window of `size` at (top, left) shows, grey where it reaches over the picture.

    Objects of which less than `MIN_VISIBLE` is left are dropped; regions to ignore stay while anything is left.
    """
    image = np.full((*size, 3), FILL, np.uint8)
    bottom, right = min(top + size[0], sample.image.shape[0]), min(left + size[1], sample.image.shape[1])
    part = sample.image[max(top, 0) : bottom, max(left, 0) : right]
    y, x = max(-top, 0), max(-left, 0)
    image[y : y + part.shape[0], x : x + part.shape[1]] = part
    moved = sample.boxes - np.array([left, top, left, top], np.float32)
    boxes = np.clip(moved, 0, np.array(size[::-1] * 2, np.float32))
    visible = _areas(boxes) / _areas(moved)
    kept = (visible >= MIN_VISIBLE) | (sample.ignore & (visible > 0))
    return replace(sample, image=image, boxes=boxes[kept], labels=sample.labels[kept], ignore=sample.ignore[kept])


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def _color_jitter(probability: float) -> A.Compose:
    """In the ranges of SSD: brightness 32 / 255, contrast and saturation half, hue 18 / 360 of the circle."""
    brightness = (1 - 32 / 255, 1 + 32 / 255)
    jitter = A.ColorJitter(brightness, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05), p=probability)
    return A.Compose([jitter])
