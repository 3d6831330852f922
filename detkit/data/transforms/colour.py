"""Changes of colour, none of which moves a pixel. The only file that imports albumentations."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from pydantic import Field

from detkit.data.transforms.entry import Draws, Transform
from detkit.structures import Sample

if TYPE_CHECKING:
    import albumentations as A

ImageChange = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class _Uncoloured(Sample):
    """A sample of which some changes of colour still wait until windows have cut the picture.

    No change depends on where a pixel lies, so the result is the same, to a rounding, and costs less. What mixes pixels
    or adds a canvas calls `apply_colours` first.
    """

    changes: tuple[ImageChange, ...] = ()


def change_colours(sample: Sample, *changes: ImageChange) -> Sample:
    """The sample with these changes of colour, which may still wait."""
    waiting = sample.changes if isinstance(sample, _Uncoloured) else ()
    return _Uncoloured(**_columns(sample), changes=waiting + changes)


def apply_colours(sample: Sample) -> Sample:
    """The sample with a picture on which no change of colour waits."""
    if not isinstance(sample, _Uncoloured):
        return sample
    waiting = sample.changes

    def change(image: np.ndarray) -> np.ndarray:
        for each in waiting:
            image = each(image)
        return image

    return Sample(**{**_columns(sample), "image": sample.map_frames(change)})


def _columns(sample: Sample) -> dict[str, Any]:
    return {known.name: getattr(sample, known.name) for known in fields(Sample)}


class PhotometricConfig(Transform):
    """SSD's four changes: brightness by 32 / 255, contrast and saturation by half, hue by 18 / 360 of the circle.

    each_probability  of each of the four (SSD: 1/2)
    """

    name: Literal["photometric"] = "photometric"
    each_probability: float = Field(0.5, ge=0, le=1)

    def prepare(self) -> None:
        _photometric_changes(self.each_probability)  # albumentations is imported once, not by every worker

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        return change_colours(
            sample,
            *(
                partial(_apply_albumentations, change, int(draws.rng.integers(2**31)))
                for change in _photometric_changes(self.each_probability)
            ),
        )


@cache
def _photometric_changes(probability: float) -> list[A.Compose]:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions when imported
    import albumentations as A  # takes seconds, and most recipes go without

    changes = [
        A.RandomBrightnessContrast(32 / 255, (0, 0), brightness_by_max=True, p=probability),
        A.RandomBrightnessContrast((0, 0), 0.5, p=probability),
        A.ColorJitter((1, 1), (1, 1), saturation=(0.5, 1.5), hue=(0, 0), p=probability),
        A.ColorJitter((1, 1), (1, 1), saturation=(1, 1), hue=(-0.05, 0.05), p=probability),
    ]
    return [A.Compose([change]) for change in changes]  # one for all would give them the same random numbers


def _apply_albumentations(change: A.Compose, seed: int, image: np.ndarray) -> np.ndarray:
    """The image changed as `change` draws it from this seed."""
    change.set_random_seed(seed)
    changed: np.ndarray = change(image=image)["image"]
    return changed


class HSVConfig(Transform):
    """darknet's change of colour: the hue moves, saturation and exposure are multiplied by a factor or its inverse.

    hue         largest move, as a part of the circle
    saturation  largest factor; here it blends with grey
    exposure    largest factor
    """

    name: Literal["hsv"] = "hsv"
    hue: float = Field(0.1, ge=0, le=0.5)
    saturation: float = Field(1.5, ge=1)
    exposure: float = Field(1.5, ge=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        shift = draws.rng.uniform(-self.hue, self.hue)
        colour, light = (draws.rng.uniform(1 / factor, factor) for factor in (self.saturation, self.exposure))

        def change(image: np.ndarray) -> np.ndarray:
            if self.saturation > 1 or self.exposure > 1:
                image = _blend_with_grey(image, colour, light)
            return _shift_hue(image, shift) if self.hue else image

        return change_colours(sample, change)


def _blend_with_grey(image: np.ndarray, saturation: float, exposure: float) -> np.ndarray:
    """Saturation 0 is grey, 1 leaves the colours, more is stronger. Exposure multiplies HSV's value: every channel."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, exposure * saturation, grey, exposure * (1 - saturation), 0, dst=grey)


def _shift_hue(image: np.ndarray, part: float) -> np.ndarray:
    """The hue moved by a part of the circle, which has 256 steps, so that bytes wrap around as the hue does."""
    hsv_image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv_image.reshape(len(hsv_image), -1)
    rows += np.tile(np.array([round(256 * part) % 256, 0, 0], np.uint8), image.shape[1])
    return cv2.cvtColor(hsv_image, cv2.COLOR_HSV2RGB_FULL, dst=hsv_image)


class HSVShiftConfig(Transform):
    """YOLOX's change of colour: hue, saturation and value each move with probability 1/2, in HSV of 8 bits.

    hue                largest move, as a part of the circle
    saturation, value  largest moves, as parts of their range, at whose ends they stop
    """

    name: Literal["hsv_shift"] = "hsv_shift"
    hue: float = Field(5 / 180, ge=0, le=0.5)
    saturation: float = Field(30 / 255, ge=0, le=1)
    value: float = Field(30 / 255, ge=0, le=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        moves = draws.rng.uniform(-1, 1, 3) * draws.rng.integers(0, 2, 3)
        hue, saturation, value = np.rint(moves * (180 * self.hue, 255 * self.saturation, 255 * self.value)).astype(int)
        steps = np.arange(256)
        table = [(steps + hue) % 180, np.clip(steps + saturation, 0, 255), np.clip(steps + value, 0, 255)]
        lookup = np.stack(table, axis=1).astype(np.uint8)[None]

        def change(image: np.ndarray) -> np.ndarray:
            hsv_image = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), lookup)  # OpenCV's hue has 180 steps
            return cv2.cvtColor(hsv_image, cv2.COLOR_HSV2RGB)

        return change_colours(sample, change)
