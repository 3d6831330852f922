"""The mirrors, and the random affine map that follows a mosaic."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from detkit.data.transforms.entry import Draws, Transform
from detkit.data.transforms.geometry import flip, warp
from detkit.data.transforms.scales import Limits, check_limits
from detkit.structures import Sample


class HorizontalFlipConfig(Transform):
    """The picture mirrored left to right."""

    name: Literal["horizontal_flip"] = "horizontal_flip"
    probability: float | None = Field(0.5, ge=0, le=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        return flip(sample, draws.flip_pairs)


class VerticalFlipConfig(Transform):
    """The picture mirrored top to bottom: for pictures without an up, as those from above or through a microscope."""

    name: Literal["vertical_flip"] = "vertical_flip"
    probability: float | None = Field(0.5, ge=0, le=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        return flip(sample, draws.flip_pairs, upside_down=True)


class RandomAffineConfig(Transform):
    """YOLOX: the picture turned, scaled and sheared about its centre, which then lies near the centre of a square.

    degrees    largest turn, either way
    scale      (low, high), uniform
    shear      degrees: largest slant of each axis
    translate  largest distance of the centres along each axis, as a part of the square's side
    size       px, side of the square; null: the result is as high and wide as the picture
    """

    name: Literal["random_affine"] = "random_affine"
    degrees: float = Field(10.0, ge=0, le=180)
    scale: Limits = (0.5, 1.5)
    shear: float = Field(2.0, ge=0, lt=90)
    translate: float = Field(0.1, ge=0, le=1)
    size: int | None = Field(None, ge=1, le=8192)

    _checked = field_validator("scale")(check_limits)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        rng, (height, width) = draws.rng, sample.size
        size = (height, width) if self.size is None else (self.size, self.size)
        angle = np.radians(rng.uniform(-self.degrees, self.degrees))
        scale = rng.uniform(*self.scale)
        slant_x, slant_y = np.tan(np.radians(rng.uniform(-self.shear, self.shear, 2)))
        turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        linear = np.array([[1, slant_x], [slant_y, 1]]) @ turn
        centre = (0.5 + rng.uniform(-self.translate, self.translate, 2)) * size[::-1]
        offset = centre - linear @ np.array([width / 2, height / 2])
        return warp(sample, np.column_stack([linear, offset]), size)
