"""Samples drawn by hand for the tests of augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from detkit.data.transforms import Augment, parse_augment
from detkit.structures import MaskCrops, Objects, Sample

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
BOXES = np.array([(10, 20, 40, 50), (60, 30, 110, 90), (120, 5, 150, 25)], np.float32)


def only(name: str, **settings: Any) -> Augment:
    """One entry alone, which is not mirrored."""
    return Augment(parse_augment([{"name": name, **settings}]), epochs=100)


def three_rectangles() -> Sample:
    """In plain colours on grey, the labels 5, 6, 7, the last one to be ignored."""
    image = np.full((100, 160, 3), 60, np.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES.astype(int), COLOURS, strict=True):
        image[y1:y2, x1:x2] = colour
    return Sample(image, Objects(BOXES.copy(), np.array([5, 6, 7]), np.array([False, False, True])), "id")


def with_masks_and_keypoints(sample: Sample) -> Sample:
    """Each box is its mask too; its points are the first and the last corner, and one that is not labelled."""
    height, width = sample.image.shape[:2]
    boxes = sample.objects.boxes
    bitmaps = np.zeros((len(boxes), height, width), np.bool_)
    keypoints = np.zeros((len(boxes), 3, 3), np.float32)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        bitmaps[number, y1:y2, x1:x2] = True
        keypoints[number, :2] = (x1, y1, 2), (x2, y2, 1)
    return replace(sample, objects=replace(sample.objects, masks=crops_of(bitmaps), keypoints=keypoints))


def crops_of(bitmaps: np.ndarray) -> MaskCrops[np.ndarray]:
    """Masks `[N, H, W]` in the smallest windows; (0, 0, 0, 0) for one without a pixel."""
    windows = [framed(bitmap) if bitmap.any() else (0, 0, 0, 0) for bitmap in bitmaps]
    crops = [bitmap[y1:y2, x1:x2] for bitmap, (x1, y1, x2, y2) in zip(bitmaps, windows, strict=True)]
    return MaskCrops.of(crops, windows)


def dense_masks(sample: Sample) -> np.ndarray:
    """bool `[N, H, W]`."""
    assert isinstance(sample.objects.masks, MaskCrops)
    return sample.objects.masks.dense((sample.image.shape[0], sample.image.shape[1]))


def with_boxes(
    image: np.ndarray, *boxes: tuple[float, float, float, float], proposals: np.ndarray | None = None
) -> Sample:
    """Objects with the labels 0, 1, ..."""
    return Sample(image, Objects(np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes))), 0, proposals)


def framed(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The box around the true pixels of `[H, W]`."""
    rows, columns = np.nonzero(pixels)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def pixels_of(sample: Sample, label: int) -> np.ndarray:
    """bool `[H, W]`: the pixels that have the colour of `label`, of those of `three_rectangles`."""
    return np.asarray((sample.image == COLOURS[label - 5]).all(axis=2))


def assert_same(one: Sample, two: Sample) -> None:
    np.testing.assert_array_equal(one.image, two.image)
    assert one.objects.columns().keys() == two.objects.columns().keys()
    for name, column in one.objects.columns().items():
        other = two.objects.columns()[name]
        if isinstance(column, MaskCrops):
            np.testing.assert_array_equal(column.windows, other.windows)
            column, other = column.pixels, other.pixels
        np.testing.assert_array_equal(column, other)
    assert one.image_id == two.image_id
