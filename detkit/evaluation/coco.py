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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation.evaluator import Evaluator, ProtocolResult, by_class
from detkit.evaluation.flat_boxes import FlatBoxes, flat_detections, flat_objects, sort_key
from detkit.evaluation.protocols import MAX_DETECTIONS, CocoBackend
from detkit.evaluation.store import DetectionStore
from detkit.ops.dispatch import attempt
from detkit.structures import Detections, GroundTruth

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LAST_LIMIT = METRICS.index("AR100")  # named after the limit


class COCOEvaluator(Evaluator):
    """The COCO box metrics; see `coco_metrics`."""

    def __init__(
        self,
        store: DetectionStore,
        *,
        backend: CocoBackend = "pycocotools",
        max_detections: int = MAX_DETECTIONS,
    ) -> None:
        super().__init__(store)
        self.backend = backend
        self.max_detections = max_detections

    def compute(self) -> ProtocolResult:
        categories, detections, limit = self.store.categories, self.store.in_order(), self.max_detections
        metrics, per_class = coco_metrics(
            self.store.ground_truth, detections, len(categories), backend=self.backend, max_detections=limit
        )
        most = max(map(len, detections))
        less = f" (no image has more than {most} of all classes)" if limit != MAX_DETECTIONS and most < limit else ""
        rules = (
            f"COCO, AP over IoU 0.50:0.05:0.95 and 101 recalls, {limit} detections an image and class{less}, ignored "
            "as crowd"
        )
        return ProtocolResult(rules, "AP", metrics, by_class(categories, per_class))


def coco_metrics(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    backend: CocoBackend = "pycocotools",
    max_detections: int = MAX_DETECTIONS,
) -> tuple[dict[str, float], np.ndarray]:
    """The 12 numbers by name, and AP of every class, float64 `[K]`; all in [0, 1], nan where there is no object.

    `detections[i]` belong to `ground_truth[i]`; at least one image. Ignored objects are crowds: any number of
    detections may match one, and their overlap is the intersection over the area of the detection. At most
    `max_detections` of an image and class count, by whose number `AR100` is called. Both backends give the same bits;
    `fast` warns and takes pycocotools where its kernels cannot run.
    """
    summary = _curves_of(ground_truth, detections, num_classes, backend=backend, max_detections=max_detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its table
        summary.summarize()
    precision = summary.eval["precision"][:, :, :, 0, -1]  # [T, R, K] of all areas and as many detections as count
    there = precision[precision > -1]
    summary.stats[0] = there.mean() if len(there) else -1  # pycocotools reads it at a limit of 100, whatever is set
    numbers, per_class = _absent_to_nan(summary.stats), _absent_to_nan(precision.mean(axis=(0, 1)))
    names = [*METRICS[:LAST_LIMIT], f"AR{max_detections}", *METRICS[LAST_LIMIT + 1 :]]
    return dict(zip(names, numbers.tolist(), strict=True)), per_class


def coco_average_precision(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    max_detections: int = MAX_DETECTIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """AP by class and threshold `[K, T]`, and by class and range of area (small, medium, large) `[K, 3]`.

    The arguments and the rules are those of `coco_metrics`; computed by its `fast` backend.
    """
    summary = _curves_of(ground_truth, detections, num_classes, backend="fast", max_detections=max_detections)
    precision = _absent_to_nan(summary.eval["precision"][..., -1])  # [T, R, K, A]
    return precision[..., 0].mean(axis=1).T, precision[..., 1:].mean(axis=(0, 1))


def _curves_of(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    backend: CocoBackend,
    max_detections: int,
) -> COCOeval:
    """The evaluation of pycocotools with its `eval`, the curves; see `coco_metrics`."""
    if backend not in get_args(CocoBackend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(CocoBackend))}")
    pairs = sorted(zip(ground_truth, detections, strict=True), key=lambda pair: sort_key(pair[0].image_id))
    objects, crowd = flat_objects([image.objects for image, _ in pairs])
    flat, scores = flat_detections([image_detections for _, image_detections in pairs])

    summary = COCOeval(iouType="bbox")
    summary.params.maxDets[-1] = max_detections
    summary.eval = None
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        if backend == "fast":
            summary.eval = attempt("compute_curves", objects, crowd, flat, scores, num_classes, summary.params)
            if summary.eval is None:
                warnings.warn(
                    "eval.coco_backend: fast is compiled by numba, which is missing or switched off here; "
                    "pycocotools computes the same numbers in a hundred times the time",
                    RuntimeWarning,
                    stacklevel=3,
                )
        if summary.eval is None:
            summary.eval = _pycocotools_curves(objects, crowd, flat, scores, len(pairs), num_classes, max_detections)
    return summary


def _pycocotools_curves(
    objects: FlatBoxes,
    crowd: np.ndarray,
    detections: FlatBoxes,
    scores: np.ndarray,
    num_images: int,
    num_classes: int,
    max_detections: int,
) -> dict[str, np.ndarray]:
    """`precision` `[T, R, K, A, M]` and `recall` `[T, K, A, M]`, among other entries."""
    annotated = _coco(_annotations(objects, iscrowd=crowd.astype(np.int64)), num_images, num_classes)
    detected = _coco(_annotations(detections, score=scores), num_images, num_classes)
    evaluation = COCOeval(annotated, detected, iouType="bbox")
    evaluation.params.maxDets[-1] = max_detections
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


def _absent_to_nan(values: np.ndarray) -> np.ndarray:
    """Replaces the -1 that pycocotools gives where there is no object."""
    return np.where(values < 0, np.nan, values)
