"""Masks that move with the picture, each only within the window that it has.

Every result has the pixels that the same change of the whole masks `[H, W]` would give. Windows shrink to the pixels
that a cut leaves; one of which nothing is left is empty, as that of an object of which only the box is known.

Legend: N objects of one image, H x W pixels of it, h x w of the window of a mask; a size is (h, w).
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from detkit.structures import MaskCrops, Objects, Size

Masks = MaskCrops[np.ndarray]
Part = tuple[np.ndarray, tuple[int, int, int, int]]  # pixels [h, w] and their window


def masks_of(objects: Objects[np.ndarray]) -> Masks | None:
    """The masks of a sample. Raises ValueError for masks in the form of a file."""
    masks = objects.masks
    if masks is not None and not isinstance(masks, MaskCrops):
        raise ValueError(f"Sample.objects.masks: expected MaskCrops, found {type(masks).__name__}; use its crops()")
    return masks


def flip_masks(masks: Masks, size: Size, *, upside_down: bool = False) -> Masks:
    """Mirrored left to right on a picture of `size`, or top to bottom."""
    axis = 0 if upside_down else 1
    x_or_y, windows = 1 - axis, masks.windows.copy()
    windows[:, [x_or_y, x_or_y + 2]] = size[axis] - masks.windows[:, [x_or_y + 2, x_or_y]]
    return MaskCrops.of([np.flip(crop, axis) for crop in masks.crops()], windows)


def shift_masks(masks: Masks, top: int, left: int, size: Size) -> Masks:
    """As a window of `size` at (top, left) shows them."""
    moved = masks.windows - np.array([left, top, left, top])
    shown = moved.clip(0, np.array([size[1], size[0], size[1], size[0]]))
    if np.array_equal(moved, shown):
        return MaskCrops(masks.pixels, moved)
    parts = []
    for crop, (x, y, _, _), (x1, y1, x2, y2) in zip(masks.crops(), moved.tolist(), shown.tolist(), strict=True):
        parts.append(_tight(crop[y1 - y : y2 - y, x1 - x : x2 - x], x1, y1))
    return _join(parts)


def scale_masks(masks: Masks, before: Size, size: Size) -> Masks:
    """From a picture of the size `before` to one of `size`, by OpenCV's INTER_NEAREST_EXACT."""
    rows, columns = (_nearest_pixels(*lengths) for lengths in zip(before, size, strict=True))
    tops, bottoms = np.searchsorted(rows, masks.windows[:, [1, 3]].T).tolist()
    lefts, rights = np.searchsorted(columns, masks.windows[:, [0, 2]].T).tolist()
    parts = []
    for number, (crop, (x, y, _, _)) in enumerate(zip(masks.crops(), masks.windows.tolist(), strict=True)):
        top, left = tops[number], lefts[number]
        scaled = crop.take(rows[top : bottoms[number]] - y, axis=0).take(columns[left : rights[number]] - x, axis=1)
        parts.append(_tight(scaled, left, top))
    return _join(parts)


def _nearest_pixels(before: int, after: int) -> np.ndarray:
    """int64 `[after]`, rising: the pixel that each takes its value from where `before` pixels become `after`."""
    ramp = np.arange(before, dtype=np.float32)[None]
    return np.asarray(cv2.resize(ramp, (after, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0], np.int64)


def warp_masks(masks: Masks, matrix: np.ndarray, size: Size) -> Masks:
    """On a canvas of `size` after an affine map: a pixel is that of the picture in which its centre comes from.

    It is computed here in float64. OpenCV's `warpAffine` rounds the places, differently for each type of pixels, and
    would round them once more for a part of a picture.

    matrix  float64 `[2, 3]`: (x, y, 1) in the picture -> (x, y) on the canvas
    """
    inverse = np.linalg.inv(matrix[:, :2])
    start = -inverse @ matrix[:, 2]
    parts = []
    for crop, window in zip(masks.crops(), masks.windows.tolist(), strict=True):
        left, top, right, bottom = _reach(window, matrix, size)
        if not crop.size or left >= right or top >= bottom:
            parts.append(_tight(crop[:0, :0], 0, 0))
            continue
        x, y = np.arange(left, right) + 0.5, np.arange(top, bottom)[:, None] + 0.5
        columns, rows = (
            np.floor(inverse[axis, 0] * x + (inverse[axis, 1] * y + start[axis])) - window[axis] for axis in (0, 1)
        )
        pixels = crop.view(np.uint8)
        warped = cv2.remap(pixels, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_NEAREST)
        parts.append(_tight(warped.view(np.bool_), left, top))
    return _join(parts)


def _reach(window: list[int], matrix: np.ndarray, size: Size) -> tuple[int, int, int, int]:
    """The pixels of the canvas that a window may reach."""
    x1, y1, x2, y2 = window
    corners = matrix[:, :2] @ np.array([(x1, x2, x2, x1), (y1, y1, y2, y2)]) + matrix[:, 2:]
    left, top = np.floor(corners.min(axis=1)).clip(min=0)
    right, bottom = np.ceil(corners.max(axis=1)).clip(max=size[::-1])
    return int(left), int(top), int(right), int(bottom)


def cover_masks(masks: Masks, covered: np.ndarray) -> Masks:
    """What is not covered, bool `[H, W]`."""
    return _join(
        _tight(crop & ~covered[y1:y2, x1:x2], x1, y1)
        for crop, (x1, y1, x2, y2) in zip(masks.crops(), masks.windows.tolist(), strict=True)
    )


def any_mask(masks: Masks, size: Size) -> np.ndarray:
    """bool `[H, W]`: the pixels that any object has on a picture of `size`."""
    pixels = np.zeros(size, np.bool_)
    for crop, (x1, y1, x2, y2) in zip(masks.crops(), masks.windows.tolist(), strict=True):
        pixels[y1:y2, x1:x2] |= crop
    return pixels


def count_pixels(masks: Masks) -> np.ndarray:
    """int64 `[N]`: how many pixels each object has."""
    return np.array([np.count_nonzero(crop) for crop in masks.crops()], np.int64)


def _tight(crop: np.ndarray, left: int, top: int) -> Part:
    """The part of a crop `[h, w]` at (top, left) that has all its pixels; nothing at (0, 0) if there is none."""
    x, y, width, height = cv2.boundingRect(crop.view(np.uint8)) if crop.size else (0, 0, 0, 0)
    if not width:
        return crop[:0, :0], (0, 0, 0, 0)
    return crop[y : y + height, x : x + width], (left + x, top + y, left + x + width, top + y + height)


def _join(parts: Iterable[Part]) -> Masks:
    known = list(parts)
    return MaskCrops.of([crop for crop, _ in known], [window for _, window in known])
