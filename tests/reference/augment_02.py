"""The augmentation of version 0.2, written down plainly: a fixed order of changes, pixel for pixel and box for box.

All numbers come from one generator, in this order, and one is drawn for the crop even where there is none. Colours
change when a canvas is added, or at the end: OpenCV rounds a little differently at the end of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np

from detkit.data.transforms.colour import _apply_albumentations, _blend_with_grey, _photometric_changes, _shift_hue


class Picture:
    """A picture, boxes float32 `[N, 4]` and which of them are to be ignored, on their way through the changes."""

    def __init__(self, image: np.ndarray, boxes: np.ndarray, ignore: np.ndarray) -> None:
        self.image, self.boxes, self.ignore, self.rows = image, boxes, ignore, np.arange(len(boxes))
        self.colours: list[Callable[[np.ndarray], np.ndarray]] = []

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def colour(self) -> None:
        for change in self.colours:
            self.image = change(self.image)
        self.colours = []

    def cut(
        self, top: int, left: int, height: int, width: int, fill: int | tuple[int, int, int], keep: Any = None
    ) -> None:
        """The part in a window, which may reach outside; objects stay by `keep`, or if a quarter of them is visible."""
        y1, y2 = max(top, 0), min(top + height, self.size[0])
        x1, x2 = max(left, 0), min(left + width, self.size[1])
        self.image = self.image[y1:y2, x1:x2]
        if self.size != (height, width):
            self.colour()
        result = np.empty((height, width, 3), np.uint8)
        result[:] = fill
        result[y1 - top : y2 - top, x1 - left : x2 - left] = self.image
        stay, boxes = [], []
        for row, box in enumerate(self.boxes):
            x1, y1, x2, y2 = box - np.array([left, top, left, top], np.float32)
            cut = (
                max(x1, np.float32(0)),
                max(y1, np.float32(0)),
                min(x2, np.float32(width)),
                min(y2, np.float32(height)),
            )
            inside = max(cut[2] - cut[0], 0) * max(cut[3] - cut[1], 0)
            visible = inside / ((x2 - x1) * (y2 - y1)) if inside else 0
            stays = visible >= 0.25 or self.ignore[row] if keep is None else keep[row]
            if visible > 0 and stays:
                stay.append(row)
                boxes.append(cut)
        self.image = result
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self.ignore, self.rows = self.ignore[stay], self.rows[stay]


def augment(image: np.ndarray, boxes: np.ndarray, ignore: np.ndarray, seed: int, settings: dict[str, Any]) -> Picture:
    """`settings` are those of 0.2 that are on, besides the flip, which is on unless it is 0."""
    rng, picture = np.random.default_rng(seed), Picture(image, boxes, ignore)
    if rng.random() < settings.get("horizontal_flip", 0.5):
        picture.image = np.ascontiguousarray(picture.image[:, ::-1])
        width = np.float32(picture.size[1])
        picture.boxes = np.array([(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in picture.boxes], np.float32)
        picture.boxes = picture.boxes.reshape(-1, 4)
    _colours(picture, rng, settings)
    _windows_of_ssd_and_detr(picture, rng, settings)
    if "scale_jitter" in settings:
        low, high = settings["scale_jitter"]
        factor = np.exp(rng.uniform(np.log(low), np.log(high)))
        height, width = max(round(picture.size[0] / factor), 1), max(round(picture.size[1] / factor), 1)
        top, left = _anywhere(rng, picture.size[0] - height), _anywhere(rng, picture.size[1] - width)
        picture.cut(top, left, height, width, 114)
    if rng.random() < settings.get("crop", 0):
        _crop(picture, rng)
    if "translate" in settings:
        (height, width), part = picture.size, settings["translate"]
        left, right = round(width * rng.uniform(-part, part)), round(width * rng.uniform(-part, part))
        top, bottom = round(height * rng.uniform(-part, part)), round(height * rng.uniform(-part, part))
        picture.cut(top, left, height + bottom - top, width + right - left, 114)
    if "jitter" in settings:
        _jitter(picture, rng, settings["jitter"], settings.get("jitter_scale", (0.25, 2.0)))
    picture.colour()
    return picture


def _colours(picture: Picture, rng: np.random.Generator, settings: dict[str, Any]) -> None:
    """The kernels are the package's: this is about the order of the numbers."""
    if "photometric" in settings:
        for change in _photometric_changes(settings["photometric"]):
            picture.colours.append(partial(_apply_albumentations, change, int(rng.integers(2**31))))
    if "hsv" in settings:
        hue, saturation, exposure = settings["hsv"]
        shift = rng.uniform(-hue, hue)
        colour = rng.uniform(1 / saturation, saturation)
        light = rng.uniform(1 / exposure, exposure)
        picture.colours.append(lambda image: _shift_hue(_blend_with_grey(image, colour, light), shift))


def _windows_of_ssd_and_detr(picture: Picture, rng: np.random.Generator, settings: dict[str, Any]) -> None:
    if "expand" in settings and rng.random() < 0.5:
        (height, width), ratio = picture.size, rng.uniform(1, settings["expand"])
        h, w = round(height * ratio), round(width * ratio)
        top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
        picture.cut(-int(top), -int(left), h, w, (123, 117, 104))
    if settings.get("iou_crop"):
        _iou_crop(picture, rng)
    if "resize_crop" in settings and rng.random() < settings["resize_crop"]:
        size, drawn = picture.size, []
        scale = rng.choice((400, 500, 600)) / min(size)
        for side in size:
            drawn.append(round(rng.integers(384, min(round(side * scale), 600), endpoint=True) / scale))
        height, width = (max(1, min(one, side)) for one, side in zip(drawn, size, strict=True))
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        picture.cut(top, left, height, width, 0, keep=[True] * len(picture.boxes))


def _iou_crop(picture: Picture, rng: np.random.Generator) -> None:
    (height, width), seen = picture.size, ~picture.ignore
    if not seen.any():
        return
    for number in rng.permutation(7):
        overlap = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)[number]
        if overlap is None:
            return
        for _ in range(50):
            scale = rng.uniform(0.3, 1)
            ratio = rng.uniform(max(0.5, scale**2), min(2, 1 / scale**2))
            w, h = max(1, round(width * scale * ratio**0.5)), max(1, round(height * scale / ratio**0.5))
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            ious, centred = [], []
            for x1, y1, x2, y2 in picture.boxes:
                shared = max(min(x2, left + w) - max(x1, left), 0) * max(min(y2, top + h) - max(y1, top), 0)
                ious.append(shared / ((x2 - x1) * (y2 - y1) + w * h - shared))
                centred.append(left < (x1 + x2) / 2 < left + w and top < (y1 + y2) / 2 < top + h)
            if max(np.array(ious)[seen]) >= overlap and np.array(centred)[seen].any():
                picture.cut(top, left, h, w, 0, keep=centred)
                return


def _crop(picture: Picture, rng: np.random.Generator) -> None:
    spans = []
    for extent, first, last in ((picture.size[1], 0, 2), (picture.size[0], 1, 3)):
        minimum = int(np.ceil(0.3 * extent))
        begin = min([*picture.boxes[:, first], extent - minimum])
        start = int(rng.integers(0, int(np.floor(begin)) + 1))
        end = max([*picture.boxes[:, last], start + minimum])
        spans.append((start, int(rng.integers(int(np.ceil(end)), extent + 1))))
    (left, right), (top, bottom) = spans
    picture.cut(top, left, bottom - top, right - left, 114)


def _jitter(picture: Picture, rng: np.random.Generator, change: float, limits: tuple[float, float]) -> None:
    height, width = picture.size
    side = max(height, width)
    new_width = width * (1 + rng.uniform(-change, change))
    ratio = new_width / (height * (1 + rng.uniform(-change, change)))
    longer = side * rng.uniform(*limits)
    w, h = (round(longer * ratio), round(longer)) if ratio < 1 else (round(longer), round(longer / ratio))
    w, h = max(w, 1), max(h, 1)
    picture.colour()
    picture.image = cv2.resize(picture.image, (w, h))
    for box in picture.boxes:
        for column, (scale, end) in enumerate(((w / width, w), (h / height, h)) * 2):
            box[column] = min(float(box[column]) * scale, end)
    top, left = (-_anywhere(rng, free) for free in (side - h, side - w))
    picture.cut(top, left, side, side, 127)


def _anywhere(rng: np.random.Generator, free: int) -> int:
    return round(rng.uniform(min(0, free), max(0, free)))
