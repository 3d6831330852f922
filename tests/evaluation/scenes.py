"""Short ways to write images and detections down by hand, and random ones."""

from collections.abc import Sequence

import numpy as np
import torch

from detkit.structures import Categories, Detections, GroundTruth, ImageId, Objects

CATEGORIES = Categories(("cat", "dog"), (1, 3))
Box = Sequence[float]


def image(
    boxes: Sequence[Box] = (),
    labels: Sequence[int] | None = None,
    ignore: Sequence[bool] | None = None,
    image_id: ImageId = 1,
    area: Sequence[float] | None = None,
) -> GroundTruth:
    """An annotated image. By default every object is of class 0 and not ignored, and has no annotated area."""
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    objects = Objects(
        boxes=corners,
        labels=np.array([0] * len(corners) if labels is None else labels, dtype=np.int64),
        ignore=np.array([False] * len(corners) if ignore is None else ignore, dtype=np.bool_),
        area=None if area is None else np.array(area, dtype=np.float32),
    )
    return GroundTruth(image_id, (1000, 1000), objects)


def detected(
    boxes: Sequence[Box] = (),
    scores: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    categories: Categories = CATEGORIES,
) -> Detections:
    """Detections of one image, sorted by score. By default of class 0, with falling scores."""
    count = len(boxes)
    falling = [1 - k / (count + 1) for k in range(count)]
    unsorted_scores = torch.tensor(falling if scores is None else scores, dtype=torch.float32)
    objects = Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([0] * count if labels is None else labels, dtype=torch.int64),
        scores=unsorted_scores,
    )
    return Detections(objects.take(unsorted_scores.argsort(descending=True, stable=True)), categories)


def categories_of(num_classes: int) -> Categories:
    return Categories.of_names([f"class{k}" for k in range(num_classes)])


def random_scene(
    rng: np.random.Generator, image_ids: Sequence[ImageId], num_classes: int
) -> tuple[list[GroundTruth], list[Detections]]:
    """Crowded images with jittered, duplicate, wrong and tied detections on a coarse grid: many equal IoUs."""
    ground_truth, detections = [], []
    for image_id in image_ids:
        corners = rng.integers(0, 12, (rng.integers(0, 6), 2)) * 10
        boxes = np.hstack([corners, corners + rng.integers(1, 12, corners.shape) * 10])
        labels = rng.integers(0, num_classes, len(boxes))
        ground_truth.append(image(boxes, labels, rng.random(len(boxes)) < 0.25, image_id))
        picked = rng.integers(0, len(boxes), rng.integers(0, 15)) if len(boxes) else np.zeros(0, np.int64)
        guesses = boxes[picked] + rng.integers(-2, 3, (len(picked), 4)) * 5
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 5)
        guess_labels = np.where(
            rng.random(len(picked)) < 0.8, labels[picked], rng.integers(0, num_classes, len(picked))
        )
        scores = rng.integers(1, 10, len(picked)) / 10
        detections.append(detected(guesses, scores, guess_labels, categories_of(num_classes)))
    return ground_truth, detections
