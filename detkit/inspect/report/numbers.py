"""The numbers of an analysis as rows and charts of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.analysis import Analysis, Confusion, ErrorKind, ErrorSplit
from detkit.evaluation.evaluator import Evaluation
from detkit.inspect.report.charts import Chart, line_chart

MAX_CONFUSED = 100  # classes of the matrix: a page with the thousand of LVIS would have a million cells
MAX_PAIRS = 6  # of classes that are confused most

ERROR_TEXTS: dict[ErrorKind, str] = {
    "class": "right place, wrong class",
    "localisation": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "an object detected once more",
    "background": "no object there",
    "missed": "objects without any detection",
}


@dataclass(frozen=True)
class ClassRow:
    """The scores of one class; nan where there is no object that counts.

    by_iou, by_size             COCO's AP
    threshold                   the score at which F1 is best; nan without a detection
    f1, precision, recall       there
    """

    name: str
    objects: int
    ap: float
    by_iou: Sequence[float]
    by_size: Sequence[float]
    threshold: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ConfusionTable:
    """
    names    of the rows and columns, background last
    cells    count, and its share of the row, in [0, 1]
    pairs    (object, detection, count) of the most frequent confusions, background and misses left out
    omitted  classes that are not in the table, because they are confused least
    """

    names: Sequence[str]
    cells: Sequence[Sequence[tuple[int, float]]]
    pairs: Sequence[tuple[str, str, int]]
    omitted: int


@dataclass(frozen=True)
class ErrorRow:
    kind: str
    text: str
    count: int | None
    cost: float


def class_rows(analysis: Analysis, evaluation: Evaluation) -> list[ClassRow]:
    """One of each class, in the order of the data set."""
    rows = []
    for label, (name, objects) in enumerate(evaluation.num_objects.items()):
        curve = analysis.curves.get(name)
        best = curve.best if curve else None
        at_best: tuple[float, ...] = (np.nan,) * 4
        if curve is not None and best is not None:
            columns = (curve.scores, curve.f1, curve.precision, curve.recall)
            at_best = tuple(float(column[best]) for column in columns)
        by_iou = analysis.ap_by_iou[label].tolist()
        by_size = analysis.ap_by_size[label].tolist()
        rows.append(ClassRow(name, objects, float(np.mean(by_iou)), by_iou, by_size, *at_best))
    return rows


def curve_charts(analysis: Analysis) -> tuple[Chart, Chart]:
    """Precision over recall, and F1 over the score threshold: a line for each class."""
    curves, unit = analysis.curves, (0.0, 1.0)
    precision = {name: (curve.recall, curve.precision) for name, curve in curves.items()}
    f1 = {name: (curve.scores, curve.f1) for name, curve in curves.items()}
    return (
        line_chart("Precision and recall", ("recall", "precision"), precision, x_range=unit, y_range=unit),
        line_chart("F1 by score threshold", ("score threshold", "F1"), f1, x_range=unit, y_range=unit),
    )


def calibration_chart(analysis: Analysis) -> Chart:
    """Precision of the detections of a bin over their mean score; a perfect detector is on the diagonal."""
    calibration, unit = analysis.calibration, (0.0, 1.0)
    series = {
        "perfect": (np.array([0.0, 1.0]), np.array([0.0, 1.0])),
        "detector": (calibration.scores, calibration.precision),
    }
    return line_chart("Reliability", ("mean score", "precision"), series, x_range=unit, y_range=unit)


def confusion_table(confusion: Confusion, names: Sequence[str]) -> ConfusionTable:
    """With at most `MAX_CONFUSED` classes: those with the most confusions."""
    counts, num_classes = confusion.counts, len(names)
    wrong = counts - np.diag(np.diag(counts))
    by_class = wrong.sum(axis=0)[:num_classes] + wrong.sum(axis=1)[:num_classes]
    shown = np.sort(np.argsort(-by_class, kind="stable")[:MAX_CONFUSED])
    rows = [*shown.tolist(), num_classes]
    totals = np.maximum(counts.sum(axis=1), 1)
    cells = [[(int(counts[row, column]), float(counts[row, column] / totals[row])) for column in rows] for row in rows]
    between = wrong[:num_classes, :num_classes]
    order = np.argsort(-between, axis=None, kind="stable")[:MAX_PAIRS]
    places = [divmod(int(index), num_classes) for index in order]
    pairs = [(names[row], names[column], int(between[row, column])) for row, column in places if between[row, column]]
    return ConfusionTable([*(names[row] for row in shown), "background"], cells, pairs, num_classes - len(shown))


def error_rows(errors: ErrorSplit) -> list[ErrorRow]:
    """The kinds of errors, and the two sums."""
    rows = [ErrorRow(kind, text, errors.counts[kind], errors.costs[kind]) for kind, text in ERROR_TEXTS.items()]
    return [
        *rows,
        ErrorRow("all wrong detections", "without any of them", None, errors.false_positives),
        ErrorRow("all missed objects", "without any of them", None, errors.false_negatives),
    ]
