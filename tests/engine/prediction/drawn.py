"""A detector of rectangles in drawn pictures, which has no error: what it is given it finds."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch

from detkit.nn.selection import KEYPOINT_SCORES
from detkit.structures import Categories, Detections, KeypointCategories, MaskCrops, Objects

CATEGORIES = Categories.of_names(["red", "blue"])
POINTS = KeypointCategories(("left", "right", "top"), ((0, 1),), ((0, 2), (1, 2)))
COLOURS = ((255, 0, 0), (0, 0, 255))
Box = tuple[int, int, int, int]


def picture(height: int, width: int, boxes: Sequence[Box], labels: Sequence[int]) -> np.ndarray:
    """Black, with filled rectangles; those of a colour do not touch."""
    image = np.zeros((height, width, 3), np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[y1:y2, x1:x2] = COLOURS[label]
    return image


def detections_of(boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]) -> Detections:
    order = np.argsort([-score for score in scores], kind="stable").tolist()
    rows = [(boxes[row], labels[row], scores[row]) for row in order]
    return Detections(
        Objects(
            torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([row[1] for row in rows], dtype=torch.int64),
            scores=torch.tensor([row[2] for row in rows], dtype=torch.float32),
        ),
        CATEGORIES,
    )


def find_rectangles(image: np.ndarray, smallest: int = 1) -> Detections:
    """Rectangles of at least `smallest` px; those with fewer pixels score more, so that parts come before wholes."""
    boxes, labels, scores = [], [], []
    for label, colour in enumerate(COLOURS):
        _, _, stats, _ = cv2.connectedComponentsWithStats((image == colour).all(axis=2).astype(np.uint8))
        for x, y, width, height, area in stats[1:].tolist():
            if min(width, height) >= smallest:
                boxes.append((x, y, x + width, y + height))
                labels.append(label)
                scores.append(0.6 + 0.3 / (1 + area / 100))
    return detections_of(boxes, labels, scores)


def find_all(image: np.ndarray) -> Detections:
    """Rectangles with their pixels as masks, and as keypoints the middles of the left, the right and the upper side,
    with the scores 1, 2 and 3."""
    plain = find_rectangles(image)
    boxes = plain.boxes.long().numpy()
    crops = [np.ones((y2 - y1, x2 - x1), np.bool_) for x1, y1, x2, y2 in boxes.tolist()]
    x1, y1, x2, y2 = plain.boxes.unbind(dim=1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    places = torch.stack([torch.stack([x1, x2, x], dim=1), torch.stack([y, y, y1], dim=1)], dim=2)
    columns = {
        **plain.objects.columns(),
        "masks": MaskCrops.of(crops, boxes).encode((image.shape[0], image.shape[1])),
        "keypoints": torch.cat([places, torch.full((*places.shape[:2], 1), 2.0)], dim=2),
        KEYPOINT_SCORES: torch.tensor([[1.0, 2.0, 3.0]]).expand(len(plain), 3),
    }
    return Detections(Objects.from_columns(columns), replace(CATEGORIES, keypoints=POINTS))
