"""The precision and recall that pycocotools computes, to the bit, by compiled kernels on flat arrays; see `coco.py`.

Legend: G objects and D detections of one class, K classes, A ranges of area, T IoU thresholds, R recalls, M limits on
the detections of an image and class. Boxes are COCO's xywh in float64.
Every number is made by the operations of pycocotools in their order, so a comment here says only what is not there.
Source: `COCOeval.evaluateImg` and `COCOeval.accumulate` of pycocotools, `bbIou` of its maskApi.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.coco import Boxes
from detkit.ops.compiled import in_threads, kernel

EPSILON = float(np.spacing(1))
WRONG, RIGHT, LEFT_OUT = 0, 1, 2  # what a detection is, by one range and one threshold


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


def curves(
    objects: Boxes, crowd: np.ndarray, found: Boxes, scores: np.ndarray, num_classes: int, params: Any
) -> dict[str, np.ndarray]:
    """`precision` `[T, R, K, A, M]`, of the last limit only, and `recall` `[T, K, A, M]`; -1 where there is no object.

    crowd   bool, of the objects
    scores  of the detections, falling within an image
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
    objects_of, found_of = _by_class(objects.labels, num_classes), _by_class(found.labels, num_classes)

    def measure(first: int, end: int) -> None:
        for label in range(first, end):
            theirs, ours = objects_of[label], found_of[label]
            by_score = np.argsort(-scores[ours], kind="stable")
            boxes = objects.take(theirs), crowd[theirs], found.take(ours), by_score
            _measure(precision[..., -1], recall, label, *boxes, rules)

    in_threads(measure, num_classes)
    return {"precision": precision, "recall": recall}


def _by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The indices of each class, rising."""
    order = np.argsort(labels.astype(np.min_scalar_type(num_classes)), kind="stable")  # few bytes are sorted fast
    return np.split(order, np.bincount(labels, minlength=num_classes).cumsum()[:-1])


@kernel
def _measure(
    precision: np.ndarray,
    recall: np.ndarray,
    label: int,
    objects: Boxes,
    crowd: np.ndarray,
    found: Boxes,
    by_score: np.ndarray,
    rules: _Rules,
) -> None:
    """Fills `precision` `[T, R, K, A]` and `recall` `[T, K, A, M]` of one class, where the range has an object."""
    num_objects, ignore = np.zeros(len(rules.ranges), np.int64), np.empty((len(rules.ranges), len(crowd)), np.bool_)
    for a in range(len(rules.ranges)):
        for g in range(len(crowd)):
            ignore[a, g] = crowd[g] or objects.areas[g] < rules.ranges[a, 0] or objects.areas[g] > rules.ranges[a, 1]
            num_objects[a] += not ignore[a, g]

    verdicts = np.empty((len(rules.ranges), len(rules.thresholds), len(by_score)), np.uint8)
    for a in range(len(rules.ranges)):
        for t in range(len(rules.thresholds)):
            for d in range(len(by_score)):  # until it is matched
                in_range = rules.ranges[a, 0] <= found.areas[d] <= rules.ranges[a, 1]
                verdicts[a, t, d] = WRONG if in_range else LEFT_OUT
    hits = np.zeros((len(rules.ranges), len(rules.thresholds), len(rules.limits)), np.int64)
    end_d = end_g = 0
    while end_d < len(by_score):  # one image after the other
        image, start_d = found.images[end_d], end_d
        while end_d < len(by_score) and found.images[end_d] == image:
            end_d += 1
        while end_g < len(crowd) and objects.images[end_g] < image:
            end_g += 1
        start_g = end_g
        while end_g < len(crowd) and objects.images[end_g] == image:
            end_g += 1
        some, their = slice(start_d, min(end_d, start_d + rules.limits[-1])), slice(start_g, end_g)
        verdicts[:, :, some.stop : end_d] = LEFT_OUT
        if start_g == end_g:
            continue
        iou = np.empty((some.stop - start_d, end_g - start_g))
        _overlap(iou, found.xywh[some], found.areas[some], objects.xywh[their], crowd[their])
        _match(verdicts[:, :, some], hits, iou, crowd[their], ignore[:, their], rules)

    for a in range(len(rules.ranges)):
        for t in range(len(rules.thresholds) if num_objects[a] else 0):
            _curve(precision[t, :, label, a], verdicts[a, t], by_score, num_objects[a], rules.recalls)
            for m in range(len(rules.limits)):
                recall[t, label, a, m] = hits[a, t, m] / num_objects[a]


@kernel
def _overlap(iou: np.ndarray, found: np.ndarray, areas: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> None:
    """Fills `iou` `[D, G]` of one image, of boxes `[D, 4]` and `[G, 4]`; of a crowd, over the area of the detection."""
    iou[:] = 0
    for d in range(len(found)):
        for g in range(len(objects)):
            box1, box2 = found[d], objects[g]
            width = min(box1[2] + box1[0], box2[2] + box2[0]) - max(box1[0], box2[0])
            height = min(box1[3] + box1[1], box2[3] + box2[1]) - max(box1[1], box2[1])
            if width > 0 and height > 0:
                shared = width * height
                iou[d, g] = shared / (areas[d] if crowd[g] else areas[d] + box2[2] * box2[3] - shared)


@kernel
def _match(
    verdicts: np.ndarray,
    hits: np.ndarray,
    iou: np.ndarray,
    crowd: np.ndarray,
    ignore: np.ndarray,
    rules: _Rules,
) -> None:
    """Changes `verdicts` `[A, T, D]` of one image where there is a match, and adds the right ones within each limit.

    hits `[A, T, M]`, iou `[D, G]`, crowd bool `[G]`, ignore bool `[A, G]`
    """
    order, taken = np.empty(len(crowd), np.int64), np.empty(len(crowd), np.bool_)
    for a in range(len(rules.ranges)):
        count = 0
        for last in (False, True):  # the ignored last
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
                    verdicts[a, t, d] = LEFT_OUT if ignore[a, match] else RIGHT
                    for m in range(len(rules.limits)):
                        hits[a, t, m] += not ignore[a, match] and d < rules.limits[m]


@kernel
def _curve(
    precision: np.ndarray, verdicts: np.ndarray, by_score: np.ndarray, num_objects: int, recalls: np.ndarray
) -> None:
    """Fills `precision` `[R]`: the best at each recall or beyond, 0 where it is not reached."""
    best = np.empty(num_objects)  # the precision where a detection is right: elsewhere it is no better
    num_right = num_wrong = 0
    for d in by_score:
        num_wrong += verdicts[d] == WRONG
        if verdicts[d] == RIGHT:
            num_right += 1
            best[num_right - 1] = num_right / (num_wrong + num_right + EPSILON)
    for i in range(num_right - 1, 0, -1):
        best[i - 1] = max(best[i - 1], best[i])
    i = 0
    for r in range(len(recalls)):
        while i < num_right and (i + 1) / num_objects < recalls[r]:
            i += 1
        precision[r] = best[i] if i < num_right else 0.0
