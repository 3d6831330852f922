"""Detections and objects that are worth looking at: the surest errors, the largest misses, the loosest hits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.evaluation.error_split import KINDS, ErrorKind, Errors
from detkit.evaluation.matching import Matches


@dataclass(frozen=True)
class Example:
    """A detection, an object, or both, that is worth looking at.

    image      index into the images of the store
    label      the class of the detection, or of the object that has none
    detection  index into the detections of the image; None for an object that is missed
    target     index into the objects of the image; None for a detection that matches none. Of a wrong detection it is
               the object that the error is about (`error_split.Errors`)
    score      of the detection
    iou        of the two; None if one is missing
    error      its kind of error; None for a hit. Of an object without a detection "missed", or "class" or
               "localisation" if mending such an error would detect it
    """

    image: int
    label: int
    detection: int | None
    target: int | None
    score: float | None
    iou: float | None
    error: ErrorKind | None


def false_positives(matches: Matches, errors: Errors) -> list[Example]:
    """Wrong detections, highest score first."""
    rows = matches.order[errors.kinds[matches.order] >= 0]
    return _of_detections(matches, rows, errors.targets[rows], errors.iou[rows], errors.kinds[rows])


def loose_hits(matches: Matches) -> list[Example]:
    """Hits at IoU 0.5, the lowest IoU first."""
    hits, overlaps = matches.hits(), matches.overlaps
    met = matches.matched[0]
    pairs = overlaps.take(hits[overlaps.detections] & (met[overlaps.detections] == overlaps.objects))
    pairs = pairs.take(np.argsort(pairs.iou, kind="stable"))
    return _of_detections(matches, pairs.detections, pairs.objects, pairs.iou, np.full(len(pairs.iou), -1))


def missed_objects(matches: Matches, errors: Errors) -> list[Example]:
    """Objects that no detection of their class matches at IoU 0.5, the largest first."""
    rows = np.flatnonzero(matches.undetected())
    rows = rows[np.argsort(-matches.object_areas[rows], kind="stable")]
    kinds = np.full(len(matches.ignore), KINDS.index("missed"))
    kinds[errors.targets[errors.mends]] = errors.kinds[errors.mends]
    columns = matches.object_images[rows], matches.object_labels[rows], matches.object_rows[rows], kinds[rows]
    return [
        Example(image, label, None, target, None, None, KINDS[kind])
        for image, label, target, kind in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _of_detections(
    matches: Matches, rows: np.ndarray, targets: np.ndarray, iou: np.ndarray, kinds: np.ndarray
) -> list[Example]:
    """An example of each detection in `rows` with its object (-1 for none), their IoU, and its kind (-1 for a hit)."""
    object_rows = np.append(matches.object_rows, -1)[targets]
    columns = (
        matches.images[rows],
        matches.labels[rows],
        matches.rows[rows],
        object_rows,
        matches.scores[rows],
        iou,
        kinds,
    )
    return [
        Example(
            image,
            label,
            detection,
            None if target < 0 else target,
            score,
            None if target < 0 else overlap,
            None if kind < 0 else KINDS[kind],
        )
        for image, label, detection, target, score, overlap, kind in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]
