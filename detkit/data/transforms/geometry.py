"""The primitives that move a picture and its objects together: flip, window, warp, resize. Nothing else moves a box.

Legend: N objects of one image, P keypoints of an object; boxes are float32 `[N, 4]` xyxy in pixels of the picture, and
points x, y in the last axis. A pixel (row, column) covers [column, column + 1] x [row, row + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from detkit.data.transforms.colour import apply_colours
from detkit.data.transforms.masks import Masks, flip_masks, masks_of, scale_masks, shift_masks, warp_masks
from detkit.structures import Sample, Size

Colour = tuple[int, int, int]  # RGB
Move = Callable[[np.ndarray], np.ndarray]
MoveMasks = Callable[[Masks], Masks]

MIN_VISIBLE = 0.25  # a window drops an object if it shows less than this part of its box
MIN_SIDE = 1.0  # px: a warp drops an object that becomes narrower or lower
FILL = (114, 114, 114)  # grey of the canvas around a picture that was scaled down
CORNERS = ((0, 1), (2, 1), (2, 3), (0, 3))  # columns of a box


@dataclass(frozen=True, eq=False)
class Window:
    """A rectangle of the picture, which may reach over its borders.

    top, left  of its corner, in pixels of the picture; may be negative
    size       (h, w)
    fill       colour where there is no picture
    keep       bool `[N]`: objects that stay if the window shows any part of them. None: those stay of which at least
               `MIN_VISIBLE` is visible, and ignored ones of which any part is
    """

    top: int
    left: int
    size: Size
    fill: Colour = FILL
    keep: np.ndarray | None = None


def box_areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def _move_objects(
    sample: Sample, size: Size, points: Move, masks: MoveMasks, area_factor: float | None = None
) -> tuple[Sample, np.ndarray]:
    """The sample with its objects and proposals moved and cut off at the borders of `size`, and the visible part of
    each box, float `[N]`. The picture stays, and so do objects and proposals of which nothing is visible.

    A box becomes the one around its moved corners. A keypoint outside is not labelled any more. A mask of which nothing
    is left has an empty window; a cut box stays the cut box, and does not shrink to its mask. An object that is outside
    in a frame of a clip is ignored where its boxes in all of them, `tubes`, are asked for.

    points       moves points `[..., 2]`
    masks        moves masks to a picture of `size`
    area_factor  by which the motion changes an area; None: by as much as that of the box, because boxes stay boxes
    """
    objects = sample.objects
    uncut = _frame(points, objects.boxes)
    columns = {**objects.columns(), "boxes": _cut(uncut, size)}
    areas = box_areas(columns["boxes"])
    if objects.area is not None:
        before = box_areas(objects.boxes) if area_factor is None else box_areas(uncut) / area_factor
        columns["area"] = (objects.area * areas / before).astype(np.float32)
    if (before_masks := masks_of(objects)) is not None:
        columns["masks"] = masks(before_masks)
    if objects.tubes is not None:
        tubes = _cut(_frame(points, objects.tubes.reshape(-1, 4)), size)
        in_all_frames = (box_areas(tubes) > 0).reshape(objects.tubes.shape[:2]).all(axis=1)
        columns |= {"tubes": tubes.reshape(objects.tubes.shape), "ignore": objects.ignore | ~in_all_frames}
    if objects.keypoints is not None:
        columns["keypoints"] = _move_keypoints(objects.keypoints, points, size)
    proposals = None if sample.proposals is None else _cut(_frame(points, sample.proposals), size)
    whole = box_areas(uncut)
    visible = np.divide(areas, whole, out=np.zeros_like(areas), where=whole > 0)
    return replace(sample, objects=objects.from_columns(columns), proposals=proposals), visible


def _frame(points: Move, boxes: np.ndarray) -> np.ndarray:
    corners = points(boxes[:, CORNERS])
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _cut(boxes: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(np.clip(boxes, 0, np.array(size[::-1] * 2, boxes.dtype)), np.float32)


def _move_keypoints(keypoints: np.ndarray, points: Move, size: Size) -> np.ndarray:
    """float32 `[N, P, 3]`; those that were not labelled stay 0, 0, 0."""
    moved = np.concatenate([points(keypoints[..., :2]), keypoints[..., 2:]], axis=-1)
    inside = ((moved[..., :2] >= 0) & (moved[..., :2] <= size[::-1])).all(axis=-1, keepdims=True)
    return np.where(inside & (keypoints[..., 2:] > 0), moved, 0).astype(np.float32)


def _drop_unseen(sample: Sample, keep: np.ndarray) -> Sample:
    """Only the objects of `keep`, and the proposals of which anything is left."""
    proposals = sample.proposals
    if proposals is not None:
        proposals = proposals[box_areas(proposals) > 0]
    return replace(sample, objects=sample.objects.take(keep), proposals=proposals)


def flip(sample: Sample, pairs: Sequence[tuple[int, int]] = (), *, upside_down: bool = False) -> Sample:
    """The sample mirrored left to right, or top to bottom; `pairs` of keypoints change places."""
    axis = 0 if upside_down else 1
    sign, start = np.ones(2, np.float32), np.zeros(2, np.float32)
    sign[1 - axis], start[1 - axis] = -1, sample.size[axis]  # of x, y
    moved, _ = _move_objects(
        sample,
        sample.size,
        lambda points: start + sign * points,
        lambda masks: flip_masks(masks, sample.size, upside_down=upside_down),
    )
    if moved.objects.keypoints is not None:
        order = np.arange(moved.objects.keypoints.shape[1])
        for one, two in pairs:
            order[[one, two]] = two, one
        moved = replace(moved, objects=replace(moved.objects, keypoints=moved.objects.keypoints[:, order]))
    return replace(moved, image=sample.map_frames(lambda frame: cv2.flip(frame, axis)))


def take_window(sample: Sample, window: Window) -> Sample:
    """The part of the picture in the window, with the objects and proposals that it shows, cut off at its borders."""
    top, left, (height, width) = window.top, window.left, window.size
    bottom, right = min(top + height, sample.size[0]), min(left + width, sample.size[1])
    cut = replace(sample, image=sample.image[..., max(top, 0) : bottom, max(left, 0) : right, :])
    if cut.size != window.size:
        cut = apply_colours(cut)  # before there is a canvas, which keeps its colour
        y, x = max(-top, 0), max(-left, 0)
        borders = (y, height - y - cut.size[0], x, width - x - cut.size[1])
        constant = cv2.BORDER_CONSTANT
        image = cut.map_frames(lambda frame: cv2.copyMakeBorder(frame, *borders, constant, value=window.fill))
        cut = replace(cut, image=image)
    moved, visible = _shift_objects(cut, top, left, window.size)
    keep = (visible >= MIN_VISIBLE) | sample.objects.ignore if window.keep is None else window.keep
    return _drop_unseen(moved, keep & (visible > 0))


def on_canvas(sample: Sample, top: int, left: int, size: Size) -> Sample:
    """The objects and proposals in pixels of a canvas of `size` (h, w) on which the picture lies at (top, left), whole.

    The picture itself stays as it is: whoever has the canvas puts it there.
    """
    return _shift_objects(sample, -top, -left, size)[0]


def _shift_objects(sample: Sample, top: int, left: int, size: Size) -> tuple[Sample, np.ndarray]:
    """As `_move_objects`, into a window at (top, left)."""
    shift = np.array([left, top], np.float32)
    return _move_objects(sample, size, lambda points: points - shift, lambda masks: shift_masks(masks, top, left, size))


def resize_sample(
    sample: Sample, size: Size, interpolation: int = cv2.INTER_LINEAR, out: np.ndarray | None = None
) -> Sample:
    """The sample stretched to `size` (h, w); bilinear unless another of OpenCV's interpolations is given.

    out  uint8 `[h, w, 3]` that becomes the image, of a clip `[T, h, w, 3]`
    """
    sample = apply_colours(sample)
    if sample.size == size:
        if out is None:
            return sample
        out[:] = sample.image
        return replace(sample, image=out)
    if out is None:
        out = np.empty((*sample.image.shape[:-3], *size, 3), np.uint8)
    resized = replace(scale_objects(sample, sample.size, size), image=out)
    for frame, into in zip(sample.frames, resized.frames, strict=True):
        cv2.resize(frame, size[::-1], dst=into, interpolation=interpolation)
    return resized


def scale_objects(sample: Sample, before: Size, size: Size) -> Sample:
    """The sample with objects and proposals as on a picture of `size` (h, w), not of `before`. Its picture stays."""
    scale = np.array([size[1] / before[1], size[0] / before[0]])
    moved, _ = _move_objects(
        sample, size, lambda points: points * scale, lambda masks: scale_masks(masks, before, size)
    )
    return moved


def warp(sample: Sample, matrix: np.ndarray, size: Size, fill: Colour = FILL) -> Sample:
    """The picture on a canvas of `size` (h, w) after an affine map, bilinear, with the objects that are visible there.

    Objects stay as in a window, if they are at least `MIN_SIDE` high and wide or ignored.

    matrix  float64 `[2, 3]`: (x, y, 1) in the picture -> (x, y) on the canvas
    """
    sample = apply_colours(sample)
    linear, offset = matrix[:, :2], matrix[:, 2]
    centre = np.full(2, 0.5)  # OpenCV has whole numbers at the centres of pixels
    pixels = np.column_stack([linear, linear @ centre + offset - centre])
    moved, visible = _move_objects(
        sample,
        size,
        lambda points: points @ linear.T + offset,
        lambda masks: warp_masks(masks, matrix, size),
        area_factor=abs(float(np.linalg.det(linear))),
    )
    sides = moved.objects.boxes[:, 2:] - moved.objects.boxes[:, :2]
    keep = (visible >= MIN_VISIBLE) & (sides >= MIN_SIDE).all(axis=1) | moved.objects.ignore
    image = sample.map_frames(
        lambda frame: cv2.warpAffine(frame, pixels, size[::-1], flags=cv2.INTER_LINEAR, borderValue=fill)
    )
    return replace(_drop_unseen(moved, keep & (visible > 0)), image=image)
