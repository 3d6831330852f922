"""Detections on changed pictures, and how those of one object become one."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from detkit.engine.prediction.tta import augmented, flipped, fuse, join
from detkit.nn.selection import KEYPOINT_SCORES
from detkit.structures import Detections
from tests.engine.prediction.drawn import detections_of, find_all, find_rectangles, picture


def predict(images: Sequence[np.ndarray]) -> list[Detections]:
    return [find_rectangles(image) for image in images]


def test_a_flip_finds_the_same() -> None:
    images = [picture(60, 101, [(0, 5, 30, 40), (70, 1, 101, 60)], [0, 1]), picture(30, 20, [], [])]
    for plain, mirrored in zip(predict(images), flipped(predict)(images), strict=True):
        assert torch.equal(plain.boxes, mirrored.boxes)
        assert torch.equal(plain.labels, mirrored.labels)


def test_a_flip_finds_the_same_masks_and_keypoints() -> None:
    """What is left in the mirrored picture is right, and so is its score."""
    images = [picture(60, 101, [(0, 5, 30, 40), (70, 1, 101, 60)], [0, 1]), picture(30, 20, [], [])]
    plain = [find_all(image) for image in images]
    mirrored = flipped(lambda images: [find_all(image) for image in images])(images)
    for one, other in zip(plain, mirrored, strict=True):
        assert np.array_equal(one.masks.dense(), other.masks.dense())  # type: ignore[union-attr]
        torch.testing.assert_close(one.keypoints, other.keypoints)
    assert mirrored[0].objects.extra[KEYPOINT_SCORES].tolist() == [[2, 1, 3]] * 2


def test_the_best_of_an_object_gives_its_mask_and_its_keypoints() -> None:
    best = find_all(picture(40, 50, [(2, 3, 22, 33)], [0]))
    other = find_all(picture(40, 50, [(2, 3, 24, 33)], [0]))
    assert float(best.scores) > float(other.scores)
    for views in ([best, other], [other, best]):
        fused = fuse(views)
        assert fused.masks is not None
        assert np.array_equal(fused.masks.dense(), best.masks.dense())  # type: ignore[union-attr]
        assert torch.equal(fused.keypoints, best.keypoints)  # type: ignore[arg-type]


def test_the_detector_sees_the_mirrored_picture() -> None:
    seen: list[np.ndarray] = []

    def watch(images: Sequence[np.ndarray]) -> list[Detections]:
        seen.extend(images)
        return predict(images)

    image = picture(40, 50, [(0, 0, 10, 10)], [0])
    flipped(watch)([image])
    assert np.array_equal(seen[0], picture(40, 50, [(40, 0, 50, 10)], [0]))
    assert seen[0].flags.c_contiguous


def test_boxes_are_averaged_by_score_and_scores_over_the_views() -> None:
    """IoU of the first two 100 / 120; the mean of their lower borders is (0.8 * 10 + 0.4 * 12) / 1.2 = 32 / 3."""
    one = detections_of([(0, 0, 10, 10), (50, 0, 60, 10)], [0, 0], [0.8, 0.5])
    two = detections_of([(0, 0, 10, 12), (0, 0, 10, 10)], [0, 1], [0.4, 0.3])
    fused = fuse([one, two])
    assert fused.labels.tolist() == [0, 0, 1]
    assert fused.scores.tolist() == pytest.approx([0.6, 0.25, 0.15])
    assert fused.boxes[0].tolist() == pytest.approx([0, 0, 10, 32 / 3])
    assert fused.boxes[1:].tolist() == [[50, 0, 60, 10], [0, 0, 10, 10]]


def test_an_object_belongs_to_the_nearest_of_two() -> None:
    """Two neighbours, IoU 18 / 42 with each other; what the second view shows has 25 / 35 with the one and 23 / 37 with
    the other, both above 0.5."""
    one = detections_of([(0, 0, 30, 10), (12, 0, 42, 10)], [0, 0], [0.9, 0.8])
    two = detections_of([(5, 0, 35, 10)], [0], [0.6])
    fused = fuse([one, two])
    assert fused.scores.tolist() == pytest.approx([0.75, 0.4])
    assert fused.boxes[0].tolist() == pytest.approx([0.6 * 5 / 1.5, 0, (0.9 * 30 + 0.6 * 35) / 1.5, 10])


def test_scores_stay_scores_and_nothing_stays_nothing() -> None:
    """Two boxes of one view that are of one object cannot make a score above 1."""
    twice = detections_of([(0, 0, 10, 10), (0, 0, 10, 11)], [0, 0], [1.0, 0.9])
    assert fuse([twice, twice]).scores.tolist() == [1]
    nothing = detections_of([], [], [])
    assert len(fuse([nothing, nothing])) == 0
    zero = detections_of([(0, 0, 10, 10)], [0], [0.0])
    assert torch.isfinite(fuse([zero, nothing]).boxes).all()


def test_a_box_without_an_area_is_one_of_its_own() -> None:
    fused = fuse([detections_of([(0, 0, 10, 10), (30, 5, 30, 9)], [0, 1], [0.8, 0.6])])
    assert torch.allclose(fused.boxes, torch.tensor([[0.0, 0, 10, 10], [30, 5, 30, 9]]))
    assert fused.scores.tolist() == pytest.approx([0.8, 0.6])


def test_several_views_of_several_pictures() -> None:
    images = [picture(40, 50, [(0, 0, 10, 10)], [0]), picture(20, 20, [(1, 2, 9, 9), (11, 12, 20, 20)], [1, 0])]
    joined = augmented([predict, flipped(predict)])(images)
    for plain, both in zip(predict(images), joined, strict=True):
        assert torch.allclose(plain.boxes, both.boxes)
        assert torch.allclose(plain.scores, both.scores)


def test_joining_keeps_the_order_of_scores_and_tells_the_rows() -> None:
    joined, rows = join(
        [detections_of([(0, 0, 1, 1), (0, 0, 2, 2)], [0, 1], [0.9, 0.2]), detections_of([(0, 0, 3, 3)], [1], [0.5])]
    )
    assert joined.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert rows.tolist() == [0, 2, 1]
