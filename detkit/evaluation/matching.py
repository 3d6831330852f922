"""Which detection matches which object by COCO's rules: the one matching under curves, errors, examples and resamples.

Legend: D detections and G objects of a data set, P pairs of them that overlap, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from detkit.evaluation.flat_boxes import FlatBoxes, flat_detections, flat_objects, sort_key
from detkit.evaluation.protocols import MAX_DETECTIONS
from detkit.structures import Detections, GroundTruth

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # COCO's


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The pairs of a detection and an object of one image, of any two classes, that overlap.

    detections  int64 `[P]`, rising
    objects     int64 `[P]`
    iou         float64 `[P]`; with an ignored object the intersection over the area of the detection, as COCO has it
    """

    detections: np.ndarray
    objects: np.ndarray
    iou: np.ndarray

    def take(self, rows: np.ndarray) -> Overlaps:
        """The pairs of these rows: indices or a mask."""
        return Overlaps(self.detections[rows], self.objects[rows], self.iou[rows])


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections and objects of a data set as columns, image after image in COCO's order, and which match.

    Of an image and class only the first detections are here, as many as count. `order` sorts by score, equal ones as
    COCO does.

    images         int64 `[D]`: index into the images of the store
    rows           int64 `[D]`: index into the detections of the image
    labels         int64 `[D]`
    scores         float32 `[D]`, falling within an image
    order          int64 `[D]`: the detections of all images, highest score first
    object_images  int64 `[G]`
    object_rows    int64 `[G]`: index into the objects of the image
    object_labels  int64 `[G]`
    object_areas   float64 `[G]`, px^2
    ignore         bool `[G]`
    overlaps       pairs that overlap
    matched        int64 `[T, D]`: the object that a detection matches at each of `IOU_THRESHOLDS`, -1 for none
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    order: np.ndarray
    object_images: np.ndarray
    object_rows: np.ndarray
    object_labels: np.ndarray
    object_areas: np.ndarray
    ignore: np.ndarray
    overlaps: Overlaps
    matched: np.ndarray

    def hits(self, threshold: int = 0) -> np.ndarray:
        """bool `[D]`: whether a detection matches an object that counts, at this index of `IOU_THRESHOLDS`."""
        return self._matches(threshold, ignored=False)

    def ignored(self, threshold: int = 0) -> np.ndarray:
        """bool `[D]`: whether a detection matches an ignored object, so that it is neither right nor wrong."""
        return self._matches(threshold, ignored=True)

    def undetected(self) -> np.ndarray:
        """bool `[G]`: the objects that count and that no detection matches at IoU 0.5."""
        undetected = ~self.ignore
        undetected[self.matched[0][self.matched[0] >= 0]] = False
        return undetected

    def num_objects(self, num_classes: int) -> np.ndarray:
        """int64 `[K]`: the objects of each class that count."""
        counts: np.ndarray = np.bincount(self.object_labels[~self.ignore], minlength=num_classes)
        return counts

    def _matches(self, threshold: int, *, ignored: bool) -> np.ndarray:
        matched = self.matched[threshold]
        result: np.ndarray = matched >= 0
        result[result] = self.ignore[matched[result]] == ignored
        return result


def match_detections(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], max_detections: int = MAX_DETECTIONS
) -> Matches:
    """Matches by the rules of `COCOeval`, all areas; `detections[i]` belong to `ground_truth[i]`, at least one image.

    The detections of an image and class choose in the order of their scores: each takes the object of its class that
    is still free and has the largest IoU of at least the threshold; where there is none, an ignored object, which
    any number may match.

    max_detections  of an image and class that count, the best ones
    """
    images = sorted(range(len(ground_truth)), key=lambda index: sort_key(ground_truth[index].image_id))
    objects, ignore = flat_objects([ground_truth[index].objects for index in images])
    boxes, scores = flat_detections([detections[index] for index in images])
    rows = _ranks(boxes.images)
    counted = _ranks(boxes.images * (boxes.labels.max(initial=0) + 1) + boxes.labels) < max_detections
    boxes, scores, rows = boxes.take(counted), scores[counted], rows[counted]
    overlaps = _join(list(_overlaps_by_image(boxes, objects, ignore, len(images))))
    same_class = boxes.labels[overlaps.detections] == objects.labels[overlaps.objects]
    return Matches(
        images=np.array(images)[boxes.images],
        rows=rows,
        labels=boxes.labels,
        scores=scores,
        order=np.argsort(-scores, kind="stable"),
        object_images=np.array(images)[objects.images],
        object_rows=_ranks(objects.images),
        object_labels=objects.labels,
        object_areas=objects.areas,
        ignore=ignore,
        overlaps=overlaps,
        matched=_match(overlaps.take(same_class), ignore, len(scores)),
    )


def _ranks(groups: np.ndarray) -> np.ndarray:
    """int64 `[N]`: how many rows of the same group come before each."""
    order = np.argsort(groups, kind="stable")
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(groups[order], groups[order])
    return ranks


def _overlaps_by_image(boxes: FlatBoxes, objects: FlatBoxes, ignore: np.ndarray, num_images: int) -> Iterator[Overlaps]:
    """The pairs of one image after the other, those without any left out."""
    ends_d, ends_g = (np.bincount(flat.images, minlength=num_images).cumsum().tolist() for flat in (boxes, objects))
    for start_d, end_d, start_g, end_g in zip([0, *ends_d], ends_d, [0, *ends_g], ends_g, strict=False):
        if start_d < end_d and start_g < end_g:
            crowd = ignore[start_g:end_g].astype(np.uint8)
            iou = mask.iou(boxes.xywh[start_d:end_d], objects.xywh[start_g:end_g], crowd)
            rows_d, rows_g = np.nonzero(iou)
            yield Overlaps(start_d + rows_d, start_g + rows_g, iou[rows_d, rows_g])


def _join(parts: Sequence[Overlaps]) -> Overlaps:
    none = Overlaps(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    columns = zip(*((part.detections, part.objects, part.iou) for part in (none, *parts)), strict=True)
    return Overlaps(*map(np.concatenate, columns))


def _match(overlaps: Overlaps, ignore: np.ndarray, num_detections: int) -> np.ndarray:
    """`Matches.matched`, from the pairs of equal class."""
    matched = np.full((len(IOU_THRESHOLDS), num_detections), -1)
    # What a detection prefers comes first. Of objects with the same IoU COCO takes the last.
    preference = (-overlaps.objects, -overlaps.iou, ignore[overlaps.objects], overlaps.detections)
    overlaps = overlaps.take(np.lexsort(preference))
    # With the numbers of numpy, as in pycocotools: one of them is a little below 0.9.
    for met, threshold in zip(matched, np.linspace(0.5, 0.95, len(IOU_THRESHOLDS)), strict=True):
        pairs = overlaps.take(overlaps.iou >= threshold)
        partner: dict[int, int] = {}
        taken: set[int] = set()
        for detection, target in zip(pairs.detections.tolist(), pairs.objects.tolist(), strict=True):
            if detection not in partner and target not in taken:
                partner[detection] = target
                if not ignore[target]:
                    taken.add(target)
        met[list(partner)] = list(partner.values())
    return matched
