"""Changes of colour, none of which moves a pixel. The only file that imports albumentations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import cv2
import numpy as np

from detkit.data.transforms.geometry import ImageChange

if TYPE_CHECKING:
    import albumentations as A


class PendingColours:
    """Changes of colour that wait until windows have cut the picture.

    No change depends on where a pixel lies, so the result is the same and costs less. `apply` is called before a canvas
    is added, which so keeps its colour.
    """

    def __init__(self, changes: list[ImageChange]) -> None:
        self._changes = changes

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The image with all changes. They are done then: a second call changes nothing."""
        changes, self._changes = self._changes, []
        for change in changes:
            image = change(image)
        return image


def photometric(probability: float) -> list[A.Compose]:
    """SSD's four changes: brightness by 32 / 255, contrast and saturation by half, hue by 18 / 360 of the circle."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions when imported
    import albumentations as A  # takes seconds, and most recipes go without

    changes = [
        A.RandomBrightnessContrast(32 / 255, (0, 0), brightness_by_max=True, p=probability),
        A.RandomBrightnessContrast((0, 0), 0.5, p=probability),
        A.ColorJitter((1, 1), (1, 1), saturation=(0.5, 1.5), hue=(0, 0), p=probability),
        A.ColorJitter((1, 1), (1, 1), saturation=(1, 1), hue=(-0.05, 0.05), p=probability),
    ]
    return [A.Compose([change]) for change in changes]  # one for all would give them the same random numbers


def apply_albumentations(change: A.Compose, seed: int, image: np.ndarray) -> np.ndarray:
    """The image changed as `change` draws it from this seed."""
    change.set_random_seed(seed)
    changed: np.ndarray = change(image=image)["image"]
    return changed


def hsv(rng: np.random.Generator, hue: float, saturation: float, exposure: float) -> ImageChange:
    """darknet's change of colour, drawn now; see `AugmentConfig.hsv` for the ranges."""
    shift = rng.uniform(-hue, hue)
    colour, light = rng.uniform(1 / saturation, saturation), rng.uniform(1 / exposure, exposure)

    def change(image: np.ndarray) -> np.ndarray:
        if saturation > 1 or exposure > 1:
            image = _blend_with_grey(image, colour, light)
        return _shift_hue(image, shift) if hue else image

    return change


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
