"""k-means on the shapes of boxes, which gives anchors for one's own data (YOLOv2, arXiv 1612.08242, section 2).

Legend: N boxes, k anchors. Shapes are float64 `[N, 2]`, width and height, in any unit.
"""

from __future__ import annotations

import numpy as np
import torch

from detkit.config import UserError
from detkit.ops.iou import box_iou

RESTARTS = 5  # runs from different first centres, of which the best result is returned
PATIENCE = 10  # steps without a better fit that end a run: 1 - IoU is not Euclidean, so the means may drift or circle


def kmeans_anchors(sides: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """float64 `[k, 2]`, sorted by area: the centres of k clusters under the distance 1 - IoU.

    A centre is the mean of its shapes. The first centres are k different shapes, drawn with a probability that grows
    with the distance to those drawn before (k-means++). Returned are the centres with the highest `mean_iou` of all
    steps of all runs. Raises UserError if there are fewer than k different shapes.
    """
    if k < 1:
        raise UserError(f"anchors: expected at least 1, found {k}")
    sides = sides.astype(np.float32).astype(np.float64)  # shapes that still differ have an IoU below 1
    distinct = len(np.unique(sides, axis=0))
    if distinct < k:
        raise UserError(f"anchors: {k} need as many different box shapes, found {distinct}; ask for at most {distinct}")
    rng = np.random.default_rng(seed)
    best, best_iou = np.empty((k, 2)), -1.0
    for _ in range(RESTARTS):
        anchors = _first_anchors(sides, k, rng)
        highest, idle = -1.0, 0
        while idle < PATIENCE:
            overlaps = _shape_iou(sides, anchors)
            iou = float(overlaps.max(axis=1).mean())
            highest, idle = (iou, 0) if iou > highest else (highest, idle + 1)
            if iou > best_iou:
                best, best_iou = anchors, iou
            anchors = _means(sides, overlaps.argmax(axis=1), anchors)
    return best[np.argsort(best.prod(axis=1), kind="stable")]


def mean_iou(sides: np.ndarray, anchors: np.ndarray) -> float:
    """The mean over all shapes of the IoU with the anchor that fits best."""
    return float(_shape_iou(sides, anchors).max(axis=1).mean())


def _first_anchors(sides: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """`[k, 2]`: the first centres of k-means++."""
    indices = [int(rng.integers(len(sides)))]
    distance = np.ones(len(sides))
    while len(indices) < k:
        distance = np.minimum(distance, 1 - _shape_iou(sides, sides[indices[-1:]])[:, 0])
        indices.append(int(rng.choice(len(sides), p=distance / distance.sum())))
    return sides[indices]


def _means(sides: np.ndarray, clusters: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """`[k, 2]`: the mean shape of each cluster, and the old anchor of an empty one. `clusters` is `[N]`, in [0, k)."""
    counts = np.bincount(clusters, minlength=len(anchors))
    sums = np.stack([np.bincount(clusters, side, len(anchors)) for side in sides.T], axis=1)
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], anchors)


def _shape_iou(sides: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """`[N, k]`: IoU of every shape with every anchor when both have the same centre (or corner)."""
    boxes = [torch.from_numpy(np.pad(shapes, ((0, 0), (2, 0)))) for shapes in (sides, anchors)]
    return box_iou(boxes[0], boxes[1]).numpy()
