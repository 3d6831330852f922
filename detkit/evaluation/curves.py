"""Precision and recall over the score, the score that is best for F1, and how far scores can be believed.

Legend: D detections and K classes of a data set, C distinct scores, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.evaluation.matching import Matches

NUM_BINS = 10
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's, by its own arithmetic


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
class Calibration:
    """How often detections of a score are right (IoU 0.5), all classes together.

    edges      `[B + 1]` of the scores, rising from 0 to 1; a bin has its lower edge, the last one both
    counts     int64 `[B]`
    scores     `[B]`: mean score of the detections of a bin, nan without any
    precision  `[B]`: share of them that is right
    error      expected calibration error: mean |score - precision| over the bins, weighted by their counts
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """

    edges: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    error: float


def average_precision(true_positive: np.ndarray, num_objects: int) -> float:
    """COCO's AP: mean over 101 recalls of the best precision there or beyond, 0 where that recall is not reached.

    `true_positive` bool `[D]`, best score first, without ignored detections. At least one object.
    """
    num_true = np.cumsum(true_positive)
    precision = num_true / np.arange(1, len(true_positive) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(num_true / num_objects, RECALL_POINTS)].mean())


def class_curves(matches: Matches, num_classes: int) -> dict[int, ClassCurve]:
    """The curve of each class that has an object that counts, by its label."""
    num_objects = matches.num_objects(num_classes)
    order = matches.order[~matches.ignored()[matches.order]]
    hits, labels = matches.hits()[order], matches.labels[order]
    return {
        label: _curve(matches.scores[order[labels == label]], hits[labels == label], num_objects[label])
        for label in np.flatnonzero(num_objects).tolist()
    }


def best_score(matches: Matches) -> float:
    """The score threshold with the best F1 of all classes together (micro-F1) at IoU 0.5, the highest of equal ones.

    0, which lets every detection pass, where none is right.
    """
    order = matches.order[~matches.ignored()[matches.order]]
    hits = matches.hits()[order]
    if not hits.any():
        return 0.0
    curve = _curve(matches.scores[order], hits, int(np.count_nonzero(~matches.ignore)))
    return float(curve.scores[curve.f1.argmax()])


def _curve(scores: np.ndarray, hits: np.ndarray, num_objects: int) -> ClassCurve:
    """From the scores `[D]`, falling, and whether each detection is right, bool `[D]`."""
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # the last detection of each score
    num_true = np.cumsum(hits)[last]
    return ClassCurve(scores[last], num_true / (last + 1), num_true / num_objects)


def calibration(matches: Matches) -> Calibration:
    """The reliability of the scores in ten equal bins. The error is nan without a detection."""
    counted = ~matches.ignored()
    scores, hits = matches.scores[counted].astype(np.float64), matches.hits()[counted]
    edges = np.linspace(0, 1, NUM_BINS + 1)
    bins = np.searchsorted(edges[1:-1], scores, side="right")
    counts, score_sums, num_true = (
        np.bincount(bins, weights, minlength=NUM_BINS) for weights in (None, scores, hits.astype(np.float64))
    )
    mean_scores, precision = (
        np.divide(sums, counts, out=np.full(NUM_BINS, np.nan), where=counts > 0) for sums in (score_sums, num_true)
    )
    error = float(np.abs(score_sums - num_true).sum() / len(scores)) if len(scores) else float("nan")
    return Calibration(edges, counts, mean_scores, precision, error)
