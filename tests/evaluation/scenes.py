"""Short ways to write images and detections down by hand, and random ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from detkit.structures import (
    Categories,
    Detections,
    EncodedMasks,
    GroundTruth,
    ImageId,
    KeypointCategories,
    MaskCrops,
    Objects,
)

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


# ---- masks and keypoints

SIZE = (120, 160)  # (h, w) of the images below
SIGMAS = tuple(k / 1000 for k in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89))  # COCO's
POINTS = KeypointCategories(tuple(f"p{k}" for k in range(len(SIGMAS))), sigmas=SIGMAS)


def with_masks(detections: Detections, masks: EncodedMasks) -> Detections:
    return replace(detections, objects=replace(detections.objects, masks=masks))


def encode(bitmaps: Sequence[np.ndarray], size: tuple[int, int] = SIZE) -> EncodedMasks:
    """Of pixels that begin at the top left corner."""
    return MaskCrops.of(bitmaps, [(0, 0, mask.shape[1], mask.shape[0]) for mask in bitmaps]).encode(size)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """bool `[120, 160]`: ellipses and rectangles, some of an area on a border of COCO's ranges; a pixel, nothing."""
    mask = np.zeros(SIZE, np.bool_)
    kind = rng.integers(0, 12)
    if kind < 2:
        side = (32, 96)[kind]
        top, left = rng.integers(0, SIZE[0] - side + 1), rng.integers(0, SIZE[1] - side + 1)
        mask[top : top + side, left : left + side] = True
    elif kind == 2:
        mask[rng.integers(SIZE[0]), rng.integers(SIZE[1])] = True
    elif kind > 3:
        y, x = np.ogrid[: SIZE[0], : SIZE[1]]
        (centre_y, centre_x), radii = rng.random(2) * SIZE, rng.integers(2, 50, 2)
        power = rng.choice([2, 20])
        mask = (np.abs((y - centre_y) / radii[0]) ** power + np.abs((x - centre_x) / radii[1]) ** power) < 1
    return mask


def box_of(mask: np.ndarray) -> Box:
    """Around the pixels; `pycocotools` has the same of a mask without any."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


def random_mask_scene(
    rng: np.random.Generator, image_ids: Sequence[ImageId], num_classes: int, *, box_only: bool = True
) -> tuple[list[GroundTruth], list[Detections]]:
    """Masks with crowds, tied scores, duplicates and shifted copies; of some objects only the box is known."""
    images, detections = [], []
    for image_id in image_ids:
        masks = [random_mask(rng) for _ in range(rng.integers(0, 7))]
        labels = rng.integers(0, num_classes, len(masks))
        areas = [float(mask.sum()) for mask in masks]
        truth = image([box_of(mask) for mask in masks], labels, rng.random(len(masks)) < 0.2, image_id, areas)
        encoded = encode(masks)
        unknown = (rng.random(len(masks)) < 0.2) & box_only
        given = [None if lacks else encoded.decode(k) for k, lacks in enumerate(unknown)]
        objects = replace(truth.objects, masks=EncodedMasks.of(given, [SIZE] * len(masks)))
        images.append(GroundTruth(image_id, SIZE, objects))

        picked = rng.integers(0, len(masks), rng.integers(0, 15)) if len(masks) else np.zeros(0, np.int64)
        shifts = rng.integers(-4, 5, (len(picked), 2))
        guesses = [np.roll(masks[k], shift, (0, 1)) for k, shift in zip(picked, shifts.tolist(), strict=True)]
        guesses += [random_mask(rng) for _ in range(rng.integers(0, 4))]
        scores = np.sort(rng.integers(1, 8, len(guesses)) / 8)[::-1]
        wrong = rng.integers(0, num_classes, len(guesses))
        right = np.append(labels[picked], wrong[len(picked) :])
        guess_labels = np.where(rng.random(len(guesses)) < 0.8, right, wrong)
        boxes = [box_of(mask) for mask in guesses]
        guessed = detected(boxes, scores.tolist(), guess_labels.tolist(), categories_of(num_classes))
        detections.append(with_masks(guessed, encode(guesses)))
    return images, detections


def random_keypoint_scene(
    rng: np.random.Generator, image_ids: Sequence[ImageId], num_classes: int
) -> tuple[list[GroundTruth], list[Detections]]:
    """Persons with hidden and unlabelled keypoints, crowds, of some no keypoint labelled, up to 30 detections each."""
    images, detections = [], []
    categories = replace(categories_of(num_classes), keypoints=POINTS)
    for image_id in image_ids:
        count, points = int(rng.integers(0, 6)), len(SIGMAS)
        corners = rng.integers(0, 60, (count, 2))
        sides = np.exp(rng.uniform(2, 5.5, (count, 2))).round()
        boxes = np.hstack([corners, corners + sides])
        places = (corners[:, None] + sides[:, None] * rng.random((count, points, 2))).round() + 0.5
        visible = rng.integers(0, 3, (count, points)) * (rng.random(count) < 0.8)[:, None]
        keypoints = np.concatenate([places * (visible[..., None] > 0), visible[..., None]], axis=2).astype(np.float32)
        labels = rng.integers(0, num_classes, count)
        areas = (sides.prod(axis=1) * 0.6).round()
        truth = image(boxes, labels, rng.random(count) < 0.15, image_id, areas)
        images.append(GroundTruth(image_id, SIZE, replace(truth.objects, keypoints=keypoints)))

        picked = rng.integers(0, count, rng.integers(0, 30)) if count else np.zeros(0, np.int64)
        spread = rng.choice([0.02, 0.1, 0.5], (len(picked), 1, 1)) * sides[picked][:, None]
        moved = (places[picked] + rng.normal(0, 1, (len(picked), points, 2)) * spread).round(2)
        guess_labels = np.where(
            rng.random(len(picked)) < 0.8, labels[picked], rng.integers(0, num_classes, len(picked))
        )
        scores = np.sort(rng.integers(1, 20, len(picked)) / 20)[::-1]
        guessed = detected(boxes[picked].tolist(), scores.tolist(), guess_labels.tolist(), categories)
        both = torch.cat([torch.tensor(moved, dtype=torch.float32), torch.full((len(picked), points, 1), 2.0)], dim=2)
        detections.append(replace(guessed, objects=replace(guessed.objects, keypoints=both)))
    return images, detections
