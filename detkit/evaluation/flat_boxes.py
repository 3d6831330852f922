"""The boxes of a data set as flat arrays in COCO's form, as both programs that compute the COCO numbers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from detkit.formats import to_xywh
from detkit.structures import Detections, ImageId, Objects


class FlatBoxes(NamedTuple):
    """The boxes of all images of a data set, one image after the other.

    images  int64 `[N]`: the index of the image that a box is on
    labels  int64 `[N]`
    xywh    float64 `[N, 4]`: left, top, width, height
    areas   float64 `[N]`, px^2
    """

    images: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray

    @staticmethod
    def of_corners(counts: Sequence[int], boxes: np.ndarray, labels: np.ndarray) -> FlatBoxes:
        """From the number of boxes on each image, all boxes `[N, 4]` xyxy and all labels. The areas are box areas."""
        xywh = to_xywh(boxes)
        return FlatBoxes(np.repeat(np.arange(len(counts)), counts), labels, xywh, xywh[:, 2] * xywh[:, 3])

    def take(self, indices: np.ndarray) -> FlatBoxes:
        return FlatBoxes(*(column[indices] for column in self))


def flat_objects(images: Sequence[Objects[np.ndarray]]) -> tuple[FlatBoxes, np.ndarray]:
    """The annotated objects of all images and whether each is a crowd, bool `[N]`."""
    boxes, labels, crowd = (
        np.concatenate([getattr(objects, name) for objects in images]) for name in ("boxes", "labels", "ignore")
    )
    flat = FlatBoxes.of_corners(list(map(len, images)), boxes, labels)
    return flat._replace(areas=np.concatenate(list(map(_areas, images))).astype(np.float64)), crowd


def _areas(objects: Objects[np.ndarray]) -> np.ndarray:
    """The annotated areas, or those of the boxes where none are annotated."""
    if objects.area is not None:
        return objects.area
    areas: np.ndarray = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1)
    return areas


def flat_detections(images: Sequence[Detections]) -> tuple[FlatBoxes, np.ndarray]:
    """The detections of all images and their scores, float32 `[N]`."""
    boxes, labels, scores = (
        torch.cat([getattr(detections, name) for detections in images]).numpy()
        for name in ("boxes", "labels", "scores")
    )
    return FlatBoxes.of_corners(list(map(len, images)), boxes, labels), scores


def sort_key(image_id: ImageId) -> tuple[bool, ImageId]:
    """Orders images as pycocotools does: numbers by value, and after them strings by their letters."""
    return isinstance(image_id, str), image_id
