"""Several pictures in one: mosaic and mixup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, field_validator

from detkit.data.transforms.colour import apply_colours
from detkit.data.transforms.entry import Draws, Transform
from detkit.data.transforms.geometry import FILL, Window, flip, on_canvas, resize_sample, take_window
from detkit.data.transforms.scales import Limits, check_limits, place_scaled
from detkit.structures import Objects, Sample


def join(sample: Sample, image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    """`sample` with another picture, and with the objects and proposals of all `parts`."""
    proposals = [part.proposals for part in parts if part.proposals is not None]
    return replace(
        sample,
        image=image,
        objects=Objects.cat([part.objects for part in parts]),
        proposals=np.concatenate(proposals) if proposals else None,
    )


class MosaicConfig(Transform):
    """4 or 9 pictures side by side (YOLOv4; as in YOLOX), of which `random_affine` then shows a part.

    Each is scaled to fit a square and lies in its cell as near to the middle of the canvas as it can. The lines between
    the cells move by up to half a square either way, those of 9 pictures by a quarter; what reaches over them is cut.

    size  px, side of the square, best the detector's input size; the canvas is `grid` times as high and wide
    grid  2 or 3: cells in a row and in a column
    """

    mixes: ClassVar[bool] = True

    name: Literal["mosaic"] = "mosaic"
    probability: float | None = Field(1.0, ge=0, le=1)
    size: int = Field(640, ge=2, le=4096)
    grid: Literal[2, 3] = 2

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        pictures = draws.others(self.grid**2 - 1)
        pictures.insert(len(pictures) // 2, sample)
        rows, columns = self._draw_lines(draws.rng), self._draw_lines(draws.rng)
        side = self.grid * self.size
        canvas, parts = np.full((side, side, 3), FILL[0], np.uint8), []
        for number, picture in enumerate(pictures):
            picture = self._fit(picture)
            height, width = picture.size
            row, column = divmod(number, self.grid)
            (top, above), (bottom, below) = self._place(height, rows, row)
            (left, before), (right, after) = self._place(width, columns, column)
            part = take_window(picture, Window(above, before, (below - above, after - before)))
            canvas[top:bottom, left:right] = part.image
            parts.append(on_canvas(part, top, left, (side, side)))
        return join(apply_colours(sample), canvas, parts)

    def _draw_lines(self, rng: np.random.Generator) -> list[int]:
        """px: the borders of the cells along one axis, with both ends of the canvas."""
        reach = 0.5 / (self.grid - 1)
        inner = [round(self.size * (line + rng.uniform(-reach, reach))) for line in range(1, self.grid)]
        return [0, *inner, self.grid * self.size]

    def _fit(self, picture: Sample) -> Sample:
        height, width = picture.size
        scale = self.size / max(height, width)
        return resize_sample(picture, (max(1, round(scale * height)), max(1, round(scale * width))))

    def _place(self, extent: int, lines: Sequence[int], cell: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where a picture of this extent begins and ends along one axis: (on the canvas, in the picture) for each."""
        start, end = lines[cell], lines[cell + 1]
        free = end - start - extent
        begin = start + (free if cell == 0 else 0 if cell == self.grid - 1 else free // 2)
        first, last = max(begin, start), min(begin + extent, end)
        return (first, first - begin), (last, last - begin)


class MixUpConfig(Transform):
    """YOLOX: another picture shines through, and the objects of both count alike.

    The other one is mirrored with probability 1/2, scaled by a factor of `scale` (low, high; uniform) from what just
    fits, and cut or padded with grey to the size of the picture.

    beta  the picture's own share of every pixel is drawn from Beta(beta, beta) (Zhang et al. 2018); null: one half
    """

    mixes: ClassVar[bool] = True

    name: Literal["mixup"] = "mixup"
    probability: float | None = Field(1.0, ge=0, le=1)
    scale: Limits = (0.5, 1.5)
    beta: float | None = Field(None, gt=0)

    _checked = field_validator("scale")(check_limits)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        sample = apply_colours(sample)
        other = draw_other(sample, self.scale, draws)
        share = 0.5 if self.beta is None else draws.rng.beta(self.beta, self.beta)
        image = cv2.addWeighted(sample.image, share, other.image, 1 - share, 0)
        return join(sample, image, [sample, other])


def draw_other(sample: Sample, scale: Limits, draws: Draws) -> Sample:
    """Another sample as large as `sample`, mirrored with probability 1/2 and scaled as `place_scaled` does."""
    (other,) = draws.others(1)
    if draws.rng.random() < 0.5:
        other = flip(other, draws.flip_pairs)
    height, width = sample.size
    return place_scaled(other, (height, width), scale, draws.rng)
