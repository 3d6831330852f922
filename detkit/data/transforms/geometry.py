"""The primitives that move a picture and its objects together. Nothing else moves a box.

Legend: N objects of one image, P proposals; boxes are float32 `[N, 4]` xyxy in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from detkit.structures import Sample, Size

Colour = tuple[int, int, int]  # RGB
ImageChange = Callable[[np.ndarray], np.ndarray]

MIN_VISIBLE = 0.25  # a window drops an object if it shows less than this part of its box
FILL = (114, 114, 114)  # grey of the canvas around a picture that was scaled down


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


def move_boxes(sample: Sample, move: Callable[[np.ndarray], np.ndarray]) -> Sample:
    """The sample with its boxes and proposals moved by `move`, and areas scaled by as much as those of their boxes.

    Raises ValueError for masks and keypoints, which no augmentation moves yet.
    """
    objects = sample.objects
    unmoved = [name for name in ("masks", "keypoints") if getattr(objects, name) is not None]
    if unmoved:
        raise ValueError(
            f"image {sample.image_id!r} has {' and '.join(unmoved)}, which augmentation and resizing cannot move yet; "
            "expected boxes only"
        )
    boxes = move(objects.boxes)
    area = objects.area
    if area is not None:
        area = (area * box_areas(boxes) / box_areas(objects.boxes)).astype(np.float32)
    proposals = None if sample.proposals is None else move(sample.proposals)
    return replace(sample, objects=replace(objects, boxes=boxes, area=area), proposals=proposals)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def flip(sample: Sample) -> Sample:
    """The sample mirrored left to right."""
    width = np.float32(sample.image.shape[1])

    def mirror(boxes: np.ndarray) -> np.ndarray:
        return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)

    return replace(move_boxes(sample, mirror), image=cv2.flip(sample.image, 1))


def take_window(sample: Sample, window: Window, change_colours: ImageChange | None = None) -> Sample:
    """The part of the picture in the window, with the objects and proposals that it shows, cut off at its borders.

    change_colours  is applied to the part of the picture before a canvas is added around it, and not at all if none is
    """
    top, left, (height, width) = window.top, window.left, window.size
    bottom, right = min(top + height, sample.image.shape[0]), min(left + width, sample.image.shape[1])
    image = sample.image[max(top, 0) : bottom, max(left, 0) : right]
    if image.shape[:2] != window.size:
        if change_colours is not None:
            image = change_colours(image)
        y, x = max(-top, 0), max(-left, 0)
        below, beside = height - y - image.shape[0], width - x - image.shape[1]
        image = cv2.copyMakeBorder(image, y, below, x, beside, cv2.BORDER_CONSTANT, value=window.fill)
    shift = np.array([left, top, left, top], np.float32)
    border = np.array([width, height, width, height], np.float32)
    cut = move_boxes(sample, lambda boxes: np.clip(boxes - shift, 0, border))
    visible = box_areas(cut.objects.boxes) / box_areas(sample.objects.boxes - shift)
    keep = (visible >= MIN_VISIBLE) | cut.objects.ignore if window.keep is None else window.keep
    proposals = cut.proposals
    if proposals is not None:
        proposals = proposals[box_areas(proposals) > 0]
    return replace(cut, image=image, objects=cut.objects.take(keep & (visible > 0)), proposals=proposals)


def resize_sample(
    sample: Sample, size: Size, interpolation: int = cv2.INTER_LINEAR, out: np.ndarray | None = None
) -> Sample:
    """The sample stretched to `size` (h, w); bilinear unless another of OpenCV's interpolations is given.

    out  uint8 `[h, w, 3]` that becomes the image
    """
    height, width = sample.image.shape[:2]
    if (height, width) == size:
        if out is None:
            return sample
        out[:] = sample.image
        return replace(sample, image=out)
    image = cv2.resize(sample.image, size[::-1], dst=out, interpolation=interpolation)
    scale = np.array([size[1] / width, size[0] / height] * 2)
    border = np.array(size[::-1] * 2)

    def stretch(boxes: np.ndarray) -> np.ndarray:
        return np.asarray(np.minimum(boxes * scale, border), np.float32)

    return replace(move_boxes(sample, stretch), image=image)
