"""The augmentation of a training image: its settings, and the order in which the changes come."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from pydantic import Field, field_validator

from detkit.config import Config
from detkit.data.transforms import windows
from detkit.data.transforms.colour import PendingColours, apply_albumentations, hsv, photometric
from detkit.data.transforms.geometry import ImageChange, flip, resize_sample, take_window
from detkit.structures import Sample

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)


class AugmentConfig(Config):
    """Changes that may happen to a training image, in this order. All are off except the flip.

    horizontal_flip       probability
    photometric           SSD: probability of each of four changes: brightness, contrast, saturation, hue
    hsv                   darknet: (hue, saturation, exposure): hue moves by up to that part of the circle, the others
                          are multiplied by up to their factor or its inverse (saturation blends with grey here)
    expand                SSD: with probability 1/2 the picture lies on a mean-coloured canvas up to this many times
                          larger; 1: never. The paper has 4
    iou_crop              SSD's batch sampler (section 2.2): a window, .3 to 1 of the picture in the root of its area
                          and of half to double its aspect, that overlaps an object by a drawn minimum IoU; objects stay
                          if their centre is inside
    resize_crop           DETR (section 4): probability of a window, 384 to 600 px a side of the picture at a shorter
                          side of 400, 500 or 600 px; objects stay of which any part is left
    scale_jitter          (low, high): objects appear this many times larger (log-uniform). Above 1 the image is a
                          random window of the picture, below 1 the picture lies somewhere on a larger grey canvas
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
        self._photometric = photometric(config.photometric) if config.photometric else []

    def __call__(self, sample: Sample, seed: int) -> Sample:
        config, rng = self.config, np.random.default_rng(seed)
        if rng.random() < config.horizontal_flip:
            sample = flip(sample)
        colours = PendingColours(self._draw_colours(rng))
        take = partial(take_window, change_colours=colours.apply)
        if config.expand > 1 and rng.random() < 0.5:
            sample = take(sample, windows.expand(sample, rng, config.expand))
        if config.iou_crop and (window := windows.iou_crop(sample, rng)) is not None:
            sample = take(sample, window)
        if config.resize_crop and rng.random() < config.resize_crop:
            sample = take(sample, windows.resize_crop(sample, rng))
        if config.scale_jitter is not None:
            sample = take(sample, windows.scale_jitter(sample, rng, config.scale_jitter))
        if rng.random() < config.crop:
            sample = take(sample, windows.crop_around_objects(sample, rng))
        if config.translate:
            sample = take(sample, windows.translate(sample, rng, config.translate))
        if config.jitter:
            size, square = windows.jitter(sample, rng, config.jitter, config.jitter_scale)
            sample = resize_sample(replace(sample, image=colours.apply(sample.image)), size)
            sample = take(sample, square)
        return replace(sample, image=colours.apply(sample.image))

    def _draw_colours(self, rng: np.random.Generator) -> list[ImageChange]:
        changes: list[ImageChange] = [
            partial(apply_albumentations, change, int(rng.integers(2**31))) for change in self._photometric
        ]
        return changes + ([hsv(rng, *self.config.hsv)] if self.config.hsv else [])

    def interpolation(self, seed: int) -> int:
        """OpenCV's interpolation with which the sample of this seed is resized to the input's size."""
        if not self.config.random_interpolation:
            return cv2.INTER_LINEAR
        return int(np.random.default_rng((seed, 1)).choice(INTERPOLATIONS))
