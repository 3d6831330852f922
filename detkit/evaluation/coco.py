"""The COCO metrics of boxes, masks and keypoints, computed by pycocotools or, with the same bits and much sooner, by
`accelerate/coco.py`.

Legend: K classes, A ranges of area, T IoU thresholds, R recalls, M limits on the detections of an image and class.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import get_args

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.config import UserError
from detkit.evaluation.coco_scene import KeypointScene, Scene, build_scene
from detkit.evaluation.evaluator import Evaluator, ProtocolResult, by_class
from detkit.evaluation.protocols import KEYPOINT_DETECTIONS, MAX_DETECTIONS, CocoBackend, Measured
from detkit.evaluation.store import DetectionStore
from detkit.ops.dispatch import attempt
from detkit.structures import Detections, GroundTruth

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LAST_LIMIT = METRICS.index("AR100")  # named after the limit
TITLES: dict[Measured, tuple[str, str]] = {
    "boxes": ("COCO", "IoU"),
    "masks": ("COCO masks", "IoU"),
    "keypoints": ("COCO keypoints", "OKS"),
}
NOT_MEASURED: dict[Measured, str] = {
    "masks": "objects without a mask ignored as crowd in the rectangle of their box",
    "keypoints": "objects without a labelled keypoint ignored",
}
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


class COCOEvaluator(Evaluator):
    """The COCO metrics of what is `measured`; see `coco_metrics`."""

    def __init__(
        self,
        store: DetectionStore,
        *,
        measured: Measured = "boxes",
        backend: CocoBackend = "pycocotools",
        max_detections: int = MAX_DETECTIONS,
    ) -> None:
        super().__init__(store)
        self.measured = measured
        self.backend = backend
        self.max_detections = max_detections if measured != "keypoints" else KEYPOINT_DETECTIONS
        self.sigmas = _sigmas(store) if measured == "keypoints" else ()

    def compute(self) -> ProtocolResult:
        categories = self.store.categories
        metrics, per_class = coco_metrics(
            self.store.ground_truth,
            self.store.in_order(),
            len(categories),
            measured=self.measured,
            sigmas=self.sigmas,
            backend=self.backend,
            max_detections=self.max_detections,
        )
        return ProtocolResult(self._rules(), "AP", metrics, by_class(categories, per_class))

    def _rules(self) -> str:
        limit, most = self.max_detections, max(map(len, self.store.in_order()))
        chosen = self.measured != "keypoints" and limit != MAX_DETECTIONS
        less = f" (no image has more than {most} of all classes)" if chosen and most < limit else ""
        title, overlap = TITLES[self.measured]
        rules = (
            f"{title}, AP over {overlap} 0.50:0.05:0.95 and 101 recalls, {limit} detections an image and class{less}, "
            "ignored as crowd"
        )
        lacking = 0 if self.measured == "boxes" else self.store.num_objects - self.store.num_with(self.measured)
        return f"{rules}, {lacking} {NOT_MEASURED[self.measured]}" if lacking else rules


def _sigmas(store: DetectionStore) -> tuple[float, ...]:
    keypoints = store.categories.keypoints
    names, sigmas = (keypoints.names, keypoints.sigmas) if keypoints else ((), ())
    if not sigmas or len(sigmas) != len(names):
        raise UserError(
            f"protocol coco_keypoints: expected KeypointCategories.sigmas for the {len(names)} keypoints of the data, "
            f"found {len(sigmas)}; give one for each"
        )
    return sigmas


def coco_metrics(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    measured: Measured = "boxes",
    sigmas: Sequence[float] = (),
    backend: CocoBackend = "pycocotools",
    max_detections: int = MAX_DETECTIONS,
) -> tuple[dict[str, float], np.ndarray]:
    """The 12 numbers, 10 of keypoints, by name, and AP of every class, float64 `[K]`; all in [0, 1], nan where there is
    no object.

    `detections[i]` belong to `ground_truth[i]`; at least one image. Ignored objects are crowds: any number of
    detections may match one, and their overlap is the intersection over the area of the detection. So is an object
    without a mask where masks are measured, as the rectangle of its box. One without a labelled keypoint is ignored
    where keypoints are measured. At most `max_detections` of an image and class count, by whose number `AR100` is
    called; where keypoints are measured, 20. Both backends give the same bits; `fast` warns and takes pycocotools where
    its kernels cannot run.

    measured  masks overlap by their pixels; keypoints by their similarity (OKS) for the P spreads `sigmas`
    """
    scene = build_scene(ground_truth, detections, measured, sigmas)
    summary = _curves_of(scene, num_classes, backend, max_detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its table
        summary.summarize()
    precision = summary.eval["precision"][:, :, :, 0, -1]  # [T, R, K] of all areas and as many detections as count
    names: Sequence[str] = KEYPOINT_METRICS
    if measured != "keypoints":
        there = precision[precision > -1]
        summary.stats[0] = there.mean() if len(there) else -1  # pycocotools reads it at a limit of 100, whatever is set
        names = [*METRICS[:LAST_LIMIT], f"AR{max_detections}", *METRICS[LAST_LIMIT + 1 :]]
    numbers, per_class = _absent_to_nan(summary.stats), _absent_to_nan(precision.mean(axis=(0, 1)))
    return dict(zip(names, numbers.tolist(), strict=True)), per_class


def coco_average_precision(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    max_detections: int = MAX_DETECTIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """AP of boxes by class and threshold `[K, T]`, and by class and range of area (small, medium, large) `[K, 3]`.

    The arguments and the rules are those of `coco_metrics`; computed by its `fast` backend.
    """
    scene = build_scene(ground_truth, detections, "boxes")
    summary = _curves_of(scene, num_classes, "fast", max_detections)
    precision = _absent_to_nan(summary.eval["precision"][..., -1])  # [T, R, K, A]
    return precision[..., 0].mean(axis=1).T, precision[..., 1:].mean(axis=(0, 1))


def _curves_of(scene: Scene, num_classes: int, backend: CocoBackend, max_detections: int) -> COCOeval:
    """The evaluation of pycocotools with its `eval`, the curves: `precision` `[T, R, K, A, M]` and `recall`
    `[T, K, A, M]`, among other entries; see `coco_metrics`."""
    if backend not in get_args(CocoBackend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(CocoBackend))}")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        if backend == "fast":
            summary = _evaluation(scene, max_detections)
            summary.eval = attempt("compute_curves", scene, num_classes, summary.params)
            if summary.eval is not None:
                return summary
            warnings.warn(
                "eval.coco_backend: fast is compiled by numba, which is missing or switched off here; "
                "pycocotools computes the same numbers in much more time",
                RuntimeWarning,
                stacklevel=3,
            )
        summary = _evaluation(scene, max_detections, *scene.to_coco(num_classes))
        summary.evaluate()
        summary.accumulate()
    return summary


def _evaluation(scene: Scene, max_detections: int, *data: COCO) -> COCOeval:
    evaluation = COCOeval(*data, iouType=scene.iou_type)
    if isinstance(scene, KeypointScene):
        evaluation.params.kpt_oks_sigmas = scene.sigmas
    else:
        evaluation.params.maxDets[-1] = max_detections
    return evaluation


def _absent_to_nan(values: np.ndarray) -> np.ndarray:
    """Replaces the -1 that pycocotools gives where there is no object."""
    return np.where(values < 0, np.nan, values)
