"""The average precision of PASCAL VOC.

Legend: D detections and G objects of the data set, K classes.
The devkit counts inclusive pixels of 1-based files (width = xmax - xmin + 1). The boxes here are continuous and were
read by subtracting 1 from xmin and ymin only, so their plain IoU *is* the devkit's, without a `+1` anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from detkit.evaluation.evaluator import Evaluator, ProtocolResult, by_class
from detkit.evaluation.store import DetectionStore
from detkit.ops.iou import box_iou
from detkit.structures import Detections, GroundTruth

# Not k / 10: with this step 0.3, 0.6 and 0.7 come out a little larger, and a recall of exactly 3/10 misses the point.
RECALL_POINTS = np.arange(0, 1.1, 0.1)


class VOCEvaluator(Evaluator):
    """Mean AP over the classes that have an object that is not difficult; see `voc_ap`.

    eleven_point  VOC 2007, otherwise the area under the curve of VOC 2010 and later
    """

    def __init__(self, store: DetectionStore, *, eleven_point: bool) -> None:
        super().__init__(store)
        self.eleven_point = eleven_point

    def compute(self) -> ProtocolResult:
        categories = self.store.categories
        per_class = voc_ap(
            self.store.ground_truth, self.store.in_order(), len(categories), eleven_point=self.eleven_point
        )
        present = per_class[~np.isnan(per_class)]
        mean = float(present.mean()) if len(present) else float("nan")
        curve = "VOC 2007 11-point" if self.eleven_point else "VOC 2010 area under the curve"
        rules = f"{curve}, IoU > 0.5, inclusive pixels, difficult ignored"
        return ProtocolResult(rules, "mAP", {"mAP": mean}, by_class(categories, per_class))


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

    The detections of a class are taken best score first over all images (equal scores in the order of the images).
    Each is compared with the object of its class in its image with the largest IoU, even if an earlier detection has
    matched that object. Above the threshold it is a true positive if it is the first to match the object, a false
    positive if not, and left out if the object is difficult (`ignore`). Below the threshold it is a false positive.
    Recall counts the objects that are not difficult.

    `detections[i]` belong to `ground_truth[i]`; at least one image. `eleven_point` is VOC 2007, otherwise the area
    under the curve, VOC 2010 and later. `strict` asks for IoU > threshold, as `voc_eval` of py-faster-rcnn and
    detectron2 do, otherwise for IoU >= threshold, as the Matlab devkit does.
    Source: Everingham et al., IJCV 2010, section 4.2; py-faster-rcnn lib/datasets/voc_eval.py.
    """
    matches = _match(ground_truth, detections)
    ignore = np.concatenate([image.objects.ignore for image in ground_truth])
    labels = np.concatenate([image.objects.labels for image in ground_truth])
    num_objects = np.bincount(labels[~ignore], minlength=num_classes)
    above = matches.overlaps > iou_threshold if strict else matches.overlaps >= iou_threshold
    average = eleven_point_ap if eleven_point else area_ap

    result = np.full(num_classes, np.nan)
    for label in np.flatnonzero(num_objects):
        rows = np.flatnonzero(matches.labels == label)
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
        matched = np.where(above[rows], matches.objects[rows], -1)  # the index of the object, -1 for none
        matched = matched[(matched < 0) | ~ignore[matched]]
        is_first = np.zeros(len(matched), dtype=bool)
        is_first[np.unique(matched, return_index=True)[1]] = True
        result[label] = average(is_first & (matched >= 0), num_objects[label])
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
    """Each detection of the data set, in the order of the images, and the object that it is compared with.

    labels    int64 `[D]`
    scores    float32 `[D]`
    overlaps  float64 `[D]`: the largest IoU with an object of the class in the image, -1 where there is none
    objects   int64 `[D]`: the index of that object among all G objects
    """

    labels: np.ndarray
    scores: np.ndarray
    overlaps: np.ndarray
    objects: np.ndarray


def _match(ground_truth: Sequence[GroundTruth], detections: Sequence[Detections]) -> _Matches:
    parts = []
    num_earlier = 0  # objects of the images before this one
    for image, image_detections in zip(ground_truth, detections, strict=True):
        annotated = image.objects
        labels = image_detections.labels.numpy()
        overlaps, objects = np.full(len(labels), -1.0), np.zeros(len(labels), np.int64)
        if len(labels) and len(annotated):
            # In float64, so that an IoU of exactly one half is one half.
            iou = box_iou(image_detections.boxes.double(), torch.from_numpy(annotated.boxes).double()).numpy()
            iou[labels[:, None] != annotated.labels] = -1.0
            overlaps, objects = iou.max(axis=1), iou.argmax(axis=1)
        parts.append(_Matches(labels, image_detections.scores.numpy(), overlaps, num_earlier + objects))
        num_earlier += len(annotated)
    return _Matches(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
