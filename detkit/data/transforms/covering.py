"""Parts of a picture covered by something else: copy-paste and cutout."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, field_validator

from detkit.data.transforms.colour import apply_colours
from detkit.data.transforms.entry import Draws, Transform
from detkit.data.transforms.geometry import FILL, MIN_VISIBLE, box_areas
from detkit.data.transforms.masks import any_mask, count_pixels, cover_masks, masks_of
from detkit.data.transforms.mixing import draw_other, join
from detkit.data.transforms.scales import Limits, check_limits
from detkit.structures import Column, Objects, Sample, Size


class CopyPasteConfig(Transform):
    """Ghiasi et al. 2021, section 3: objects of another picture pasted over this one.

    The other picture is mirrored with probability 1/2 and jittered in scale first. Ignored objects are not chosen. In
    data with masks their pixels are pasted, and what they cover is taken from the masks and boxes beneath; keypoints
    there are hidden, and an object of which only the box is known is not chosen. In data without masks the boxes are
    pasted as rectangles; another object of which a rectangle shows a quarter is then pasted whole as well, so that
    nothing is seen without its label. Proposals of the other picture come along if half of one lies in the box of an
    object that is pasted.

    object_probability  that an object is chosen
    scale               (low, high) of the other picture to what just fits, uniform
    max_covered         objects that are covered by more than this part are dropped
    """

    mixes: ClassVar[bool] = True
    uses: ClassVar[tuple[Column, ...]] = ("masks",)

    name: Literal["copy_paste"] = "copy_paste"
    probability: float | None = Field(1.0, ge=0, le=1)
    object_probability: float = Field(0.5, ge=0, le=1)
    scale: Limits = (0.1, 2.0)
    max_covered: float = Field(0.75, ge=0, le=1)

    _checked = field_validator("scale")(check_limits)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        sample = apply_colours(sample)
        other = draw_other(sample, self.scale, draws)
        chosen = (draws.rng.random(len(other.objects)) < self.object_probability) & ~other.objects.ignore
        masks = masks_of(other.objects)
        chosen = _take_along(other.objects.boxes, chosen) if masks is None else chosen & (count_pixels(masks) > 0)
        objects, proposals = other.objects.take(chosen), other.proposals
        if proposals is not None:
            proposals = proposals[_parts_inside(proposals, objects.boxes).max(axis=1, initial=0) >= 0.5]
        height, width = sample.size
        pixels = _pixels(objects, (height, width))
        image = cv2.copyTo(other.image, pixels.astype(np.uint8), sample.image.copy())
        pasted = replace(other, objects=objects, proposals=proposals)
        return join(sample, image, [_cover(sample, pixels, self.max_covered), pasted])


def _take_along(boxes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """bool `[N]`: `chosen`, and every box of which one of those chosen shows at least `MIN_VISIBLE`."""
    shown = _parts_inside(boxes, boxes) >= MIN_VISIBLE
    while not np.array_equal(chosen, more := chosen | (shown & chosen).any(axis=1)):
        chosen = more
    return chosen


def _parts_inside(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """float `[N, M]`: the part of each of N boxes that lies in each of M others."""
    shared = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:]) - np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    return np.asarray(shared.clip(min=0).prod(axis=2) / box_areas(boxes1)[:, None])


def _pixels(objects: Objects[np.ndarray], size: Size) -> np.ndarray:
    """bool `[H, W]`: the pixels of the masks, or all that the boxes touch."""
    if (masks := masks_of(objects)) is not None:
        return any_mask(masks, size)
    pixels = np.zeros(size, np.bool_)
    for x1, y1, x2, y2 in _touched(objects.boxes):
        pixels[y1:y2, x1:x2] = True
    return pixels


def _touched(boxes: np.ndarray) -> np.ndarray:
    """int `[N, 4]`: the pixels that a box touches, the ends not included."""
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(int)


def _covered_parts(boxes: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """float `[N]`: the part of the pixels of each box that is covered."""
    sums = cv2.integral(covered.astype(np.uint8))  # of everything above and to the left
    x1, y1, x2, y2 = _touched(boxes).T
    return np.asarray((sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]) / ((x2 - x1) * (y2 - y1)))


def _cover(sample: Sample, covered: np.ndarray, max_covered: float) -> Sample:
    """Without the objects of which more than `max_covered` lies beneath `covered`, bool `[H, W]`.

    Masks lose what is covered; a box whose mask loses something becomes the one around the rest. Without a mask it is
    the box that is covered, and stays as it is.
    """
    objects = _hide_points(sample.objects, covered)
    keep = _covered_parts(objects.boxes, covered) <= max_covered
    if (masks := masks_of(objects)) is None:
        return replace(sample, objects=objects.take(keep))
    rest = cover_masks(masks, covered)
    before, after = count_pixels(masks), count_pixels(rest)
    keep = np.where(before > 0, (after >= (1 - max_covered) * before) & (after > 0), keep)
    boxes = np.where((after < before)[:, None], rest.windows, objects.boxes).astype(np.float32)
    area = None if objects.area is None else objects.area * np.where(before > 0, after / before.clip(min=1), 1)
    area = None if area is None else area.astype(np.float32)
    return replace(sample, objects=replace(objects, boxes=boxes, masks=rest, area=area).take(keep))


def _hide_points(objects: Objects[np.ndarray], covered: np.ndarray) -> Objects[np.ndarray]:
    """Visible keypoints beneath `covered` are hidden ones."""
    if objects.keypoints is None:
        return objects
    keypoints = objects.keypoints.copy()
    height, width = covered.shape
    columns, rows = keypoints[..., 0].astype(int).clip(0, width - 1), keypoints[..., 1].astype(int).clip(0, height - 1)
    keypoints[covered[rows, columns] & (keypoints[..., 2] == 2), 2] = 1
    return replace(objects, keypoints=keypoints)


class CutoutConfig(Transform):
    """DeVries and Taylor 2017: grey squares hide parts of the picture. Each lies anywhere, and may reach over a border.

    size         side of a square, as a part of the picture's shorter side
    holes        how many
    max_covered  objects that are hidden by more than this part are dropped; boxes of the others stay whole, and their
                 masks lose what is hidden
    """

    name: Literal["cutout"] = "cutout"
    probability: float | None = Field(1.0, ge=0, le=1)
    size: float = Field(0.25, gt=0, le=1)
    holes: int = Field(1, ge=1)
    max_covered: float = Field(0.75, ge=0, le=1)

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        sample = apply_colours(sample)
        height, width = sample.size
        side = max(1, round(self.size * min(height, width)))
        covered = np.zeros((height, width), np.bool_)
        for _ in range(self.holes):
            top, left = (int(draws.rng.integers(extent)) - side // 2 for extent in (height, width))
            covered[max(top, 0) : top + side, max(left, 0) : left + side] = True
        image = sample.image.copy()
        image[..., covered, :] = FILL
        objects = _hide_points(sample.objects, covered)
        if (masks := masks_of(objects)) is not None:
            objects = replace(objects, masks=cover_masks(masks, covered))
        keep = _covered_parts(objects.boxes, covered) <= self.max_covered
        return replace(sample, image=image, objects=objects.take(keep))
