"""The COCO box metrics, computed by pycocotools or, with the same bits in a hundredth of the time, by
`accelerate/coco.py`.

Legend: K classes, A ranges of area, T IoU thresholds, R recalls, M limits on the detections of an image and class.
pycocotools treats an object with the id 0 as unmatched, and it orders detections of equal score by the id of their
image. Images, classes and objects are therefore numbered from 1 here, whatever ids the data set has.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation.evaluator import Evaluator, ProtocolResult, by_class
from detkit.evaluation.flat_boxes import FlatBoxes
from detkit.evaluation.protocols import CocoBackend
from detkit.evaluation.store import DetectionStore
from detkit.ops.dispatch import attempt
from detkit.structures import Detections, GroundTruth, ImageId, Objects

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class COCOEvaluator(Evaluator):
    """The COCO box metrics; see `coco_metrics`."""

    def __init__(self, store: DetectionStore, *, backend: CocoBackend = "pycocotools") -> None:
        super().__init__(store)
        self.backend = backend

    def compute(self) -> ProtocolResult:
        categories = self.store.categories
        metrics, per_class = coco_metrics(
            self.store.ground_truth, self.store.in_order(), len(categories), backend=self.backend
        )
        rules = "COCO, AP over IoU 0.50:0.05:0.95 and 101 recalls, 100 detections an image and class, ignored as crowd"
        return ProtocolResult(rules, "AP", metrics, by_class(categories, per_class))


def coco_metrics(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    backend: CocoBackend = "pycocotools",
) -> tuple[dict[str, float], np.ndarray]:
    """The 12 numbers by name, and AP of every class, float64 `[K]`; all in [0, 1], nan where there is no object.

    `detections[i]` belong to `ground_truth[i]`; at least one image. Ignored objects are crowds: any number of
    detections may match one, and their overlap is the intersection over the area of the detection. At most 100
    detections of an image and class count. Both backends give the same bits; `fast` warns and takes
    pycocotools where its kernels cannot run.
    """
    if backend not in get_args(CocoBackend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(CocoBackend))}")
    pairs = sorted(zip(ground_truth, detections, strict=True), key=lambda pair: _sort_key(pair[0].image_id))
    objects, crowd = _flat_objects([image.objects for image, _ in pairs])
    flat_detections, scores = _flat_detections([image_detections for _, image_detections in pairs])

    summary = COCOeval(iouType="bbox")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its table
        summary.eval = None
        if backend == "fast":
            flat = (objects, crowd, flat_detections, scores, num_classes)
            summary.eval = attempt("compute_curves", *flat, summary.params)
            if summary.eval is None:
                warnings.warn(
                    "eval.coco_backend: fast is compiled by numba, which is missing or switched off here; "
                    "pycocotools computes the same numbers in a hundred times the time",
                    RuntimeWarning,
                    stacklevel=2,
                )
        if summary.eval is None:
            summary.eval = _pycocotools_curves(objects, crowd, flat_detections, scores, len(pairs), num_classes)
        summary.summarize()
    precision = summary.eval["precision"][:, :, :, 0, -1]  # [T, R, K] of all areas and at most 100 detections
    numbers, per_class = _absent_to_nan(summary.stats), _absent_to_nan(precision.mean(axis=(0, 1)))
    return dict(zip(METRICS, numbers.tolist(), strict=True)), per_class


def _flat_objects(images: Sequence[Objects[np.ndarray]]) -> tuple[FlatBoxes, np.ndarray]:
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


def _flat_detections(images: Sequence[Detections]) -> tuple[FlatBoxes, np.ndarray]:
    """The detections of all images and their scores, float32 `[N]`."""
    boxes, labels, scores = (
        torch.cat([getattr(detections, name) for detections in images]).numpy()
        for name in ("boxes", "labels", "scores")
    )
    return FlatBoxes.of_corners(list(map(len, images)), boxes, labels), scores


def _pycocotools_curves(
    objects: FlatBoxes,
    crowd: np.ndarray,
    detections: FlatBoxes,
    scores: np.ndarray,
    num_images: int,
    num_classes: int,
) -> dict[str, np.ndarray]:
    """`precision` `[T, R, K, A, M]` and `recall` `[T, K, A, M]`, among other entries."""
    annotated = _coco(_annotations(objects, iscrowd=crowd.astype(np.int64)), num_images, num_classes)
    detected = _coco(_annotations(detections, score=scores), num_images, num_classes)
    evaluation = COCOeval(annotated, detected, iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    curves: dict[str, np.ndarray] = evaluation.eval
    return curves


def _annotations(boxes: FlatBoxes, **extra: np.ndarray) -> list[dict[str, Any]]:
    """A COCO annotation of each box, numbered from 1, with the columns `extra` as further fields."""
    columns = {"image_id": boxes.images + 1, "category_id": boxes.labels + 1, "bbox": boxes.xywh, "area": boxes.areas}
    columns |= extra
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"id": number, **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows, start=1)]


def _coco(annotations: list[dict[str, Any]], num_images: int, num_classes: int) -> COCO:
    """A data set of pycocotools in memory."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, num_images + 1)],
        "categories": [{"id": number} for number in range(1, num_classes + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _sort_key(image_id: ImageId) -> tuple[bool, ImageId]:
    """Orders numbers by value, and after them strings by their letters."""
    return isinstance(image_id, str), image_id


def _absent_to_nan(values: np.ndarray) -> np.ndarray:
    """Replaces the -1 that pycocotools gives where there is no object."""
    return np.where(values < 0, np.nan, values)
