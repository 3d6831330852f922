"""Random windows of a picture: every function draws one, which `take_window` then cuts out.

A window larger than the picture, or partly outside of it, puts the picture on a canvas.
"""

from __future__ import annotations

import math

import numpy as np

from detkit.data.transforms.geometry import Window, box_areas
from detkit.structures import Sample, Size

MIN_CROP = 0.3  # of either side of the picture (SSD)
MEAN = (123, 117, 104)  # ImageNet's mean, RGB: the canvas of SSD's expansion
GREY = (127, 127, 127)  # darknet's canvas
CROP_OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # SSD, section 2.2: the whole picture, minimum IoUs, any window
CROP_TRIALS = 50
DETR_SHORT_SIDES = (400, 500, 600)  # px, of the picture in which DETR's window is measured
DETR_WINDOW = (384, 600)  # px, minimum and maximum of either side of the window


def scale_jitter(sample: Sample, rng: np.random.Generator, limits: tuple[float, float]) -> Window:
    """A window that shows objects larger or smaller by a factor in `limits` (log-uniform)."""
    factor = np.exp(rng.uniform(*np.log(limits)))
    height, width = (max(round(side / factor), 1) for side in sample.image.shape[:2])
    # The window may begin anywhere inside the picture, or the picture anywhere inside the window.
    top, left = (
        round(rng.uniform(min(0, free), max(0, free)))
        for free in (sample.image.shape[0] - height, sample.image.shape[1] - width)
    )
    return Window(top, left, (height, width))


def expand(sample: Sample, rng: np.random.Generator, max_ratio: float) -> Window:
    """A canvas up to `max_ratio` times larger than the picture, in the colour of ImageNet's mean."""
    ratio = rng.uniform(1, max_ratio)
    size = [round(side * ratio) for side in sample.image.shape[:2]]
    top, left = (-int(rng.integers(0, size[axis] - sample.image.shape[axis] + 1)) for axis in (0, 1))
    return Window(top, left, (size[0], size[1]), fill=MEAN)


def iou_crop(sample: Sample, rng: np.random.Generator) -> Window | None:
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
    height, width = sample.image.shape[:2]
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


def resize_crop(sample: Sample, rng: np.random.Generator) -> Window:
    """DETR's window, in pixels of the picture as it is: the resize to the input's size is the only one."""
    shape = sample.image.shape[:2]
    scale = rng.choice(DETR_SHORT_SIDES) / min(shape)
    shortest, longest = DETR_WINDOW
    drawn = [round(rng.integers(shortest, min(round(s * scale), longest), endpoint=True) / scale) for s in shape]
    height, width = (max(1, min(side, limit)) for side, limit in zip(drawn, shape, strict=True))
    top, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
    return Window(top, left, (height, width), keep=np.ones(len(sample.objects), np.bool_))


def translate(sample: Sample, rng: np.random.Generator, max_part: float) -> Window:
    """Each border of the picture moved in or out by up to this part of its side."""
    height, width = sample.image.shape[:2]
    left, right = (round(width * move) for move in rng.uniform(-max_part, max_part, 2))
    top, bottom = (round(height * move) for move in rng.uniform(-max_part, max_part, 2))
    return Window(top, left, (height + bottom - top, width + right - left))


def jitter(
    sample: Sample, rng: np.random.Generator, max_change: float, limits: tuple[float, float]
) -> tuple[Size, Window]:
    """darknet's jitter: the size to which the picture is resized first, and a grey square on which it then lies."""
    height, width = sample.image.shape[:2]
    side = max(height, width)
    ratio = width * (1 + rng.uniform(-max_change, max_change)) / (height * (1 + rng.uniform(-max_change, max_change)))
    longer = side * rng.uniform(*limits)
    w, h = (longer * ratio, longer) if ratio < 1 else (longer, longer / ratio)
    size = (max(1, round(h)), max(1, round(w)))
    top, left = (-round(rng.uniform(min(0, free), max(0, free))) for free in (side - size[0], side - size[1]))
    return size, Window(top, left, (side, side), fill=GREY)


def crop_around_objects(sample: Sample, rng: np.random.Generator) -> Window:
    """A random window around all boxes."""
    height, width = sample.image.shape[:2]
    x1, y1 = sample.objects.boxes[:, :2].min(axis=0, initial=np.inf)
    x2, y2 = sample.objects.boxes[:, 2:].max(axis=0, initial=0)
    left, right = _draw_interval(rng, width, x1, x2)
    top, bottom = _draw_interval(rng, height, y1, y2)
    return Window(top, left, (bottom - top, right - left))


def _draw_interval(rng: np.random.Generator, extent: int, first: float, last: float) -> tuple[int, int]:
    """Whole numbers `0 <= start <= first`, `last <= end <= extent` that keep `MIN_CROP` of `extent`."""
    minimum = math.ceil(MIN_CROP * extent)
    start = int(rng.integers(0, math.floor(min(first, extent - minimum)) + 1))
    end = int(rng.integers(math.ceil(max(last, start + minimum)), extent + 1))
    return start, end
