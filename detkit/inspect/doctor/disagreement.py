"""Labels that a trained detector most disagrees with: objects that are perhaps unlabelled, or of another class.

Legend: D detections of the data set, N objects and n detections of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from detkit.evaluation.store import DetectionStore
from detkit.inspect.doctor.findings import Finding, Place
from detkit.inspect.doctor.tally import MAX_EXAMPLES
from detkit.ops.iou import box_iof, box_iou

HIT = 0.5  # IoU from which a detection matches an object
NEAR = 0.1  # overlap, of the union or of the detection, below which a detection is alone
PRECISION = 0.95  # of the detections that score as much: only then is the detector believed
LEAST_SCORE = 0.5
LEAST_RIGHT = 20  # right detections without which nothing is reported


@dataclass(frozen=True, eq=False)
class _ImageMatches:
    """How the detections of an image match its objects; columns of n rows.

    image   index into the images of the store
    right   bool: an object of the class is matched
    ignored bool: what is matched is to be ignored
    alone   bool: nothing is near
    other   int64: an object of another class that is matched, whose own class has no detection as good there; -1: none
    """

    image: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    alone: np.ndarray
    other: np.ndarray


def disagreement_findings(store: DetectionStore) -> list[Finding]:
    matches = [_match(store, image) for image in range(len(store.ground_truth))]
    threshold = trusted_score(
        np.concatenate([each.scores[~each.ignored] for each in matches]),
        np.concatenate([each.right[~each.ignored] for each in matches]),
    )
    total = sum(int((~truth.objects.ignore).sum()) for truth in store.ground_truth)
    if threshold is None:
        message = "The detector is right too seldom, at any score, to judge the labels by it."
        return [Finding("labels-not-judged", "note", 0, total, message, "Train longer, then ask again.")]
    return [
        *_finding(store, matches, threshold, total, "perhaps-unlabelled"),
        *_finding(store, matches, threshold, total, "perhaps-mislabelled"),
    ]


def trusted_score(scores: np.ndarray, right: np.ndarray) -> float | None:
    """The lowest score, at least `LEAST_SCORE`, from which on `PRECISION` of the detections `[D]` is right, or None."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    precision = hits / np.arange(1, len(hits) + 1)
    last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # of equal scores
    good = np.flatnonzero((precision >= PRECISION) & (hits >= LEAST_RIGHT) & (scores >= LEAST_SCORE) & last)
    return float(scores[good[-1]]) if len(good) else None


def _match(store: DetectionStore, image: int) -> _ImageMatches:
    truth = store.ground_truth[image].objects.to_tensors()
    detections = store.detections[store.ground_truth[image].image_id]
    iou = box_iou(detections.boxes, truth.boxes)  # [n, N]
    same = detections.labels[:, None] == truth.labels
    hit = iou >= HIT
    on_ignored = (box_iof(detections.boxes, truth.boxes) >= HIT) & truth.ignore
    counted = hit & ~truth.ignore
    near = torch.maximum(iou, box_iof(detections.boxes, truth.boxes)) >= NEAR
    best = torch.where(counted & ~same, iou, 0.0)
    # An object whose own class is detected there as surely is not in doubt.
    own = torch.where(counted & same, detections.scores[:, None], 0.0)
    own = own.amax(dim=0) if len(detections) else torch.zeros(len(truth))
    doubtful = (best > 0) & (own < detections.scores[:, None])
    best = torch.where(doubtful, best, -1.0)
    other = best.max(dim=1).indices if len(truth) else torch.zeros(len(detections), dtype=torch.int64)
    some = doubtful.any(dim=1) & ~(counted & same).any(dim=1)
    return _ImageMatches(
        image,
        detections.boxes.numpy(),
        detections.scores.numpy(),
        detections.labels.numpy(),
        (counted & same).any(dim=1).numpy(),
        (on_ignored.any(dim=1) & ~counted.any(dim=1)).numpy(),
        (~near.any(dim=1)).numpy(),
        torch.where(some, other, -1).numpy(),
    )


def _finding(
    store: DetectionStore, matches: list[_ImageMatches], threshold: float, total: int, code: str
) -> Iterator[Finding]:
    unlabelled = code == "perhaps-unlabelled"
    rows: list[tuple[float, Place]] = []
    for each in matches:
        chosen = (each.scores >= threshold) & (each.alone if unlabelled else each.other >= 0)
        taken: set[int] = set()
        for row in np.flatnonzero(chosen).tolist():
            target = int(each.other[row])
            if not unlabelled and target in taken:
                continue
            taken.add(target)
            rows.append((float(each.scores[row]), _place(store, each, row, unlabelled)))
    if not rows:
        return
    rows.sort(key=lambda pair: -pair[0])
    what = "meet no label" if unlabelled else "meet a label of another class"
    verb = "perhaps an object is not labelled there" if unlabelled else "perhaps the label is wrong"
    message = (
        f"{len(rows):,} detections {what}, {verb}; they score at least {threshold:.2f}, where {PRECISION:.0%} of the "
        f"detections are right by the labels ({total:,} in val)."
    )
    fix = "Look at them, the surest first, and correct the labels that are wrong."
    yield Finding(code, "note", len(rows), total, message, fix, [place for _, place in rows[:MAX_EXAMPLES]])


def _place(store: DetectionStore, of_image: _ImageMatches, row: int, unlabelled: bool) -> Place:
    truth, names = store.ground_truth[of_image.image], store.categories.names
    path = store.paths[of_image.image] if store.paths else ""
    text = f"{names[int(of_image.labels[row])]} {of_image.scores[row]:.2f}"
    box = of_image.boxes[row]
    if not unlabelled:
        target = int(of_image.other[row])
        box, text = truth.objects.boxes[target], f"{text}, labelled {names[int(truth.objects.labels[target])]}"
    x1, y1, x2, y2 = box.tolist()
    return Place("val", truth.image_id, path, (x1, y1, x2, y2), text)
