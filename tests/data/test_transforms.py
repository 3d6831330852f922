"""Augmentation moves the boxes with the picture, and is the same for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from detkit.data.transforms import FILL, MIN_CROP, Augment, AugmentConfig, resize_sample
from detkit.structures import Sample

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
BOXES = np.array([(10, 20, 40, 50), (60, 30, 110, 90), (120, 5, 150, 25)], np.float32)
MODES = {
    "flip": AugmentConfig(horizontal_flip=1.0),
    "zoom in": AugmentConfig(horizontal_flip=0.0, scale_jitter=(1.0, 1.8)),
    "zoom out": AugmentConfig(horizontal_flip=0.0, scale_jitter=(0.3, 1.0)),
    "crop": AugmentConfig(horizontal_flip=0.0, crop=1.0),
    "all": AugmentConfig(horizontal_flip=0.5, scale_jitter=(0.5, 2.0), crop=0.5),
}


@pytest.fixture
def sample() -> Sample:
    """Three rectangles in plain colours on grey, the labels 5, 6, 7, the last one to be ignored."""
    image = np.full((100, 160, 3), 60, np.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES.astype(int), COLOURS, strict=True):
        image[y1:y2, x1:x2] = colour
    return Sample(image, BOXES.copy(), np.array([5, 6, 7]), np.array([False, False, True]), "id")


def framed(sample: Sample, label: int) -> tuple[int, int, int, int]:
    """The box around the pixels that have the colour of `label`."""
    rows, columns = np.nonzero((sample.image == COLOURS[label - 5]).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def assert_same(one: Sample, two: Sample) -> None:
    for name in ("image", "boxes", "labels", "ignore"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.image_id == two.image_id


@pytest.mark.parametrize("mode", MODES)
def test_boxes_still_frame_their_objects(sample: Sample, mode: str) -> None:
    augment = Augment(MODES[mode])
    seen = 0
    for seed in range(60):
        result = augment(sample, seed)
        assert result.image_id == "id"
        assert len(result.boxes) == len(result.labels) == len(result.ignore)
        for box, label, ignore in zip(result.boxes, result.labels, result.ignore, strict=True):
            assert tuple(box) == framed(result, label)
            assert ignore == (label == 7)
            seen += 1
    assert seen > 60


@pytest.mark.parametrize("mode", ["flip", "zoom out", "crop"])
def test_nothing_is_lost_where_the_objects_stay_whole(sample: Sample, mode: str) -> None:
    for seed in range(60):
        assert Augment(MODES[mode])(sample, seed).labels.tolist() == [5, 6, 7]


def test_same_seed_same_result_and_other_seed_another(sample: Sample) -> None:
    config = AugmentConfig(scale_jitter=(0.5, 2.0), crop=0.5, photometric=0.8)
    one, two = Augment(config), Augment(config)
    for seed in range(5):
        one(sample, seed + 100)  # what came before does not matter
        assert_same(one(sample, seed), two(sample, seed))
    assert len({one(sample, seed).image.tobytes() for seed in range(20)}) > 15


def test_the_sample_given_is_not_changed(sample: Sample) -> None:
    before = replace(sample, image=sample.image.copy(), boxes=sample.boxes.copy())
    for mode in MODES.values():
        Augment(mode)(sample, 0)
    Augment(AugmentConfig(photometric=1.0))(sample, 0)
    assert_same(sample, before)


def test_flip_happens_with_its_probability(sample: Sample) -> None:
    augment = Augment(AugmentConfig(horizontal_flip=0.3))
    flipped = sum(augment(sample, seed).boxes[0, 0] != BOXES[0, 0] for seed in range(400))
    assert 80 < flipped < 160


def test_everything_off_changes_nothing(sample: Sample) -> None:
    assert_same(Augment(AugmentConfig(horizontal_flip=0.0))(sample, 3), sample)


def test_photometric_changes_colours_only(sample: Sample) -> None:
    result = Augment(AugmentConfig(horizontal_flip=0.0, photometric=1.0))(sample, 1)
    assert (result.image != sample.image).any()
    assert_same(replace(result, image=sample.image), sample)


def test_zoom_out_surrounds_the_picture_with_grey(sample: Sample) -> None:
    result = Augment(AugmentConfig(horizontal_flip=0.0, scale_jitter=(0.5, 0.5)))(sample, 0)
    assert result.image.shape == (200, 320, 3)
    assert (result.image == FILL).all(axis=2).sum() == 200 * 320 - 100 * 160


def test_zoom_in_keeps_an_object_while_a_quarter_of_it_is_left() -> None:
    """Half the height is always cut, so a quarter is half of the width; a region to ignore stays to the last pixel."""
    image = np.zeros((100, 160, 3), np.uint8)
    boxes = np.array([(0, 0, 40, 100)] * 2, np.float32)
    sample = Sample(image, boxes, np.array([0, 1]), np.array([False, True]), 0)
    augment = Augment(AugmentConfig(horizontal_flip=0.0, scale_jitter=(2.0, 2.0)))
    widths: dict[int, set[float]] = {0: set(), 1: set()}
    for seed in range(300):
        result = augment(sample, seed)
        for (x1, _, x2, _), label in zip(result.boxes.tolist(), result.labels.tolist(), strict=True):
            widths[label].add(x2 - x1)
    assert (min(widths[0]), max(widths[0])) == (20, 40)
    assert (min(widths[1]), max(widths[1])) == (1, 40)


def test_crop_keeps_a_minimum_of_the_picture_around_a_tiny_object() -> None:
    sample = Sample(
        np.zeros((100, 160, 3), np.uint8),
        np.array([(80.2, 50.3, 80.9, 50.8)], np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.bool_),
        0,
    )
    augment = Augment(AugmentConfig(horizontal_flip=0.0, crop=1.0))
    for seed in range(100):
        result = augment(sample, seed)
        assert result.image.shape[0] >= MIN_CROP * 100
        assert result.image.shape[1] >= MIN_CROP * 160
        np.testing.assert_allclose(result.boxes[:, 2:] - result.boxes[:, :2], [(0.7, 0.5)], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_image_without_objects(mode: str) -> None:
    nothing = Sample(
        np.zeros((50, 70, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), 0
    )
    for seed in range(10):
        result = Augment(MODES[mode])(nothing, seed)
        assert result.boxes.shape == (0, 4)
        assert min(result.image.shape[:2]) > 0


@pytest.mark.parametrize("jitter", [(2.0, 1.0), (0.0, 1.0), (1.0, 100.0)])
def test_scale_jitter_must_be_a_range(jitter: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        AugmentConfig(scale_jitter=jitter)


@pytest.mark.parametrize("size", [(200, 320), (50, 80), (77, 301)])
def test_resize_scales_the_boxes_with_the_picture(sample: Sample, size: tuple[int, int]) -> None:
    result = resize_sample(sample, size)
    assert result.image.shape == (*size, 3)
    back = result.boxes / np.array([size[1] / 160, size[0] / 100] * 2)
    np.testing.assert_allclose(back, BOXES, rtol=1e-6)
    for box, label in zip(result.boxes, result.labels, strict=True):
        y, x = int((box[1] + box[3]) / 2), int((box[0] + box[2]) / 2)
        assert result.image[y, x].tolist() == COLOURS[label - 5].tolist()


def test_resize_keeps_a_full_box_inside() -> None:
    image = np.zeros((333, 500, 3), np.uint8)
    sample = Sample(image, np.array([(0, 0, 500, 333)], np.float32), np.zeros(1, np.int64), np.zeros(1, np.bool_), 0)
    for size in ((600, 901), (47, 71), (999, 1333)):
        assert resize_sample(sample, size).boxes.tolist() == [[0, 0, size[1], size[0]]]
