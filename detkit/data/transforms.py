"""Augmentation of one image with its boxes. The only file that imports albumentations.

What moves boxes is written out here, in whole pixels: flips and windows, so nothing but colours passes through
albumentations. Everything random is a function of the seed that is passed in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pydantic import Field, field_validator

from detkit.config import Config
from detkit.structures import Sample, Size

if TYPE_CHECKING:
    import albumentations as A

MIN_VISIBLE = 0.25  # an object is dropped if less of its box than this is left in a window
MIN_CROP = 0.3  # of either side of the picture (SSD)
FILL = (114, 114, 114)  # grey of the canvas around a picture that was scaled down
MEAN = (123, 117, 104)  # of ImageNet, RGB: the canvas of SSD's expansion
GREY = (127, 127, 127)  # darknet's canvas
CROP_OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # SSD, section 2.2: the whole picture, least IoUs, any window
CROP_TRIALS = 50
DETR_SHORT_SIDES = (400, 500, 600)  # px, of the picture in which DETR's window is measured
DETR_WINDOW = (384, 600)  # px, least and most of either side of the window
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)


class AugmentConfig(Config):
    """What may happen to a training image, in this order. Everything is off but the flip.

    horizontal_flip       probability
    photometric           SSD: probability of each of four changes: brightness, contrast, saturation, hue
    hsv                   darknet: (hue, saturation, exposure): hue moves by up to that part of the circle, the others
                          are multiplied by up to their factor or its inverse (saturation blends with grey here)
    expand                SSD: with probability 1/2 the picture lies on a mean-coloured canvas up to this many times
                          larger; 1: never. The paper has 4
    iou_crop              SSD's batch sampler (section 2.2): a window, .3 to 1 of the picture in the root of its area
                          and of half to double its aspect, that overlaps an object by a drawn least IoU; objects stay
                          whose centre it holds
    resize_crop           DETR (section 4): probability of a window, 384 to 600 px a side of the picture at a shorter
                          side of 400, 500 or 600 px; objects stay of which anything is left
    scale_jitter          (low, high): objects appear this many times larger (log-uniform). Above 1 a random window of
                          the picture is kept, below 1 the picture lies somewhere on a larger grey canvas
    crop                  probability of a random crop that keeps every object whole and `MIN_CROP` of either side
    translate             YOLOv1: each border of the picture moves in or out by up to this part of its side
    jitter                YOLOv2, v3: each side changes by up to this part, and the picture, scaled by `jitter_scale`,
                          is put somewhere on a grey square
    jitter_scale          (low, high) of the picture's longer side to the square's, uniform
    random_interpolation  SSD: the resize to the input's size draws one of five interpolations
    """

    horizontal_flip: float = Field(0.5, ge=0, le=1)
    photometric: float = Field(0.0, ge=0, le=1)
    hsv: tuple[float, float, float] | None = None
    expand: float = Field(1.0, ge=1, le=10)
    iou_crop: bool = False
    resize_crop: float = Field(0.0, ge=0, le=1)
    scale_jitter: tuple[float, float] | None = None
    crop: float = Field(0.0, ge=0, le=1)
    translate: float = Field(0.0, ge=0, lt=0.5)
    jitter: float = Field(0.0, ge=0, lt=1)
    jitter_scale: tuple[float, float] = (0.25, 2.0)
    random_interpolation: bool = False

    @field_validator("scale_jitter", "jitter_scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0.1 <= value[0] <= value[1] <= 10:
            raise ValueError(f"expected 0.1 <= low <= high <= 10, got {list(value)}")
        return value

    @field_validator("hsv")
    @classmethod
    def _in_range(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and not (0 <= value[0] <= 0.5 and value[1] >= 1 and value[2] >= 1):
            raise ValueError(f"expected a hue of 0 to 0.5 and factors of at least 1, got {list(value)}")
        return value


class Augment:
    """`augment(sample, seed)`: the sample as it might also have been photographed; the same for the same seed."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self._photometric = _photometric(config.photometric) if config.photometric else []

    def __call__(self, sample: Sample, seed: int) -> Sample:
        config, rng = self.config, np.random.default_rng(seed)
        if rng.random() < config.horizontal_flip:
            sample = _flip(sample)
        for change in self._photometric:
            sample = _Unpainted.of(sample, partial(_with_albumentations, change, int(rng.integers(2**31))))
        if config.hsv:
            sample = _Unpainted.of(sample, _hsv(rng, *config.hsv))
        if config.expand > 1 and rng.random() < 0.5:
            sample = _expand(sample, rng, config.expand)
        if config.iou_crop:
            sample = _iou_crop(sample, rng)
        if config.resize_crop and rng.random() < config.resize_crop:
            sample = _resize_crop(sample, rng)
        if config.scale_jitter is not None:
            sample = _jitter_scale(sample, rng, config.scale_jitter)
        if rng.random() < config.crop:
            sample = _crop(sample, rng)
        if config.translate:
            sample = _translate(sample, rng, config.translate)
        if config.jitter:
            sample = _jitter(sample, rng, config.jitter, config.jitter_scale)
        return _painted(sample)

    def interpolation(self, seed: int) -> int:
        """How the sample of this seed is resized to the input's size."""
        if not self.config.random_interpolation:
            return cv2.INTER_LINEAR
        return int(np.random.default_rng((seed, 1)).choice(INTERPOLATIONS))


def resize_sample(
    sample: Sample, size: Size, interpolation: int = cv2.INTER_LINEAR, out: np.ndarray | None = None
) -> Sample:
    """The sample stretched to `size` (h, w); bilinear unless another of OpenCV's interpolations is given.

    out  uint8 `[h, w, 3]` that becomes the image
    """
    height, width = sample.image.shape[:2]
    if (height, width) == size:
        if out is None:
            return sample
        out[:] = sample.image
        return replace(sample, image=out)
    image = cv2.resize(sample.image, size[::-1], dst=out, interpolation=interpolation)
    scale = np.array([size[1] / width, size[0] / height] * 2)

    def stretch(boxes: np.ndarray) -> np.ndarray:
        return np.asarray(np.minimum(boxes * scale, np.array(size[::-1] * 2)), np.float32)

    proposals = None if sample.proposals is None else stretch(sample.proposals)
    return replace(sample, image=image, boxes=stretch(sample.boxes), proposals=proposals)


def _flip(sample: Sample) -> Sample:
    width = np.float32(sample.image.shape[1])

    def mirror(boxes: np.ndarray) -> np.ndarray:
        return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)

    proposals = None if sample.proposals is None else mirror(sample.proposals)
    return replace(sample, image=cv2.flip(sample.image, 1), boxes=mirror(sample.boxes), proposals=proposals)


def _jitter_scale(sample: Sample, rng: np.random.Generator, limits: tuple[float, float]) -> Sample:
    factor = np.exp(rng.uniform(*np.log(limits)))
    height, width = (max(round(side / factor), 1) for side in sample.image.shape[:2])
    # The window may begin anywhere inside the picture, or the picture anywhere inside the window.
    top, left = (
        round(rng.uniform(min(0, free), max(0, free)))
        for free in (sample.image.shape[0] - height, sample.image.shape[1] - width)
    )
    return _window(sample, top, left, (height, width))


def _expand(sample: Sample, rng: np.random.Generator, most: float) -> Sample:
    ratio = rng.uniform(1, most)
    size = [round(side * ratio) for side in sample.image.shape[:2]]
    top, left = (-int(rng.integers(0, size[axis] - sample.image.shape[axis] + 1)) for axis in (0, 1))
    return _window(sample, top, left, (size[0], size[1]), fill=MEAN)


def _iou_crop(sample: Sample, rng: np.random.Generator) -> Sample:
    """As Caffe's sampler: each choice has its trials, and one of the windows found is taken. Regions to ignore guide no
    window."""
    objects = sample.boxes[~sample.ignore]
    if not len(objects):
        return sample
    # in a random order the first choice that finds a window is any of those that find one, equally likely
    for number in rng.permutation(len(CROP_OVERLAPS)):
        overlap = CROP_OVERLAPS[number]
        if overlap is None:
            return sample
        if (cropped := _try_crops(sample, rng, objects, overlap)) is not None:
            return cropped
    return sample


def _try_crops(sample: Sample, rng: np.random.Generator, objects: np.ndarray, overlap: float) -> Sample | None:
    """The first of `CROP_TRIALS` windows that overlaps an object by this IoU and holds the centre of one; or None."""
    height, width = sample.image.shape[:2]
    for _ in range(CROP_TRIALS):
        scale = rng.uniform(MIN_CROP, 1)
        ratio = rng.uniform(max(0.5, scale**2), min(2, 1 / scale**2))  # so that no side passes the picture's
        w, h = max(1, round(width * scale * ratio**0.5)), max(1, round(height * scale / ratio**0.5))
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        window = np.array([left, top, left + w, top + h], np.float32)
        shared = np.minimum(objects[:, 2:], window[2:]) - np.maximum(objects[:, :2], window[:2])
        shared_area = np.prod(shared.clip(min=0), axis=1)
        iou = shared_area / (_areas(objects) + w * h - shared_area)
        if iou.max() >= overlap and (centred := _centres_inside(sample.boxes, window))[~sample.ignore].any():
            return _window(sample, top, left, (h, w), kept=centred)
    return None


def _centres_inside(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((centres > window[:2]) & (centres < window[2:])).all(axis=1))


def _resize_crop(sample: Sample, rng: np.random.Generator) -> Sample:
    """The window in pixels of the picture as it is: the resize to the input's size is the only one."""
    shape = sample.image.shape[:2]
    scale = rng.choice(DETR_SHORT_SIDES) / min(shape)
    least, most = DETR_WINDOW
    size = [round(rng.integers(least, min(round(side * scale), most), endpoint=True) / scale) for side in shape]
    height, width = (max(1, min(wanted, side)) for wanted, side in zip(size, shape, strict=True))
    top, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
    return _window(sample, top, left, (height, width), kept=np.ones(len(sample.boxes), np.bool_))


def _translate(sample: Sample, rng: np.random.Generator, most: float) -> Sample:
    height, width = sample.image.shape[:2]
    left, right = (round(width * move) for move in rng.uniform(-most, most, 2))
    top, bottom = (round(height * move) for move in rng.uniform(-most, most, 2))
    return _window(sample, top, left, (height + bottom - top, width + right - left))


def _jitter(sample: Sample, rng: np.random.Generator, most: float, limits: tuple[float, float]) -> Sample:
    height, width = sample.image.shape[:2]
    side = max(height, width)
    ratio = width * (1 + rng.uniform(-most, most)) / (height * (1 + rng.uniform(-most, most)))
    longer = side * rng.uniform(*limits)
    w, h = (longer * ratio, longer) if ratio < 1 else (longer, longer / ratio)
    sample = resize_sample(_painted(sample), (max(1, round(h)), max(1, round(w))))
    top, left = (
        -round(rng.uniform(min(0, free), max(0, free)))
        for free in (side - sample.image.shape[0], side - sample.image.shape[1])
    )
    return _window(sample, top, left, (side, side), fill=GREY)


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


def _window(
    sample: Sample,
    top: int,
    left: int,
    size: Size,
    *,
    fill: tuple[int, int, int] = FILL,
    kept: np.ndarray | None = None,
) -> Sample:
    """What a window of `size` at (top, left) shows, `fill` where it reaches over the picture.

    Objects of which less than `MIN_VISIBLE` is left are dropped; regions to ignore stay while anything is left. `kept`,
    a mask of the boxes, replaces this rule. Proposals are cut off, and stay while anything is left.
    """
    bottom, right = min(top + size[0], sample.image.shape[0]), min(left + size[1], sample.image.shape[1])
    image = sample.image[max(top, 0) : bottom, max(left, 0) : right]
    if image.shape[:2] != size:
        sample = _painted(replace(sample, image=image))
        image = sample.image
        y, x = max(-top, 0), max(-left, 0)
        below, beside = size[0] - y - image.shape[0], size[1] - x - image.shape[1]
        image = cv2.copyMakeBorder(image, y, below, x, beside, cv2.BORDER_CONSTANT, value=fill)
    boxes, visible = _seen(sample.boxes, top, left, size)
    proposals = sample.proposals
    if proposals is not None:
        proposals, part_left = _seen(proposals, top, left, size)
        proposals = proposals[part_left > 0]
    if kept is None:
        kept = (visible >= MIN_VISIBLE) | sample.ignore
    kept = kept & (visible > 0)
    return replace(
        sample,
        image=image,
        boxes=boxes[kept],
        labels=sample.labels[kept],
        ignore=sample.ignore[kept],
        proposals=proposals,
    )


def _seen(boxes: np.ndarray, top: int, left: int, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The boxes in a window, cut off at its borders, and what part of each is left."""
    moved = boxes - np.array([left, top, left, top], np.float32)
    clipped = np.clip(moved, 0, np.array(size[::-1] * 2, np.float32))
    return clipped, _areas(clipped) / _areas(moved)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


@dataclass(frozen=True, eq=False)
class _Unpainted(Sample):
    """A sample whose colours are still to change: of what a window leaves, and before it adds a canvas."""

    changes: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()

    @classmethod
    def of(cls, sample: Sample, change: Callable[[np.ndarray], np.ndarray]) -> _Unpainted:
        if isinstance(sample, cls):
            return replace(sample, changes=(*sample.changes, change))
        fields = (sample.image, sample.boxes, sample.labels, sample.ignore, sample.image_id, sample.proposals)
        return cls(*fields, (change,))


def _painted(sample: Sample) -> Sample:
    if not isinstance(sample, _Unpainted):
        return sample
    image = sample.image
    for change in sample.changes:
        image = change(image)
    return Sample(image, sample.boxes, sample.labels, sample.ignore, sample.image_id, sample.proposals)


def _photometric(probability: float) -> list[A.Compose]:
    """In the ranges of SSD: brightness 32 / 255 added, contrast and saturation half, hue 18 / 360 of the circle."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions when imported
    import albumentations as A  # takes seconds, and most recipes go without

    changes = [
        A.RandomBrightnessContrast(32 / 255, (0, 0), brightness_by_max=True, p=probability),
        A.RandomBrightnessContrast((0, 0), 0.5, p=probability),
        A.ColorJitter((1, 1), (1, 1), saturation=(0.5, 1.5), hue=(0, 0), p=probability),
        A.ColorJitter((1, 1), (1, 1), saturation=(1, 1), hue=(-0.05, 0.05), p=probability),
    ]
    return [A.Compose([change]) for change in changes]  # one for all would give them the same random numbers


def _with_albumentations(change: A.Compose, seed: int, image: np.ndarray) -> np.ndarray:
    change.set_random_seed(seed)
    changed: np.ndarray = change(image=image)["image"]
    return changed


def _hsv(
    rng: np.random.Generator, hue: float, saturation: float, exposure: float
) -> Callable[[np.ndarray], np.ndarray]:
    shift = rng.uniform(-hue, hue)
    colour, light = rng.uniform(1 / saturation, saturation), rng.uniform(1 / exposure, exposure)

    def change(image: np.ndarray) -> np.ndarray:
        if saturation > 1 or exposure > 1:
            image = _blend_with_grey(image, colour, light)
        return _shift_hue(image, shift) if hue else image

    return change


def _blend_with_grey(image: np.ndarray, saturation: float, exposure: float) -> np.ndarray:
    """0: grey, 1: as it is, more: more colourful. Exposure multiplies the value of HSV, and so every channel."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, exposure * saturation, grey, exposure * (1 - saturation), 0, dst=grey)


def _shift_hue(image: np.ndarray, part: float) -> np.ndarray:
    """The hue moved by a part of the circle, which has 256 steps, so that bytes wrap as it does."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    rows += np.tile(np.array([round(256 * part) % 256, 0, 0], np.uint8), image.shape[1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)
