"""Changes of the size in which objects appear: the recipes of YOLOv1, v2 and v3, and large-scale jitter."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from detkit.data.transforms.entry import Draws, Transform
from detkit.data.transforms.geometry import Window, resize_sample, take_window, warp
from detkit.structures import Sample, Size

GREY = (127, 127, 127)  # darknet's canvas
Limits = tuple[float, float]  # (low, high) of a scale


def check_limits(limits: Limits) -> Limits:
    """Raises ValueError unless 0.1 <= low <= high <= 10."""
    if not 0.1 <= limits[0] <= limits[1] <= 10:
        raise ValueError(f"expected 0.1 <= low <= high <= 10, got {list(limits)}")
    return limits


class ScaleJitterConfig(Transform):
    """Objects appear larger by a factor, log-uniform within `scale` (low, high).

    Above 1 the image is a random window of the picture, below 1 the picture lies somewhere on a larger grey canvas.
    """

    name: Literal["scale_jitter"] = "scale_jitter"
    scale: Limits = (0.5, 2.0)

    _checked = field_validator("scale")(check_limits)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        factor = np.exp(draws.rng.uniform(*np.log(self.scale)))
        height, width = (max(round(side / factor), 1) for side in sample.size)
        # The window may begin anywhere inside the picture, or the picture anywhere inside the window.
        top, left = (
            round(draws.rng.uniform(min(0, free), max(0, free)))
            for free in (sample.size[0] - height, sample.size[1] - width)
        )
        return take_window(sample, Window(top, left, (height, width)))


class TranslateConfig(Transform):
    """YOLOv1: each border of the picture moves in or out by up to `max_part` of its side."""

    name: Literal["translate"] = "translate"
    probability: float | None = Field(1.0, ge=0, le=1)
    max_part: float = Field(0.2, ge=0, lt=0.5)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        height, width = sample.size
        left, right = (round(width * move) for move in draws.rng.uniform(-self.max_part, self.max_part, 2))
        top, bottom = (round(height * move) for move in draws.rng.uniform(-self.max_part, self.max_part, 2))
        return take_window(sample, Window(top, left, (height + bottom - top, width + right - left)))


class JitterConfig(Transform):
    """YOLOv2, v3: the picture, with other proportions and another size, somewhere on a grey square.

    max_change  each side changes by up to this part
    scale       (low, high) of the picture's longer side to the square's, uniform
    """

    name: Literal["jitter"] = "jitter"
    probability: float | None = Field(1.0, ge=0, le=1)
    max_change: float = Field(0.3, ge=0, lt=1)
    scale: Limits = (0.25, 2.0)

    _checked = field_validator("scale")(check_limits)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        size, square = self._draw(sample.size[0], sample.size[1], draws.rng)
        return take_window(resize_sample(sample, size), square)

    def _draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[Size, Window]:
        """The size to which the picture is resized first, and the square on which it then lies."""
        side, change = max(height, width), self.max_change
        ratio = width * (1 + rng.uniform(-change, change)) / (height * (1 + rng.uniform(-change, change)))
        longer = side * rng.uniform(*self.scale)
        w, h = (longer * ratio, longer) if ratio < 1 else (longer, longer / ratio)
        size = (max(1, round(h)), max(1, round(w)))
        top, left = (-round(rng.uniform(min(0, free), max(0, free))) for free in (side - size[0], side - size[1]))
        return size, Window(top, left, (side, side), fill=GREY)


class LargeScaleJitterConfig(Transform):
    """Ghiasi et al. 2021, section 3: the picture at a tenth to twice the size that fits a square, cut or padded to it.

    scale  (low, high), uniform
    size   px, side of the square; the detector's input size, so that nothing is resized twice
    """

    name: Literal["large_scale_jitter"] = "large_scale_jitter"
    scale: Limits = (0.1, 2.0)
    size: int = Field(1024, ge=1, le=8192)

    _checked = field_validator("scale")(check_limits)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        return place_scaled(sample, (self.size, self.size), self.scale, draws.rng)


def place_scaled(sample: Sample, size: Size, limits: Limits, rng: np.random.Generator) -> Sample:
    """The picture on a canvas of `size` (h, w), a factor within `limits` (uniform) larger than what just fits.

    Where it is larger than the canvas, a random part of it is seen; where it is smaller, grey follows at the right and
    at the bottom.
    """
    height, width = sample.size
    scale = rng.uniform(*limits) * min(size[0] / height, size[1] / width)
    free = np.array([size[1] - scale * width, size[0] - scale * height])
    offset = rng.uniform(np.minimum(free, 0), 0)
    return warp(sample, np.column_stack([np.eye(2) * scale, offset]), size)
