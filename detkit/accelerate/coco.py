"""The precision and recall of `COCOeval`, computed by compiled kernels on flat arrays; see `evaluation/coco.py`.

Legend: G objects and D detections of one class, K classes, A ranges of area, T IoU thresholds, R recalls, M limits on
the detections of an image and class. Boxes are COCO's xywh in float64.
The kernels do the floating point operations of pycocotools in its order, so that both give the same bits. Comments
explain only what pycocotools does differently. How much masks and keypoints overlap comes from the scene.
Source: `COCOeval.evaluateImg` and `COCOeval.accumulate` of pycocotools, `bbIou` of its maskApi.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from detkit.accelerate.compiled import compiled
from detkit.evaluation.flat_boxes import FlatBoxes

if TYPE_CHECKING:
    from detkit.evaluation.coco_scene import Scene

EPSILON = float(np.spacing(1))
# The outcome of a detection for one range of areas and one threshold; an ignored one counts neither way.
FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


class _Rules(NamedTuple):
    """
    ranges      float64 `[A, 2]`: the smallest and the largest area
    thresholds  float64 `[T]`, of the IoU
    recalls     float64 `[R]`, rising
    limits      int64 `[M]`, rising
    """

    ranges: np.ndarray
    thresholds: np.ndarray
    recalls: np.ndarray
    limits: np.ndarray


def compute_curves(scene: Scene, num_classes: int, params: Any) -> dict[str, np.ndarray]:
    """`precision` `[T, R, K, A, M]`, of the last limit only, and `recall` `[T, K, A, M]`; -1 where there is no object.

    params  ranges, thresholds, recalls and limits of `COCOeval`
    """
    rules = _Rules(
        np.array(params.areaRng, np.float64),
        np.minimum(params.iouThrs, 1 - 1e-10),
        params.recThrs,
        np.array(params.maxDets, np.int64),
    )
    num_ranges, num_thresholds, num_recalls, num_limits = map(len, rules)
    precision = np.full((num_thresholds, num_recalls, num_classes, num_ranges, num_limits), -1.0)
    recall = np.full((num_thresholds, num_classes, num_ranges, num_limits), -1.0)
    labels = scene.objects.labels, scene.detections.labels
    object_rows, detection_rows = (_by_class(of_class, num_classes) for of_class in labels)

    def measure(label: int) -> None:
        rows_g, rows_d = object_rows[label], detection_rows[label]
        by_score = np.argsort(-scene.scores[rows_d], kind="stable")
        objects = scene.objects.take(rows_g), scene.crowd[rows_g], scene.ignored[rows_g]
        overlap = np.zeros(0)
        if scene.iou_type != "bbox":
            overlap = _overlap_by_image(scene, rows_d, rows_g, rules.limits[-1])
        detections = scene.detections.take(rows_d), by_score
        _measure(precision[..., -1], recall, label, *objects, *detections, overlap, rules)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(measure, range(num_classes)))
    return {"precision": precision, "recall": recall}


def _by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The indices of each class, rising."""
    order = np.argsort(labels.astype(np.min_scalar_type(num_classes)), kind="stable")  # short integers sort faster
    return np.split(order, np.bincount(labels, minlength=num_classes).cumsum()[:-1])


def _overlap_by_image(scene: Scene, rows_d: np.ndarray, rows_g: np.ndarray, limit: int) -> np.ndarray:
    """float64: the overlap `[D, G]` of those detections of one image that are within the limit with its objects, one
    image that has both after the other."""
    images_d, images_g = scene.detections.images[rows_d], scene.objects.images[rows_g]
    parts = [np.zeros(0)]
    for image in np.intersect1d(images_d, images_g):
        (start_d, end_d), (start_g, end_g) = (np.searchsorted(of, [image, image + 1]) for of in (images_d, images_g))
        overlap = scene.overlap(rows_d[start_d : min(end_d, start_d + limit)], rows_g[start_g:end_g])
        parts.append(overlap.ravel())
    return np.concatenate(parts)


@compiled
def _measure(
    precision: np.ndarray,
    recall: np.ndarray,
    label: int,
    objects: FlatBoxes,
    crowd: np.ndarray,
    ignored: np.ndarray,
    detections: FlatBoxes,
    by_score: np.ndarray,
    overlap: np.ndarray,
    rules: _Rules,
) -> None:
    """Fills `precision` `[T, R, K, A]` and `recall` `[T, K, A, M]` of one class, where the range has an object.

    overlap  as from `_overlap_by_image`; empty: the IoU of the boxes
    """
    ignore = _ignored_objects(objects, ignored, rules)
    outcomes = _unmatched_outcomes(detections, rules)
    true_positives = np.zeros((len(rules.ranges), len(rules.thresholds), len(rules.limits)), np.int64)
    end_d = end_g = start = 0
    while end_d < len(by_score):  # one image after the other
        image, start_d = detections.images[end_d], end_d
        while end_d < len(by_score) and detections.images[end_d] == image:
            end_d += 1
        while end_g < len(crowd) and objects.images[end_g] < image:
            end_g += 1
        start_g = end_g
        while end_g < len(crowd) and objects.images[end_g] == image:
            end_g += 1
        within_limit, on_image = slice(start_d, min(end_d, start_d + rules.limits[-1])), slice(start_g, end_g)
        outcomes[:, :, within_limit.stop : end_d] = IGNORED
        if start_g < end_g:
            boxes, areas = detections.xywh[within_limit], detections.areas[within_limit]
            if len(overlap):
                end = start + len(boxes) * (end_g - start_g)
                iou, start = overlap[start:end].reshape(len(boxes), end_g - start_g), end
            else:
                iou = _iou(boxes, areas, objects.xywh[on_image], crowd[on_image])
            _match(outcomes[:, :, within_limit], true_positives, iou, crowd[on_image], ignore[:, on_image], rules)

    for a in range(len(rules.ranges)):
        num_objects = int(np.count_nonzero(~ignore[a]))
        for t in range(len(rules.thresholds) if num_objects else 0):
            _curve(precision[t, :, label, a], outcomes[a, t], by_score, num_objects, rules.recalls)
            for m in range(len(rules.limits)):
                recall[t, label, a, m] = true_positives[a, t, m] / num_objects


@compiled
def _ignored_objects(objects: FlatBoxes, ignored: np.ndarray, rules: _Rules) -> np.ndarray:
    """bool `[A, G]`: whether an object is ignored or its area lies outside the range."""
    ignore = np.empty((len(rules.ranges), len(ignored)), np.bool_)
    for a in range(len(rules.ranges)):
        for g in range(len(ignored)):
            ignore[a, g] = ignored[g] or objects.areas[g] < rules.ranges[a, 0] or objects.areas[g] > rules.ranges[a, 1]
    return ignore


@compiled
def _unmatched_outcomes(detections: FlatBoxes, rules: _Rules) -> np.ndarray:
    """uint8 `[A, T, D]`: the outcome of every detection if it matches no object."""
    outcomes = np.empty((len(rules.ranges), len(rules.thresholds), len(detections.areas)), np.uint8)
    for a in range(len(rules.ranges)):
        for t in range(len(rules.thresholds)):
            for d in range(len(detections.areas)):
                in_range = rules.ranges[a, 0] <= detections.areas[d] <= rules.ranges[a, 1]
                outcomes[a, t, d] = FALSE_POSITIVE if in_range else IGNORED
    return outcomes


@compiled
def _iou(boxes1: np.ndarray, areas1: np.ndarray, boxes2: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """float64 `[D, G]`: the IoU of detections `boxes1` `[D, 4]` with objects `boxes2` `[G, 4]` of one image.

    Of a crowd it is the intersection over the area of the detection.
    """
    iou = np.zeros((len(boxes1), len(boxes2)))
    for d in range(len(boxes1)):
        for g in range(len(boxes2)):
            box1, box2 = boxes1[d], boxes2[g]
            width = min(box1[2] + box1[0], box2[2] + box2[0]) - max(box1[0], box2[0])
            height = min(box1[3] + box1[1], box2[3] + box2[1]) - max(box1[1], box2[1])
            if width > 0 and height > 0:
                intersection = width * height
                union = areas1[d] if crowd[g] else areas1[d] + box2[2] * box2[3] - intersection
                iou[d, g] = intersection / union
    return iou


@compiled
def _match(
    outcomes: np.ndarray,
    true_positives: np.ndarray,
    iou: np.ndarray,
    crowd: np.ndarray,
    ignore: np.ndarray,
    rules: _Rules,
) -> None:
    """Changes `outcomes` `[A, T, D]` of the detections of one image that match an object of it.

    true_positives  int64 `[A, T, M]`: those within each limit are added to it
    iou             float64 `[D, G]`
    crowd           bool `[G]`
    ignore          bool `[A, G]`
    """
    order, taken = np.empty(len(crowd), np.int64), np.empty(len(crowd), np.bool_)
    for a in range(len(rules.ranges)):
        count = 0
        for last in (False, True):  # ignored objects come last
            for i in range(len(crowd)):
                if ignore[a, i] == last:
                    order[count] = i
                    count += 1
        for t in range(len(rules.thresholds)):
            taken[:] = False
            for d in range(len(iou)):
                best, match = rules.thresholds[t], -1
                for g in order:
                    if taken[g] and not crowd[g]:
                        continue
                    if match >= 0 and ignore[a, g] and not ignore[a, match]:
                        break
                    if iou[d, g] >= best:
                        best, match = iou[d, g], int(g)
                if match >= 0:
                    taken[match] = True
                    outcomes[a, t, d] = IGNORED if ignore[a, match] else TRUE_POSITIVE
                    for m in range(len(rules.limits)):
                        true_positives[a, t, m] += not ignore[a, match] and d < rules.limits[m]


@compiled
def _curve(
    precision: np.ndarray, outcomes: np.ndarray, by_score: np.ndarray, num_objects: int, recalls: np.ndarray
) -> None:
    """Fills `precision` `[R]`: the best one at each recall or beyond, 0 where that recall is not reached."""
    # pycocotools stores the precision at every detection. False positives only lower it, so true ones suffice here.
    best = np.empty(num_objects)
    num_true = num_false = 0
    for d in by_score:
        num_false += outcomes[d] == FALSE_POSITIVE
        if outcomes[d] == TRUE_POSITIVE:
            num_true += 1
            best[num_true - 1] = num_true / (num_false + num_true + EPSILON)
    for i in range(num_true - 1, 0, -1):
        best[i - 1] = max(best[i - 1], best[i])
    i = 0
    for r in range(len(recalls)):
        while i < num_true and (i + 1) / num_objects < recalls[r]:
            i += 1
        precision[r] = best[i] if i < num_true else 0.0
