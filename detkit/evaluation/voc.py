"""PASCAL VOC average precision.

Legend: D detections and G objects of the data set, K classes.
The devkit counts inclusive pixels of 1-based files (width = xmax - xmin + 1). Our boxes are continuous and were read by
subtracting 1 from xmin and ymin only, so the plain IoU of continuous boxes *is* the devkit's, without a `+1` anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from detkit.ops.iou import box_iou
from detkit.structures import Detections, GroundTruth

# Not k / 10: with this step 0.3, 0.6 and 0.7 come out a little larger, and a recall of exactly 3/10 misses the point.
RECALL_POINTS = np.arange(0, 1.1, 0.1)


def voc_ap(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    eleven_point: bool,
    iou_threshold: float = 0.5,
    strict: bool = True,
) -> np.ndarray:
    """AP of every class, float64 `[K]` in [0, 1]; nan for a class without a non-difficult object.

    Per class, best score first over all images (equal scores in the order of the images), each detection answers for
    the object of its class in its image with the largest IoU, even when that one is taken. Above the threshold it is a
    true positive if it is the first there, a false positive if not, and left out if the object is difficult (`ignore`);
    below the threshold it is a false positive. Recall counts the objects that are not difficult.

    `detections[i]` are those of `ground_truth[i]`; at least one image. `eleven_point` is VOC 2007, otherwise the area
    under the curve, VOC 2010 and later. `strict` asks for IoU > threshold, as `voc_eval` of py-faster-rcnn and
    detectron2 do, otherwise for IoU >= threshold, as the Matlab devkit does.
    Source: Everingham et al., IJCV 2010, section 4.2; py-faster-rcnn lib/datasets/voc_eval.py.
    """
    matches = _match(ground_truth, detections)
    ignore = np.concatenate([image.ignore for image in ground_truth])
    labels = np.concatenate([image.labels for image in ground_truth])
    num_objects = np.bincount(labels[~ignore], minlength=num_classes)
    found = matches.overlaps > iou_threshold if strict else matches.overlaps >= iou_threshold
    average = eleven_point_ap if eleven_point else area_ap

    result = np.full(num_classes, np.nan)
    for label in np.flatnonzero(num_objects):
        mine = np.flatnonzero(matches.labels == label)
        mine = mine[np.argsort(-matches.scores[mine], kind="stable")]
        hits = np.where(found[mine], matches.objects[mine], -1)  # which object, -1 for none
        hits = hits[(hits < 0) | ~ignore[hits]]
        is_first = np.zeros(len(hits), dtype=bool)
        is_first[np.unique(hits, return_index=True)[1]] = True
        result[label] = average(is_first & (hits >= 0), num_objects[label])
    return result


def eleven_point_ap(true_positive: np.ndarray, num_objects: int) -> float:
    """Mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or beyond, 0 where it is not reached.

    `true_positive` bool `[D]`, best score first, without ignored detections.
    """
    recall = np.cumsum(true_positive) / num_objects
    best = np.append(_best_precision(true_positive), 0.0)
    return float(best[np.searchsorted(recall, RECALL_POINTS)].mean())


def area_ap(true_positive: np.ndarray, num_objects: int) -> float:
    """Area under the precision-recall curve made monotone; recall grows by 1 / num_objects at each true positive.

    `true_positive` bool `[D]`, best score first, without ignored detections.
    """
    return float(_best_precision(true_positive)[true_positive].sum() / num_objects)


def _best_precision(true_positive: np.ndarray) -> np.ndarray:
    """The best precision from each rank onwards, `[D]`."""
    precision = np.cumsum(true_positive) / np.arange(1, len(true_positive) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


class _Matches(NamedTuple):
    """Each detection of the data set, in the order of the images, and the object it answers for.

    labels    int64 `[D]`
    scores    float32 `[D]`
    overlaps  float64 `[D]`: the largest IoU with an object of the class in the image, -1 where there is none
    objects   int64 `[D]`: that object as an index into all G objects
    """

    labels: np.ndarray
    scores: np.ndarray
    overlaps: np.ndarray
    objects: np.ndarray


def _match(ground_truth: Sequence[GroundTruth], detections: Sequence[Detections]) -> _Matches:
    parts = []
    num_seen = 0
    for image, found in zip(ground_truth, detections, strict=True):
        labels = found.labels.numpy()
        overlaps, objects = np.full(len(found), -1.0), np.zeros(len(found), np.int64)
        if len(found) and len(image.labels):
            # In float64, so that an IoU of exactly one half is one half.
            iou = box_iou(found.boxes.double(), torch.from_numpy(image.boxes).double()).numpy()
            iou[labels[:, None] != image.labels] = -1.0
            overlaps, objects = iou.max(axis=1), iou.argmax(axis=1)
        parts.append(_Matches(labels, found.scores.numpy(), overlaps, num_seen + objects))
        num_seen += len(image.labels)
    return _Matches(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
