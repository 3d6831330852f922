"""Object keypoint similarity (OKS), by which COCO says how well the keypoints of a detection lie on those of an object.

Legend: D detections and G objects of one image, P keypoints of each. Coordinates are those of a COCO file, float64.
"""

from __future__ import annotations

import numpy as np

EPSILON = np.spacing(1)


def object_keypoint_similarity(
    detections: np.ndarray, objects: np.ndarray, boxes: np.ndarray, areas: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """float64 `[D, G]` in [0, 1]: the mean of exp(-d^2 / (2 area (2 sigma)^2)) over an object's labelled keypoints.

    Of an object without a labelled keypoint, d is the distance of each keypoint from a box around the object's, three
    times as wide and high, and the mean is over all P.

    detections  `[D, P, 3]`: x, y and something that is not looked at
    objects     `[G, P, 3]`: x, y and visibility, 0 for a keypoint that is not labelled
    boxes       `[G, 4]`: left, top, width, height
    areas       `[G]`, px^2
    sigmas      `[P]`
    The operations are those of pycocotools in its order, so that the bits are too. Source: `COCOeval.computeOks`.
    """
    similarity = np.zeros((len(detections), len(objects)))
    variances = (sigmas * 2) ** 2
    x, y = detections[:, :, 0], detections[:, :, 1]
    for g, (points, (left, top, width, height), area) in enumerate(zip(objects, boxes, areas, strict=True)):
        labelled = points[:, 2] > 0
        if labelled.any():
            dx, dy = x - points[:, 0], y - points[:, 1]
        else:
            labelled[:] = True
            dx = _distance(x, left - width, left + width * 2)
            dy = _distance(y, top - height, top + height * 2)
        exponent = (dx**2 + dy**2) / variances / (area + EPSILON) / 2
        # In rows that are contiguous, as the order in which numpy adds depends on that.
        counted = np.ascontiguousarray(exponent[:, labelled])
        similarity[:, g] = np.exp(-counted).sum(axis=1) / counted.shape[1]
    return similarity


def _distance(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """How far each lies outside of [low, high]."""
    distance: np.ndarray = np.maximum(0.0, low - values) + np.maximum(0.0, values - high)
    return distance
