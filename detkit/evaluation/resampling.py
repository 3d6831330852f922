"""COCO's AP of a data set whose images count several times or not at all, without matching again.

Legend: I images, K classes, T IoU thresholds, P true positives of a class, R resamples. COCO matches each image on its
own, so that an image that is drawn twice brings each of its detections and objects twice, and the order by score stays
what it was: each detection is followed by its copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from detkit.evaluation.curves import RECALL_POINTS
from detkit.evaluation.matching import Matches

BLOCK = 1024  # resamples at a time
# Points of recall that are a little above k / 100, so that a recall of exactly k / 100 does not reach them.
_IS_ABOVE = np.greater(RECALL_POINTS, np.arange(101) / 100)
# In float32, 100 * recall is exact enough to tell whether a point of recall is reached for up to this many objects.
_MAX_OBJECTS = 50_000


class _Ranking(NamedTuple):
    """The detections of one class at one threshold, highest score first, up to the last that is right.

    segments  sparse `[P, I]`: how many detections of an image come after one true positive, up to and with the next
    images    int64 `[P]`: the images of the true positives
    """

    segments: csr_array
    images: np.ndarray


class ResampledAP:
    """Computes AP by class, mean over the IoU thresholds, from how often each image counts."""

    def __init__(self, matches: Matches, num_images: int, num_classes: int) -> None:
        counted = ~matches.ignore
        places = matches.object_labels[counted] * num_images + matches.object_images[counted]
        objects = np.bincount(places, minlength=num_classes * num_images).reshape(num_classes, num_images)
        self.num_objects = objects.sum(axis=1)
        self.dtype = np.float32 if self.num_objects.max() <= _MAX_OBJECTS else np.float64
        self._objects = csr_array(objects)
        self._rankings = {
            label: list(_rankings(matches, matches.order[matches.labels[matches.order] == label], num_images))
            for label in np.flatnonzero(self.num_objects).tolist()
        }

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """`[K, R]` of the type of `weights`, floating `[I, R]`: how often each image counts. nan without an object."""
        num_objects = self._objects.astype(weights.dtype) @ weights
        result = np.full(num_objects.shape, np.nan, weights.dtype)
        for label, rankings in self._rankings.items():
            total = sum(_average_precision(ranking, weights, num_objects[label]) for ranking in rankings)
            result[label] = np.where(num_objects[label] > 0, total / len(rankings), np.nan)
        return result


def mean_over_classes(by_class: np.ndarray) -> np.ndarray:
    """COCO's mean `[R]` of AP by class `[K, R]`: over the classes that have an object, nan where none has."""
    present = ~np.isnan(by_class)
    count = present.sum(axis=0)
    total = np.where(present, by_class, 0).sum(axis=0)
    mean: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def draw_weights(num_images: int, resamples: int, seed: int, dtype: type[np.floating]) -> Iterator[np.ndarray]:
    """How often each image is drawn if as many as there are are drawn with replacement: `[I, R]`, R up to `BLOCK`."""
    rng = np.random.default_rng(seed)
    chances = np.full(num_images, 1 / num_images)
    for start in range(0, resamples, BLOCK):
        drawn = rng.multinomial(num_images, chances, size=min(BLOCK, resamples - start))
        yield np.ascontiguousarray(drawn.T, dtype)


def _rankings(matches: Matches, order: np.ndarray, num_images: int) -> Iterator[_Ranking]:
    """That of each threshold, from the detections of one class, highest score first."""
    for threshold in range(len(matches.matched)):
        rows = order[~matches.ignored(threshold)[order]]
        right = np.flatnonzero(matches.hits(threshold)[rows])
        images = matches.images[rows]
        end = right[-1] + 1 if len(right) else 0
        pointers = np.concatenate([[0], right + 1])
        segments = csr_array((np.ones(end, np.float32), images[:end], pointers), (len(right), num_images))
        yield _Ranking(segments, images[right])


def _average_precision(ranking: _Ranking, weights: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """COCO's AP `[R]` of one class at one threshold; `num_objects` `[R]`, and any number where that is 0."""
    if not len(ranking.images):
        return np.zeros_like(num_objects)
    num_true = _accumulate(np.add, weights[ranking.images])  # [P, R]
    num_taken = _accumulate(np.add, ranking.segments.astype(weights.dtype) @ weights)
    precision = num_true / np.maximum(num_taken, 1)
    best = _accumulate(np.maximum, precision[::-1])[::-1]
    # How many of the 101 points of recall each true positive and those before it reach.
    hundredths = 100 * num_true / np.maximum(num_objects, 1)
    whole = np.floor(hundredths)
    reached = whole + 1 - (_IS_ABOVE.take(whole.astype(np.int8)) & (hundredths == whole))
    reached[1:] -= reached[:-1].copy()
    ap: np.ndarray = np.einsum("pr,pr->r", reached, best) / len(RECALL_POINTS)
    return ap


def _accumulate(operation: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """`operation.accumulate` along the first axis of `rows`, in its memory; many times faster if rows are long."""
    for earlier, row in pairwise(rows):
        operation(earlier, row, out=row)
    return rows
