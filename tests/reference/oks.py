"""Object keypoint similarity from its definition (cocodataset.org), one pair of objects and one point at a time."""

import math
from collections.abc import Sequence

Point = Sequence[float]


def similarity(
    detection: Sequence[Point], points: Sequence[Point], box: Sequence[float], area: float, sigmas: Sequence[float]
) -> float:
    """
    detection  x, y of each keypoint
    points     x, y and visibility of those of the object
    box        x1, y1, x2, y2 of the object
    """
    labelled = [index for index, point in enumerate(points) if point[2] > 0]
    parts = []
    for index in labelled or range(len(points)):
        (x, y), sigma = detection[index][:2], sigmas[index]
        if labelled:
            distance = math.dist((x, y), points[index][:2])
        else:
            x1, y1, x2, y2 = box
            width, height = x2 - x1, y2 - y1
            distance = math.dist((x, y), (min(max(x, x1 - width), x2 + width), min(max(y, y1 - height), y2 + height)))
        parts.append(math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)))
    return sum(parts) / len(parts)
