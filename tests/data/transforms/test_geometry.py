"""The primitives: picture, boxes, masks, keypoints and proposals move together."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from detkit.data.transforms import on_canvas, resize_sample
from detkit.data.transforms.geometry import MIN_VISIBLE, Window, flip, take_window, warp
from detkit.structures import MaskCrops, Objects, Sample
from tests.data.transforms.samples import (
    BOXES,
    COLOURS,
    dense_masks,
    framed,
    pixels_of,
    three_rectangles,
    with_boxes,
    with_masks_and_keypoints,
)
from tests.reference import augment as reference

TURN = np.array([[0.0, -1, 100], [1, 0, 0]])  # clockwise by 90 degrees: what was the top is at the right
EXACT: dict[str, Callable[[Sample], Sample]] = {  # each sends pixels to pixels
    "flip": flip,
    "upside down": lambda sample: flip(sample, upside_down=True),
    "window": lambda sample: take_window(sample, Window(5, 20, (80, 120))),
    "canvas": lambda sample: take_window(sample, Window(-10, -7, (130, 180))),
    "both": lambda sample: take_window(sample, Window(10, -10, (100, 150))),
    "twice": lambda sample: resize_sample(sample, (200, 320), interpolation=0),
    "turn": lambda sample: warp(sample, TURN, (160, 100)),
    "shift": lambda sample: warp(sample, np.array([[1.0, 0, -15], [0, 1, 4]]), (90, 200)),
}


@pytest.fixture
def sample() -> Sample:
    return three_rectangles()


@pytest.mark.parametrize("name", EXACT)
def test_an_object_is_found_again_by_its_box_mask_and_points(sample: Sample, name: str) -> None:
    before = replace(with_masks_and_keypoints(sample), proposals=BOXES.copy())
    result = EXACT[name](before)
    objects = result.objects
    assert len(objects) == 3
    assert objects.keypoints is not None
    assert result.proposals is not None
    np.testing.assert_array_equal(result.proposals, objects.boxes)
    for box, label, mask, points in zip(
        objects.boxes, objects.labels, dense_masks(result), objects.keypoints, strict=True
    ):
        assert tuple(box) == framed(pixels_of(result, label))
        np.testing.assert_array_equal(mask, pixels_of(result, label))
        seen = points[points[:, 2] > 0]
        if len(seen) == 2:  # the corners of the box, if none was cut off
            assert (*seen[:, :2].min(axis=0), *seen[:, :2].max(axis=0)) == tuple(box)
            assert seen[:, 2].tolist() == [2, 1]
        assert (points[2] == 0).all()
    assert before.objects.boxes.tolist() == BOXES.tolist(), "what was given stays"


POINT_MOVES: dict[str, tuple[Callable[[Sample], Sample], list[list[float]]]] = {
    "crop": (lambda sample: take_window(sample, Window(25, 10, (40, 50))), [[2.5, 5.5, 2], [28.5, 30.5, 1]]),
    "cut": (lambda sample: take_window(sample, Window(31, 0, (60, 60))), [[0, 0, 0], [38.5, 24.5, 1]]),
    "expand": (lambda sample: take_window(sample, Window(-10, -7, (130, 180))), [[19.5, 40.5, 2], [45.5, 65.5, 1]]),
    "flip": (flip, [[147.5, 30.5, 2], [121.5, 55.5, 1]]),
    "upside down": (lambda sample: flip(sample, upside_down=True), [[12.5, 69.5, 2], [38.5, 44.5, 1]]),
    "resize": (lambda sample: resize_sample(sample, (50, 320)), [[25, 15.25, 2], [77, 27.75, 1]]),
    "jitter": (
        lambda sample: take_window(resize_sample(sample, (50, 320)), Window(10, 30, (100, 100))),
        [[0, 0, 0], [47, 17.75, 1]],
    ),
    "warp": (lambda sample: warp(sample, TURN, (160, 100)), [[69.5, 12.5, 2], [44.5, 38.5, 1]]),
    "warp out": (lambda sample: warp(sample, np.array([[1.0, 0, -15], [0, 2, 0]]), (100, 60)), [[0, 0, 0]] * 2),
    "canvas": (lambda sample: on_canvas(sample, 100, 200, (300, 300)), [[212.5, 130.5, 2], [238.5, 155.5, 1]]),
}


@pytest.mark.parametrize("name", POINT_MOVES)
def test_points_move_with_the_picture(name: str) -> None:
    """A visible one, a hidden one, and one that is not labelled, which stays so, as does one that has come outside."""
    points = np.array([[[12.5, 30.5, 2], [38.5, 55.5, 1], [0, 0, 0]]], np.float32)
    sample = with_boxes(np.zeros((100, 160, 3), np.uint8), (10, 20, 40, 60))
    sample = replace(sample, objects=replace(sample.objects, keypoints=points))
    move, expected = POINT_MOVES[name]
    result = move(sample).objects.keypoints
    assert result is not None
    np.testing.assert_allclose(result[0], [*expected, [0, 0, 0]], atol=1e-5)


def test_a_point_outside_is_not_labelled(sample: Sample) -> None:
    """The window cuts the first box at x = 25: its left corner is outside, its right one at 40 - 25."""
    result = take_window(with_masks_and_keypoints(sample), Window(0, 25, (100, 100)))
    assert result.objects.keypoints is not None
    assert result.objects.keypoints[0].tolist() == [[0, 0, 0], [15, 50, 1], [0, 0, 0]]


def test_the_mirror_swaps_points_that_are_left_and_right(sample: Sample) -> None:
    result = flip(with_masks_and_keypoints(sample), pairs=[(0, 1)])
    assert result.objects.keypoints is not None
    assert result.objects.keypoints[0].tolist() == [[120, 50, 1], [150, 20, 2], [0, 0, 0]]


def test_objects_on_a_canvas(sample: Sample) -> None:
    result = on_canvas(replace(with_masks_and_keypoints(sample), proposals=BOXES[:1].copy()), 7, 9, (150, 200))
    assert result.image is sample.image, "whoever has the canvas puts it there"
    shift = np.float32([9, 7, 9, 7])
    np.testing.assert_array_equal(result.objects.boxes, BOXES + shift)
    np.testing.assert_array_equal(result.proposals, BOXES[:1] + shift)
    assert isinstance(result.objects.masks, MaskCrops)
    assert framed(result.objects.masks.dense((150, 200))[0]) == (19, 27, 49, 57)


def test_without_objects_and_with_all_columns() -> None:
    nothing = with_masks_and_keypoints(with_boxes(np.zeros((100, 160, 3), np.uint8)))
    for change in EXACT.values():
        result = change(nothing)
        assert result.objects.keypoints is not None
        assert dense_masks(result).shape == (0, *result.image.shape[:2])
        assert result.objects.keypoints.shape == (0, 3, 3)


@pytest.mark.parametrize("size", [(200, 320), (50, 80), (77, 301)])
def test_resize_scales_the_boxes_with_the_picture(sample: Sample, size: tuple[int, int]) -> None:
    result = resize_sample(sample, size)
    assert result.image.shape == (*size, 3)
    back = result.objects.boxes / np.array([size[1] / 160, size[0] / 100] * 2)
    np.testing.assert_allclose(back, BOXES, rtol=1e-6)
    for box, label in zip(result.objects.boxes, result.objects.labels, strict=True):
        y, x = int((box[1] + box[3]) / 2), int((box[0] + box[2]) / 2)
        assert result.image[y, x].tolist() == COLOURS[label - 5].tolist()


def test_resize_keeps_a_full_box_inside() -> None:
    image = np.zeros((333, 500, 3), np.uint8)
    sample = with_boxes(image, (0, 0, 500, 333))
    for size in ((600, 901), (47, 71), (999, 1333)):
        assert resize_sample(sample, size).objects.boxes.tolist() == [[0, 0, size[1], size[0]]]


def test_proposals_are_resized_with_the_picture(sample: Sample) -> None:
    result = resize_sample(replace(sample, proposals=sample.objects.boxes[:2].copy()), (50, 320))
    assert result.proposals is not None
    np.testing.assert_array_equal(result.proposals, sample.objects.boxes[:2] * np.float32([2, 0.5, 2, 0.5]))


def random_matrix(rng: np.random.Generator) -> np.ndarray:
    linear = rng.uniform(0.5, 1.5) * np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2))
    return np.column_stack([linear, rng.uniform(-8, 8, 2)])


def test_warp_is_bilinear_between_the_centres_of_pixels() -> None:
    """OpenCV rounds the place to 1/32 px: on this ramp at most 1.5 of 255."""
    rows, columns = np.mgrid[:20, :28]
    image = np.stack([9 * columns, 255 - 12 * rows, 4 * (rows + columns)], axis=2).astype(np.uint8)
    for seed in range(10):
        matrix = random_matrix(np.random.default_rng(seed))
        result = warp(with_boxes(image), matrix, (24, 18)).image
        expected = reference.warp(image, matrix, 24, 18, fill=114)
        inside = reference.warp(np.ones_like(image), matrix, 24, 18, fill=0).min(axis=2) > 1 - 1e-9
        assert inside.sum() > 30
        np.testing.assert_allclose(result[inside], expected[inside], atol=1.6)
        np.testing.assert_allclose(result, expected, atol=9)  # the border is a step of up to 114 * 1/16


def test_a_warped_box_is_the_one_around_its_corners() -> None:
    rng = np.random.default_rng(0)
    image, counts = np.zeros((60, 80, 3), np.uint8), []
    for _ in range(40):
        matrix = random_matrix(rng)
        corners = np.sort(rng.uniform(0, 1, (6, 2, 2)), axis=1) * (75, 55)
        boxes = corners.reshape(-1, 4).astype(np.float32) + np.float32([0, 0, 5, 5])
        result = warp(with_boxes(image, *map(tuple, boxes.tolist())), matrix, (50, 70))
        expected = [reference.warp_box(box, matrix, 50, 70) for box in boxes.tolist()]
        stay = [row for row, (_, visible) in enumerate(expected) if visible >= MIN_VISIBLE]
        assert result.objects.labels.tolist() == stay
        np.testing.assert_allclose(
            result.objects.boxes, np.reshape([expected[row][0] for row in stay], (-1, 4)), atol=1e-4
        )
        counts.append(len(stay))
    assert 60 < sum(counts) < 230


def test_warp_drops_what_has_become_tiny_but_for_regions_to_ignore() -> None:
    sample = with_boxes(np.zeros((100, 100, 3), np.uint8), (0, 0, 30, 9), (0, 0, 30, 30), (0, 0, 30, 9))
    sample = replace(sample, objects=replace(sample.objects, ignore=np.array([False, False, True])))
    result = warp(sample, np.array([[0.1, 0, 0], [0, 0.1, 0]]), (100, 100))
    assert result.objects.labels.tolist() == [1, 2]


def test_areas_are_scaled_as_their_boxes() -> None:
    """A segment of 600 of the 1200 px^2 of its box: twice as wide it has 1200, and half of that is 600."""
    sample = with_boxes(np.zeros((100, 160, 3), np.uint8), (10, 20, 40, 60))
    sample = replace(sample, objects=replace(sample.objects, area=np.array([600], np.float32)))
    assert flip(sample).objects.area.tolist() == [600]
    wide = resize_sample(sample, (100, 320))
    assert wide.objects.area.tolist() == [1200]
    assert take_window(wide, Window(0, 0, (100, 50))).objects.area.tolist() == [600]


def test_a_turn_makes_a_box_larger_and_leaves_the_area() -> None:
    """By 45 degrees a square of 20 px becomes a box of 28.3 px, and the segment has its 300 px^2 still; at half the
    size 75, and half of it cut off leaves half of that."""
    sample = with_boxes(np.zeros((100, 100, 3), np.uint8), (40, 40, 60, 60))
    sample = replace(sample, objects=replace(sample.objects, area=np.array([300], np.float32)))
    turn = np.array([[1, -1], [1, 1]]) / 2**0.5
    centre = np.array([50, 50])

    def turned(scale: float, target: tuple[float, float]) -> Sample:
        return warp(sample, np.column_stack([scale * turn, target - scale * turn @ centre]), (100, 100))

    result = turned(1, (50, 50))
    np.testing.assert_allclose(result.objects.boxes, [[50 - 14.142, 50 - 14.142, 50 + 14.142, 50 + 14.142]], atol=1e-3)
    assert result.objects.area == pytest.approx([300], rel=1e-5)
    assert turned(0.5, (50, 50)).objects.area == pytest.approx([75], rel=1e-5)
    assert turned(0.5, (0, 50)).objects.area == pytest.approx([37.5], rel=1e-5)


def test_an_object_that_leaves_the_window_in_a_frame_of_the_clip_is_ignored() -> None:
    """Both stay, as their own frame shows them; the second has moved out of the window by the second frame."""
    boxes = np.array([[10, 10, 30, 30], [60, 10, 80, 30]], np.float32)
    tubes = np.stack([boxes, boxes + np.array([25, 0, 25, 0], np.float32)], axis=1)
    objects = Objects(boxes, np.array([0, 1]), tubes=tubes)
    clip = Sample(np.zeros((2, 50, 100, 3), np.uint8), objects, "video/000000")
    cut = take_window(clip, Window(0, 5, (50, 80)))
    assert cut.image.shape == (2, 50, 80, 3)
    assert cut.objects.tubes is not None
    assert cut.objects.tubes.tolist() == [[[5, 10, 25, 30], [30, 10, 50, 30]], [[55, 10, 75, 30], [80, 10, 80, 30]]]
    assert cut.objects.ignore.tolist() == [False, True]
