"""What lies behind the scores of a detector on a data set: curves, confusions, calibration, errors, and examples.

Legend: K classes, T IoU thresholds, C distinct scores of a class, B bins. Numbers are in [0, 1], nan where there is no
object that counts. Detections are measured as COCO does (`evaluation.coco`): ignored objects are neither right nor
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # COCO's
SIZES = ("small", "medium", "large")  # COCO's ranges of area: below 32^2 px, below 96^2 px, larger

ErrorKind = Literal["class", "localisation", "both", "duplicate", "background", "missed"]


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """Precision and recall of one class at IoU 0.5, if only detections that score at least as much are taken.

    scores     `[C]`: every score that occurs, falling
    precision  `[C]`
    recall     `[C]`
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """`[C]`: the harmonic mean of precision and recall, 0 where both are 0."""
        total: np.ndarray = self.precision + self.recall
        f1: np.ndarray = np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)
        return f1

    @property
    def best(self) -> int | None:
        """The index at which F1 is the largest; of equal ones the highest score. None without a detection."""
        return int(self.f1.argmax()) if len(self.scores) else None


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which class an object is taken for, whatever class the detections have that meet it.

    counts           int64 `[K + 1, K + 1]`: rows are the class of the object, columns that of the detection. The last
                     row is background: detections that meet no object; the last column objects that none meets
    score_threshold  detections that score less are not counted
    iou_threshold    those that overlap less do not meet
    """

    counts: np.ndarray
    score_threshold: float
    iou_threshold: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often detections of a score are right (IoU 0.5), all classes together.

    edges      `[B + 1]` of the scores, rising from 0 to 1
    counts     int64 `[B]`
    scores     `[B]`: mean score of the detections of a bin, nan without any
    precision  `[B]`: share of them that is right
    error      expected calibration error: mean |score - precision| over the bins, weighted by their counts
    """

    edges: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    error: float


@dataclass(frozen=True)
class ErrorSplit:
    """What keeps AP below 1: the errors by kind, and the AP that mending all of one kind alone would add.

    ap               mean AP at the threshold of a hit
    counts           errors by kind
    costs            AP by kind
    false_positives  AP that dropping every wrong detection would add
    false_negatives  AP that forgetting every object without a detection would add
    Source: Bolya et al., TIDE, ECCV 2020, arXiv 2008.08115.
    """

    ap: float
    counts: dict[ErrorKind, int]
    costs: dict[ErrorKind, float]
    false_positives: float
    false_negatives: float


@dataclass(frozen=True)
class Example:
    """A detection, an object, or both, that is worth looking at.

    image      index into the images of the store
    label      the class of the detection, or of the object that has none
    detection  index into the detections of the image; None for an object that is missed
    target     index into the objects of the image; None for a detection that meets none
    score      of the detection
    iou        of the two; None if one is missing
    error      its kind of error; None for a hit
    """

    image: int
    label: int
    detection: int | None
    target: int | None
    score: float | None
    iou: float | None
    error: ErrorKind | None


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
    missed           objects that no detection of their class meets, largest first
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
