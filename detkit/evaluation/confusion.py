"""Which class is taken for which, with background.

Legend: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.evaluation.matching import Matches

IOU_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which class an object is taken for, whatever class the detections have that match it.

    counts           int64 `[K + 1, K + 1]`: rows are the class of the object, columns that of the detection. The last
                     row is background: detections that match no object; the last column objects that none matches
    score_threshold  detections that score less are not counted
    iou_threshold    those that overlap less do not match
    """

    counts: np.ndarray
    score_threshold: float
    iou_threshold: float


def confusion(matches: Matches, num_classes: int, score_threshold: float) -> Confusion:
    """Counts which match, whatever the classes.

    Of all pairs of a detection that scores at least the threshold and an object that is not ignored, whose IoU is at
    least 0.5, the one with the largest IoU is joined first, and neither is joined again; of equal pairs the one with
    the higher score. A detection that then has no object is left out if an ignored object, of whatever class, covers
    at least half of it; else it is background.
    """
    overlaps, counted = matches.overlaps, matches.scores >= score_threshold
    pairs = overlaps.take((overlaps.iou >= IOU_THRESHOLD) & counted[overlaps.detections])
    spared = matches.ignore[pairs.objects]
    in_ignored = np.zeros(len(counted), np.bool_)
    in_ignored[pairs.detections[spared]] = True
    pairs = pairs.take(~spared)
    pairs = pairs.take(np.lexsort((pairs.objects, -matches.scores[pairs.detections], -pairs.iou)))

    joined, taken = np.full(len(counted), -1), np.zeros(len(matches.ignore), np.bool_)
    for detection, target in zip(pairs.detections.tolist(), pairs.objects.tolist(), strict=True):
        if joined[detection] < 0 and not taken[target]:
            joined[detection], taken[target] = target, True

    met, alone = joined >= 0, counted & (joined < 0) & ~in_ignored
    missed = ~taken & ~matches.ignore
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(counts, (matches.object_labels[joined[met]], matches.labels[met]), 1)
    counts[-1, :-1] = np.bincount(matches.labels[alone], minlength=num_classes)
    counts[:-1, -1] = np.bincount(matches.object_labels[missed], minlength=num_classes)
    return Confusion(counts, score_threshold, IOU_THRESHOLD)
