"""What lies behind the scores of a detector on a data set: curves, confusions, calibration, errors, and examples.

Legend: K classes, T IoU thresholds. Numbers are in [0, 1], nan where there is no object that counts. Detections are
measured as COCO does (`evaluation/matching.py`): ignored objects are neither right nor wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.evaluation.coco import coco_average_precision
from detkit.evaluation.confusion import Confusion, confusion
from detkit.evaluation.curves import Calibration, ClassCurve, best_score, calibration, class_curves
from detkit.evaluation.error_split import ErrorKind, ErrorSplit, classify_errors, split_errors
from detkit.evaluation.examples import Example, false_positives, loose_hits, missed_objects
from detkit.evaluation.matching import IOU_THRESHOLDS, match_detections
from detkit.evaluation.protocols import MAX_DETECTIONS
from detkit.evaluation.store import DetectionStore

__all__ = [
    "IOU_THRESHOLDS",
    "SIZES",
    "Analysis",
    "Calibration",
    "ClassCurve",
    "Confusion",
    "ErrorKind",
    "ErrorSplit",
    "Example",
    "analyse",
]

SIZES = ("small", "medium", "large")  # COCO's ranges of area: below 32^2 px, below 96^2 px, larger


@dataclass(frozen=True, eq=False)
class Analysis:
    """
    curves           of each class that has an object that counts, by its name
    ap_by_iou        COCO's AP, `[K, T]` for `IOU_THRESHOLDS`
    ap_by_size       COCO's AP, mean over the thresholds, `[K, 3]` for `SIZES`
    confusion        at the score threshold that is best for F1 over all classes
    calibration      reliability of the scores
    errors           after TIDE
    false_positives  wrong detections, highest score first
    missed           objects that no detection of their class matches, largest first
    loose            hits with the lowest IoU first
    """

    curves: dict[str, ClassCurve]
    ap_by_iou: np.ndarray
    ap_by_size: np.ndarray
    confusion: Confusion
    calibration: Calibration
    errors: ErrorSplit
    false_positives: list[Example]
    missed: list[Example]
    loose: list[Example]


def analyse(store: DetectionStore, max_detections: int = MAX_DETECTIONS) -> Analysis:
    """Analyses the detections of a data set, of an image and class the best `max_detections`.

    Raises ValueError unless they were reported for every image.
    """
    detections, num_classes = store.in_order(), len(store.categories)
    matches = match_detections(store.ground_truth, detections, max_detections)
    errors = classify_errors(matches)
    ap_by_iou, ap_by_size = coco_average_precision(
        store.ground_truth, detections, num_classes, max_detections=max_detections
    )
    return Analysis(
        curves={store.categories.names[label]: curve for label, curve in class_curves(matches, num_classes).items()},
        ap_by_iou=ap_by_iou,
        ap_by_size=ap_by_size,
        confusion=confusion(matches, num_classes, best_score(matches)),
        calibration=calibration(matches),
        errors=split_errors(matches, errors, num_classes),
        false_positives=false_positives(matches, errors),
        missed=missed_objects(matches, errors),
        loose=loose_hits(matches),
    )
