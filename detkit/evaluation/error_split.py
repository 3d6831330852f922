"""What is wrong with detections, and the AP that each kind of error costs, after TIDE.

Legend: D detections, G objects and K classes of a data set.
Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, arXiv 2008.08115,
sections 2 and 3. Where the paper is silent (which kind comes first, which of several errors an object mends), its
program `tidecv` is followed. Four rules are COCO's instead, so that AP is the AP50 of `evaluation/coco.py`:

* AP is a mean over the classes that have an object that counts. `tidecv` has a class that is only detected in its mean,
  with AP 0, until its last detection is mended away, which changes what the mean is of.
* A detection that matches an ignored object is no error. `tidecv` leaves it out of AP, but calls it an error and may
  mend it into a hit.
* Equal scores have one order throughout, and a hundred detections of an image count for each class, not for all.
* The points of recall are COCO's, of which 10 lie a rounding above k / 100, which `tidecv` takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from detkit.evaluation.curves import average_precision
from detkit.evaluation.matching import Matches, Overlaps

ErrorKind = Literal["class", "localisation", "both", "duplicate", "background", "missed"]
KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
BACKGROUND_IOU, FOREGROUND_IOU = 0.1, 0.5


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


@dataclass(frozen=True, eq=False)
class Errors:
    """The kind of every error.

    kinds     int64 `[D]`: index into `KINDS`, -1 for a hit and for a detection that matches an ignored object
    targets   int64 `[D]`: of an error the object that it is about: that of its class for localisation and duplicate, of
              another one for class, else the one that it overlaps most. -1 for none
    iou       float64 `[D]`: with that object
    mends     bool `[D]`: whether mending the class or the box makes a hit of the error, as its object has no detection
              and no such error of a higher score
    missed    bool `[G]`: objects that count, without a detection, and without an error that mends that
    """

    kinds: np.ndarray
    targets: np.ndarray
    iou: np.ndarray
    mends: np.ndarray
    missed: np.ndarray


def classify_errors(matches: Matches) -> Errors:
    """The kind of every wrong detection and of every object without one.

    With the largest IoU of a wrong detection with objects that count, of its own class and of others, the first that
    holds: localisation, 0.1 <= own <= 0.5; class, others >= 0.5; duplicate, own >= 0.5; background, both <= 0.1;
    else both.
    """
    num_detections = len(matches.scores)
    overlaps = matches.overlaps.take(~matches.ignore[matches.overlaps.objects])
    own = matches.labels[overlaps.detections] == matches.object_labels[overlaps.objects]
    own_iou, own_target = _best(overlaps.take(own), num_detections)
    other_iou, other_target = _best(overlaps.take(~own), num_detections)
    any_iou, any_target = _best(overlaps, num_detections)
    wrong = matches.matched[0] < 0
    rules = {
        "localisation": (own_iou >= BACKGROUND_IOU) & (own_iou <= FOREGROUND_IOU),
        "class": other_iou >= FOREGROUND_IOU,
        "duplicate": own_iou >= FOREGROUND_IOU,
        "background": any_iou <= BACKGROUND_IOU,
        "both": wrong,
    }
    kinds = np.where(wrong, np.select(list(rules.values()), list(map(KINDS.index, rules)), -1), -1)
    of_own, of_other = np.isin(kinds, _codes("localisation", "duplicate")), kinds == KINDS.index("class")
    targets = np.select([~wrong, of_own, of_other], [-1, own_target, other_target], any_target)
    iou = np.select([~wrong, of_own, of_other], [0.0, own_iou, other_iou], any_iou)

    undetected = matches.undetected()
    mendable = np.flatnonzero(np.isin(kinds, _codes("class", "localisation")))
    mendable = mendable[undetected[targets[mendable]]]
    mends, missed = np.zeros(num_detections, np.bool_), undetected.copy()
    # The detections of an image are sorted by score, so that the first one of an object is the best.
    mends[mendable[np.unique(targets[mendable], return_index=True)[1]]] = True
    missed[targets[mendable]] = False
    return Errors(kinds, targets, iou, mends, missed)


def _best(overlaps: Overlaps, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest IoU of each detection, float64 `[D]`, and its object, int64 `[D]`; 0 and -1 without a pair."""
    iou, targets = np.zeros(num_detections), np.full(num_detections, -1)
    pairs = overlaps.take(np.lexsort((overlaps.objects, -overlaps.iou, overlaps.detections)))
    detections, first = np.unique(pairs.detections, return_index=True)
    iou[detections], targets[detections] = pairs.iou[first], pairs.objects[first]
    return iou, targets


def _codes(*kinds: ErrorKind) -> list[int]:
    return [KINDS.index(kind) for kind in kinds]


def split_errors(matches: Matches, errors: Errors, num_classes: int) -> ErrorSplit:
    """AP at IoU 0.5 as it is and with each kind of error mended. Numbers are nan where there is no object that counts.

    Mending a class or a box makes a hit of an error that `mends` and drops the others of the kind; mending any other
    error of a detection drops it; mending a missed object forgets it. A class all of whose objects are forgotten has
    AP 0 if detections of it remain, and is not in the mean if none do; the cost is nan if no class is left.
    """
    num_objects = matches.num_objects(num_classes)
    counted, hits = ~matches.ignored(), matches.hits()

    def ap(
        counted: np.ndarray = counted,
        hits: np.ndarray = hits,
        labels: np.ndarray = matches.labels,
        forgotten: np.ndarray | None = None,
    ) -> float:
        remaining = num_objects
        if forgotten is not None:
            remaining = num_objects - np.bincount(matches.object_labels[forgotten], minlength=num_classes)
        rows = matches.order[counted[matches.order]]
        hits_by_class = {label: hits[rows[labels[rows] == label]] for label in np.flatnonzero(num_objects)}
        by_class = [
            average_precision(true_positive, remaining[label]) if remaining[label] else 0.0
            for label, true_positive in hits_by_class.items()
            if remaining[label] or len(true_positive)
        ]
        return float(np.mean(by_class)) if by_class else float("nan")

    def mended(kind: ErrorKind) -> float:
        of_kind = errors.kinds == KINDS.index(kind)
        hit = of_kind & errors.mends
        labels = matches.labels.copy()
        labels[hit] = matches.object_labels[errors.targets[hit]]
        return ap(counted & (~of_kind | hit), hits | hit, labels)

    plain = ap()
    counts = {kind: int(np.count_nonzero(errors.kinds == code)) for code, kind in enumerate(KINDS)}
    costs = {kind: ap(forgotten=errors.missed) if kind == "missed" else mended(kind) for kind in KINDS}
    return ErrorSplit(
        ap=plain,
        counts=counts | {"missed": int(np.count_nonzero(errors.missed))},
        costs={kind: cost - plain for kind, cost in costs.items()},
        false_positives=ap(hits) - plain,
        false_negatives=ap(forgotten=matches.undetected()) - plain,
    )
