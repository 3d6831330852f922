"""Test-time augmentation: a detector sees changed pictures too, and what it finds on all of them is joined.

Legend: V views of a picture, N detections on all of them, M after they are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detkit.data.transforms.masks import flip_masks
from detkit.nn.selection import KEYPOINT_SCORES
from detkit.ops.iou import box_iou
from detkit.ops.nms import class_aware_nms
from detkit.structures import Categories, Detections, Objects, Size

Predict = Callable[[Sequence[np.ndarray]], list[Detections]]

SCALES = (0.75, 1.25)  # of the detector's input, beside its own size
SAME = 0.5  # IoU above which detections of two views are of one object


def flipped(predict: Predict) -> Predict:
    """Detects on the mirrored pictures; boxes, masks and keypoints are those of the pictures as they are."""

    def predict_flipped(images: Sequence[np.ndarray]) -> list[Detections]:
        mirrored = predict([np.ascontiguousarray(image[:, ::-1]) for image in images])
        return [
            _mirror(detections, (image.shape[0], image.shape[1]))
            for detections, image in zip(mirrored, images, strict=True)
        ]

    return predict_flipped


def _mirror(detections: Detections, size: Size) -> Detections:
    objects, width = detections.objects, size[1]
    x1, y1, x2, y2 = detections.boxes.unbind(dim=1)
    objects = replace(objects, boxes=torch.stack([width - x2, y1, width - x1, y2], dim=1))
    if detections.masks is not None:
        objects = replace(objects, masks=flip_masks(detections.masks.crops(), size).encode(size))
    if objects.keypoints is not None:
        objects = _mirror_keypoints(objects, objects.keypoints, width, detections.categories)
    return replace(detections, objects=objects)


def _mirror_keypoints(
    objects: Objects[Tensor], keypoints: Tensor, width: int, categories: Categories
) -> Objects[Tensor]:
    """Left and right change places, in the scores too."""
    order = torch.arange(keypoints.shape[1])
    for one, two in categories.keypoints.flip_pairs if categories.keypoints else ():
        order[[one, two]] = torch.tensor([two, one])
    x, y, visibility = keypoints[:, order].unbind(dim=2)
    extra = dict(objects.extra)
    if KEYPOINT_SCORES in extra:
        extra[KEYPOINT_SCORES] = extra[KEYPOINT_SCORES][:, order]
    return replace(objects, keypoints=torch.stack([width - x, y, visibility], dim=2), extra=extra)


def augmented(views: Sequence[Predict]) -> Predict:
    """Detects on each view, and joins what it finds: see `fuse`."""
    if len(views) == 1:
        return views[0]

    def predict_augmented(images: Sequence[np.ndarray]) -> list[Detections]:
        detected = [predict(images) for predict in views]
        return [fuse(list(of_picture)) for of_picture in zip(*detected, strict=True)]

    return predict_augmented


def fuse(views: Sequence[Detections]) -> Detections:
    """Joins the detections of V views that are of one object, as weighted boxes fusion does (arXiv 1910.13302).

    Those of a class whose IoU with the best of them is above 0.5 become one: its box is their mean, weighted by their
    scores, and its score their sum over V, so that what only one view shows scores less than it did there. Mask and
    keypoints are those of the best of them.
    """
    joined, _ = join(views)
    boxes, scores, labels = joined.boxes, joined.scores, joined.labels
    best = class_aware_nms(boxes, scores, labels, SAME)
    overlap = box_iou(boxes[best], boxes) * (labels[best][:, None] == labels)  # [M, N]
    overlap[torch.arange(len(best)), best] = 1  # the best itself, even without an area
    weights = torch.zeros_like(overlap)
    if len(best):
        weights.scatter_(0, overlap.argmax(dim=0, keepdim=True), scores[None])  # each belongs to one
    total = weights.sum(dim=1)
    fused = replace(
        joined.objects.take(best),
        boxes=(weights @ boxes) / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None],
        scores=(total / len(views)).clamp(max=1),
    )
    return Detections(fused.take(total.argsort(descending=True, stable=True)), joined.categories)


def join(views: Sequence[Detections]) -> tuple[Detections, Tensor]:
    """All detections of several views of one picture, best score first; and int64 `[N]`, their rows before that."""
    objects = Objects.cat([detections.objects for detections in views])
    assert objects.scores is not None
    order = objects.scores.argsort(descending=True, stable=True)
    return Detections(objects.take(order), views[0].categories), order
