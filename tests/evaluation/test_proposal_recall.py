"""Recall and mean average best overlap, by hand."""

import math

import numpy as np
import pytest

from detkit.evaluation.proposal_recall import proposal_quality
from detkit.structures import Categories, GroundTruth, Objects

CATEGORIES = Categories.of_names(("cat", "dog", "cow"))


def image(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> GroundTruth:
    objects = Objects(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        ignore=None if ignore is None else np.array(ignore, np.bool_),
    )
    return GroundTruth(0, (100, 100), objects)


def proposals(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_by_hand() -> None:
    """One cat is covered exactly, one by half of it, a dog by a quarter: the best overlaps are 1, .5 and .25."""
    cats = image([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0])
    dog = image([[0, 0, 20, 20]], [1])
    quality = proposal_quality(
        [(cats, proposals([0, 0, 10, 10], [20, 0, 25, 10], [50, 50, 60, 60])), (dog, proposals([0, 0, 10, 10]))],
        CATEGORIES,
    )
    assert quality.boxes == 2
    assert quality.recall == pytest.approx(2 / 3)
    assert quality.abo[:2] == pytest.approx((0.75, 0.25))
    assert math.isnan(quality.abo[2])
    assert quality.mabo == pytest.approx(0.5)  # over the classes, not the objects


def test_ignored_objects_do_not_count() -> None:
    one_ignored = image([[0, 0, 10, 10], [50, 50, 90, 90]], [0, 0], [False, True])
    assert proposal_quality([(one_ignored, proposals([0, 0, 10, 10]))], CATEGORIES).recall == 1


def test_an_image_without_proposals_is_a_miss() -> None:
    quality = proposal_quality([(image([[0, 0, 10, 10]], [0]), proposals())], CATEGORIES)
    assert (quality.boxes, quality.recall, quality.mabo) == (0, 0, 0)


def test_no_object_at_all() -> None:
    quality = proposal_quality([(image([], []), proposals([0, 0, 10, 10]))], CATEGORIES)
    assert quality.boxes == 1
    assert math.isnan(quality.recall)
    assert math.isnan(quality.mabo)
