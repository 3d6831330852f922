"""The overlap of tubes, video-mAP and frame-mAP: tubes by hand, and a slow reference that counts inclusive pixels."""

import numpy as np
import pytest

from detkit.evaluation.tubes import (
    VIDEO_THRESHOLDS,
    Tube,
    frame_ap,
    frame_map,
    trapezoid_ap,
    tube_iou,
    video_ap,
    video_map,
)
from detkit.structures import Categories
from tests.evaluation.scenes import CATEGORIES, Box, detected, image, random_scene
from tests.reference import tubes as reference

A, B, HALF_OF_A = (0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 5)


def tube(box: Box = A, frames: range = range(10), score: float = 0.9, label: int = 0, video: str = "v") -> Tube:
    """The same box in all frames."""
    boxes = np.array([box] * len(frames), np.float32)
    return Tube(video, label, np.array(frames, np.int64), boxes, score)


def test_the_overlap_is_that_of_the_frames_times_the_mean_of_the_boxes() -> None:
    assert tube_iou(tube(), tube()) == 1
    assert tube_iou(tube(), tube(B)) == 0
    assert tube_iou(tube(frames=range(5)), tube(frames=range(5, 9))) == 0
    assert tube_iou(tube(), tube(HALF_OF_A)) == 0.5
    assert tube_iou(tube(), tube(frames=range(5, 15))) == pytest.approx(5 / 15)
    assert tube_iou(tube(), tube(HALF_OF_A, frames=range(5, 15))) == pytest.approx(5 / 15 / 2)


def test_only_frames_of_both_count_for_the_boxes() -> None:
    boxes = np.array([A, A, B, B], np.float32)
    moved = Tube("v", 0, np.array([0, 1, 2, 4]), boxes)
    # common 0, 1, 2 with IoU 1, 1, 0; frame 4 is in one tube alone, 3 in the other
    assert tube_iou(moved, tube(frames=range(4))) == pytest.approx(3 / 5 * 2 / 3)


@pytest.mark.parametrize(("frames", "count"), [([], 0), ([1, 1], 2), ([2, 1], 2)])
def test_a_tube_has_frames_in_order(frames: list[int], count: int) -> None:
    with pytest.raises(ValueError, match=r"Tube.frames: expected at least one, each later than the last"):
        Tube("v", 0, np.array(frames, np.int64), np.zeros((count, 4), np.float32))


@pytest.mark.parametrize(
    ("hits", "num_objects", "expected"),
    [
        ([1, 1], 2, 1.0),
        ([1], 2, 0.5),  # the curve ends at recall 1/2
        ([], 2, 0.0),
        ([0], 2, 0.0),
        # from (recall 0, precision 1) to (0, 0), then in a line to (1, 1/2)
        ([0, 1], 1, 1 / 4),
        # (0, 1), (1/2, 1), (1/2, 1/2), (1, 2/3); VOC's area would be 5/6
        ([1, 0, 1], 2, 1 / 2 + (1 / 2 + 2 / 3) / 4),
    ],
)
def test_the_area_is_that_of_straight_lines_between_the_points(
    hits: list[int], num_objects: int, expected: float
) -> None:
    assert trapezoid_ap(np.array(hits, np.bool_), num_objects) == pytest.approx(expected, abs=1e-15)


def half(ground_truth: list[Tube], detections: list[Tube]) -> float:
    """The AP of class 0 at 0.5."""
    return float(video_ap(ground_truth, detections, 2, (0.5,))[0, 0])


def test_an_overlap_of_the_threshold_is_enough() -> None:
    assert half([tube()], [tube(HALF_OF_A)]) == 1
    assert half([tube()], [tube((0, 0, 10, 4.9))]) == 0
    assert half([tube()], [tube(frames=range(5))]) == 1
    assert half([tube()], [tube(frames=range(4))]) == 0


def test_a_second_detection_is_compared_with_the_tubes_that_are_left() -> None:
    beside = (0, 0, 10, 9)
    assert half([tube(), tube(beside)], [tube(score=0.9), tube(score=0.8)]) == 1  # VOC would call it a duplicate
    # the other tube is far away, so that the second is wrong
    assert half([tube(), tube(B)], [tube(score=0.9), tube(score=0.8), tube(B, score=0.7)]) == pytest.approx(
        1 / 2 + (1 / 2 + 2 / 3) / 4
    )


def test_videos_and_classes_are_apart_and_scores_rank_over_all_videos() -> None:
    truth = [tube(video="a"), tube(video="b", label=1)]
    assert half(truth, [tube(video="b")]) == 0
    assert half(truth, [tube(video="a", label=1)]) == 0
    assert half(truth, [tube(video="b", score=0.9), tube(video="a", score=0.8)]) == pytest.approx(1 / 4)
    assert half(truth, [tube(video="b", score=0.7), tube(video="a", score=0.8)]) == 1


def test_classes_without_a_tube_are_left_out_of_the_mean() -> None:
    result = video_map([tube(), tube(video="w")], [tube(), tube(label=1)], CATEGORIES)
    assert result.per_class["cat"] == 0.5
    assert np.isnan(result.per_class["dog"])
    assert result.score == 0.5
    assert np.isnan(video_map([], [tube()], CATEGORIES).score)


def test_metrics_of_one_tube_with_six_of_ten_frames() -> None:
    result = video_map([tube()], [tube(frames=range(2, 8))], CATEGORIES)
    assert result.metrics == {
        "video-mAP@0.2": 1,
        "video-mAP@0.5": 1,
        "video-mAP@0.75": 0,
        "video-mAP@0.5:0.95": pytest.approx(0.3),  # at 0.5, 0.55 and 0.6
    }
    assert result.headline == "video-mAP@0.5"
    assert "spatio-temporal IoU >= threshold" in result.rules
    assert VIDEO_THRESHOLDS == (0.2, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    for truth, detections in (([tube(label=label)], []), ([], [tube(label=label)])):
        with pytest.raises(ValueError, match=rf"video 'v': expected labels of tubes in \[0, 2\), got {label}"):
            video_ap(truth, detections, 2, (0.5,))


def random_tubes(rng: np.random.Generator, num_classes: int) -> tuple[list[Tube], list[Tube]]:
    """Tubes on a coarse grid, so that overlaps and scores tie, with jittered, duplicate and wrong detections."""
    truth, detections = [], []
    for video in range(12):
        for _ in range(rng.integers(0, 5)):
            first, count = rng.integers(0, 6), rng.integers(1, 8)
            corner, step = rng.integers(0, 4, 2) * 10, rng.integers(-1, 2, 2) * 5
            corners = corner + step * np.arange(count)[:, None]
            boxes = np.hstack([corners, corners + rng.integers(1, 4, 2) * 10])
            frames, label = np.arange(first, first + count), int(rng.integers(num_classes))
            truth.append(Tube(str(video), label, frames, boxes.astype(np.float32)))
            for _ in range(rng.integers(0, 4)):
                keep = slice(rng.integers(0, 2), max(2, count - rng.integers(0, 2)))
                jittered = (boxes + rng.integers(0, 2, boxes.shape) * 5)[keep]
                if len(jittered):
                    score, guess = rng.integers(1, 8) / 8, label if rng.random() < 0.8 else rng.integers(num_classes)
                    detections.append(
                        Tube(str(video), int(guess), frames[keep], jittered.astype(np.float32), float(score))
                    )
    return truth, detections


def pixels(boxes: np.ndarray) -> list[list[float]]:
    """With the last pixels inside for x2 and y2, as the published files have them."""
    return (boxes - [0, 0, 1, 1]).tolist()


def boxes_of(each: Tube) -> reference.Boxes:
    return dict(zip(each.frames.tolist(), pixels(each.boxes), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_video_ap_equals_the_slow_reference(seed: int) -> None:
    truth, detections = random_tubes(np.random.default_rng(seed), num_classes=3)
    thresholds = (0.21, 0.51, 0.74)  # no overlap here is so close to them that rounding decides
    aps = video_ap(truth, detections, 4, thresholds)
    for label in range(3):
        objects = [(each.video, boxes_of(each), False) for each in truth if each.label == label]
        guesses = [(each.video, each.score, boxes_of(each)) for each in detections if each.label == label]
        expected = [reference.average_precision(objects, guesses, threshold) for threshold in thresholds]
        np.testing.assert_allclose(aps[label], expected, rtol=0, atol=1e-12)
    assert np.isnan(aps[3]).all()
    assert 0 < aps[0, 1] < 1


@pytest.mark.parametrize("seed", range(4))
def test_frame_ap_equals_the_slow_reference(seed: int) -> None:
    images, detections = random_scene(np.random.default_rng(seed), range(20), num_classes=3)
    aps = frame_ap(images, detections, 4)
    for label in range(3):
        objects = [
            (index, {0: pixels(box)}, bool(ignore))
            for index, each in enumerate(images)
            for box, ignore in zip(each.objects.boxes, each.objects.ignore, strict=True)
        ]
        labels = [its_label for each in images for its_label in each.objects.labels]
        objects = [row for row, its_label in zip(objects, labels, strict=True) if its_label == label]
        guesses = [
            (index, float(score), {0: pixels(box)})
            for index, each in enumerate(detections)
            for box, score, its_label in zip(each.boxes.numpy(), each.scores, each.labels, strict=True)
            if its_label == label
        ]
        assert aps[label] == pytest.approx(reference.average_precision(objects, guesses, 0.5), abs=1e-12)
    assert np.isnan(aps[3])
    assert 0 < aps[0] < 1


def test_detections_of_ignored_objects_are_neither_right_nor_wrong() -> None:
    images = [image([A, B], ignore=[True, False])]
    result = frame_map(images, [detected([A, A, B])], Categories.of_names(["cat", "dog"]))
    assert result.metrics == {"frame-mAP@0.5": 1.0}
    assert (result.score, result.per_class["cat"]) == (1, 1)
    assert frame_ap(images, [detected([A])], 1)[0] == 0


def test_frames_are_apart() -> None:
    assert frame_ap([image([A]), image()], [detected(), detected([A])], 1)[0] == 0
    assert frame_ap([image([A]), image()], [detected([A], [0.5]), detected([A], [0.9])], 1)[0] == pytest.approx(1 / 4)
