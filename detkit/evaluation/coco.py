"""The COCO box metrics, computed by pycocotools.

Boxes become COCO's xywh here and in `data/coco.py`, nowhere else. pycocotools takes an object with id 0 for unmatched
and orders equal scores by image id, so it never sees the data set's own ids: everything is numbered from 1.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.structures import Detections, GroundTruth, ImageId

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_metrics(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], num_classes: int
) -> tuple[dict[str, float], np.ndarray]:
    """The 12 numbers by name, and AP of every class, float64 `[K]`; all in [0, 1], nan where there is no object.

    `detections[i]` are those of `ground_truth[i]`; at least one image. Ignored objects are crowds: any number of
    detections may fall on one, measured by intersection over the area of the detection. At most 100 detections an image
    and class count.
    """
    pairs = sorted(zip(ground_truth, detections, strict=True), key=lambda pair: _sort_key(pair[0].image_id))
    objects = [
        {"image_id": number, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(ignore)}
        for number, (image, _) in enumerate(pairs, start=1)
        for box, label, area, ignore in zip(
            to_xywh(image.boxes), image.labels.tolist(), image.area.tolist(), image.ignore.tolist(), strict=True
        )
    ]
    answers = [
        {"image_id": number, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "score": score}
        for number, (_, found) in enumerate(pairs, start=1)
        for box, label, score in zip(
            to_xywh(found.boxes.numpy()), found.labels.tolist(), found.scores.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        evaluation = COCOeval(
            _coco(objects, len(pairs), num_classes), _coco(answers, len(pairs), num_classes), iouType="bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, K] of all areas and 100 detections
    numbers, per_class = _absent_to_nan(evaluation.stats), _absent_to_nan(precision.mean(axis=(0, 1)))
    return dict(zip(METRICS, numbers.tolist(), strict=True)), per_class


def to_xywh(boxes: np.ndarray) -> list[list[float]]:
    """COCO boxes of xyxy `[N, 4]`, rounded to a thousandth of a pixel.

    float32 corners hold little more than that, and it gives COCO's two decimals back exactly: an annotated width of
    348.26 would else return as 348.2600097656 and could fall on the other side of a threshold.
    """
    corners = boxes.astype(np.float64)
    rounded: list[list[float]] = np.round(np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), 3).tolist()
    return rounded


def _coco(annotations: list[dict[str, Any]], num_images: int, num_classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, num_images + 1)],
        "categories": [{"id": number} for number in range(1, num_classes + 1)],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _sort_key(image_id: ImageId) -> tuple[bool, ImageId]:
    """Numbers by value, then strings by letter."""
    return isinstance(image_id, str), image_id


def _absent_to_nan(values: np.ndarray) -> np.ndarray:
    """pycocotools says -1 where there is no object."""
    return np.where(values < 0, np.nan, values)
