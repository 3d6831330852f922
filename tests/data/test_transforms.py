"""Augmentation moves the boxes with the picture, and is the same for the same seed."""

import colorsys
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from detkit.data.transforms import Augment, AugmentConfig, resize_sample
from detkit.data.transforms.augment import INTERPOLATIONS
from detkit.data.transforms.geometry import FILL, Window, flip, move_boxes, take_window
from detkit.data.transforms.windows import MEAN, MIN_CROP
from detkit.structures import Objects, Sample

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
BOXES = np.array([(10, 20, 40, 50), (60, 30, 110, 90), (120, 5, 150, 25)], np.float32)
MODES = {
    "flip": AugmentConfig(horizontal_flip=1.0),
    "zoom in": AugmentConfig(horizontal_flip=0.0, scale_jitter=(1.0, 1.8)),
    "zoom out": AugmentConfig(horizontal_flip=0.0, scale_jitter=(0.3, 1.0)),
    "crop": AugmentConfig(horizontal_flip=0.0, crop=1.0),
    "expand": AugmentConfig(horizontal_flip=0.0, expand=3.0),
    "iou crop": AugmentConfig(horizontal_flip=0.0, iou_crop=True),
    "resize crop": AugmentConfig(horizontal_flip=0.0, resize_crop=1.0),
    "translate": AugmentConfig(horizontal_flip=0.0, translate=0.3),
    "all": AugmentConfig(horizontal_flip=0.5, scale_jitter=(0.5, 2.0), crop=0.5),
}


@pytest.fixture
def sample() -> Sample:
    """Three rectangles in plain colours on grey, the labels 5, 6, 7, the last one to be ignored."""
    image = np.full((100, 160, 3), 60, np.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES.astype(int), COLOURS, strict=True):
        image[y1:y2, x1:x2] = colour
    return Sample(image, Objects(BOXES.copy(), np.array([5, 6, 7]), np.array([False, False, True])), "id")


def with_boxes(
    image: np.ndarray, *boxes: tuple[float, float, float, float], proposals: np.ndarray | None = None
) -> Sample:
    """Objects with the labels 0, 1, ..."""
    return Sample(image, Objects(np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes))), 0, proposals)


def framed(sample: Sample, label: int) -> tuple[int, int, int, int]:
    """The box around the pixels that have the colour of `label`."""
    rows, columns = np.nonzero((sample.image == COLOURS[label - 5]).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def assert_same(one: Sample, two: Sample) -> None:
    np.testing.assert_array_equal(one.image, two.image)
    assert one.objects.columns().keys() == two.objects.columns().keys()
    for name, column in one.objects.columns().items():
        np.testing.assert_array_equal(column, two.objects.columns()[name])
    assert one.image_id == two.image_id


@pytest.mark.parametrize("mode", MODES)
def test_boxes_still_frame_their_objects(sample: Sample, mode: str) -> None:
    augment = Augment(MODES[mode])
    seen = 0
    for seed in range(60):
        result = augment(sample, seed)
        assert result.image_id == "id"
        objects = result.objects
        for box, label, ignore in zip(objects.boxes, objects.labels, objects.ignore, strict=True):
            assert tuple(box) == framed(result, label)
            assert ignore == (label == 7)
            seen += 1
    assert seen > 60


@pytest.mark.parametrize("mode", ["flip", "zoom out", "crop", "expand"])
def test_nothing_is_lost_where_the_objects_stay_whole(sample: Sample, mode: str) -> None:
    for seed in range(60):
        assert Augment(MODES[mode])(sample, seed).objects.labels.tolist() == [5, 6, 7]


def test_same_seed_same_result_and_other_seed_another(sample: Sample) -> None:
    config = AugmentConfig(scale_jitter=(0.5, 2.0), crop=0.5, photometric=0.8)
    one, two = Augment(config), Augment(config)
    for seed in range(5):
        one(sample, seed + 100)  # what came before does not matter
        assert_same(one(sample, seed), two(sample, seed))
    assert len({one(sample, seed).image.tobytes() for seed in range(20)}) > 15


def test_the_sample_given_is_not_changed(sample: Sample) -> None:
    before = replace(sample, image=sample.image.copy(), objects=sample.objects.map(np.copy))
    for mode in MODES.values():
        Augment(mode)(sample, 0)
    Augment(AugmentConfig(photometric=1.0))(sample, 0)
    assert_same(sample, before)


def test_flip_happens_with_its_probability(sample: Sample) -> None:
    augment = Augment(AugmentConfig(horizontal_flip=0.3))
    flipped = sum(augment(sample, seed).objects.boxes[0, 0] != BOXES[0, 0] for seed in range(400))
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
    sample = with_boxes(image, (0, 0, 40, 100), (0, 0, 40, 100))
    sample = replace(sample, objects=replace(sample.objects, ignore=np.array([False, True])))
    augment = Augment(AugmentConfig(horizontal_flip=0.0, scale_jitter=(2.0, 2.0)))
    widths: dict[int, set[float]] = {0: set(), 1: set()}
    for seed in range(300):
        result = augment(sample, seed)
        for (x1, _, x2, _), label in zip(result.objects.boxes.tolist(), result.objects.labels.tolist(), strict=True):
            widths[label].add(x2 - x1)
    assert (min(widths[0]), max(widths[0])) == (20, 40)
    assert (min(widths[1]), max(widths[1])) == (1, 40)


def test_crop_keeps_a_minimum_of_the_picture_around_a_tiny_object() -> None:
    sample = with_boxes(np.zeros((100, 160, 3), np.uint8), (80.2, 50.3, 80.9, 50.8))
    augment = Augment(AugmentConfig(horizontal_flip=0.0, crop=1.0))
    for seed in range(100):
        result = augment(sample, seed)
        assert result.image.shape[0] >= MIN_CROP * 100
        assert result.image.shape[1] >= MIN_CROP * 160
        np.testing.assert_allclose(result.objects.boxes[:, 2:] - result.objects.boxes[:, :2], [(0.7, 0.5)], atol=1e-4)


def test_expand_surrounds_half_of_the_pictures_with_the_mean_colour(sample: Sample) -> None:
    augment = Augment(AugmentConfig(horizontal_flip=0.0, expand=4.0))
    sizes = [augment(sample, seed).image.shape for seed in range(200)]
    grown = [size for size in sizes if size != (100, 160, 3)]
    assert 60 < len(grown) < 140
    assert max(grown) > (350, 560, 3)
    assert max(grown) <= (400, 640, 3)
    result = next(r for r in (augment(sample, seed) for seed in range(200)) if r.image.shape[0] > 150)
    assert (result.image == MEAN).all(axis=2).sum() == result.image.shape[0] * result.image.shape[1] - 100 * 160


def test_iou_crop_keeps_objects_by_their_centre_and_half_to_double_the_aspect(sample: Sample) -> None:
    """An object of 100 x 160 with a quarter visible stays or not by its centre alone."""
    image = np.zeros((100, 160, 3), np.uint8)
    sample = with_boxes(image, (0, 0, 160, 100), (0, 0, 16, 10))
    augment = Augment(AugmentConfig(horizontal_flip=0.0, iou_crop=True))
    whole, cut = 0, 0
    for seed in range(300):
        result = augment(sample, seed)
        height, width = result.image.shape[:2]
        whole += (height, width) == (100, 160)
        assert 0.3 * 0.5**0.5 * 100 - 1 <= height <= 100
        assert 0.3 * 0.5**0.5 * 160 - 1 <= width <= 160
        assert 0.48 <= (width / 160) / (height / 100) <= 2.08
        assert len(result.objects.labels) >= 1, "a window without any object is not taken"
        if 0 in result.objects.labels:  # clipped to the window: its centre, the picture's, is inside
            box = result.objects.boxes[result.objects.labels.tolist().index(0)]
            assert box.tolist() == [0, 0, width, height]
            cut += width * height < 0.25 * 100 * 160
    assert 20 < whole < 120, "one of seven choices, and those whose trials fail"
    assert cut > 0, "less than a quarter of the object was visible, and it stayed"


def test_iou_crop_overlaps_an_object(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.data.transforms.windows.CROP_OVERLAPS", (0.7,))
    sample = with_boxes(sample.image, (20, 10, 140, 90))
    augment = Augment(AugmentConfig(horizontal_flip=0.0, iou_crop=True))
    for seed in range(100):
        result = augment(sample, seed)
        (box,) = result.objects.boxes
        visible = (box[2] - box[0]) * (box[3] - box[1])
        window = result.image.shape[0] * result.image.shape[1]
        assert visible / (120 * 80 + window - visible) >= 0.7 or window == 100 * 160


@pytest.mark.parametrize(
    ("box", "choices"),
    [
        ((0, 0, 160, 100), 7),  # the IoU is the window's part of the picture; 50 trials reach .9 but for 3 in 100
        ((79, 49, 81, 51), 2),  # no window overlaps it by .1: the whole picture or any window
    ],
)
def test_iou_crop_takes_any_of_the_choices_that_find_a_window(
    sample: Sample, box: tuple[int, int, int, int], choices: int
) -> None:
    """A choice without a window is out, as in Caffe, and does not make the whole picture likelier."""
    one = with_boxes(sample.image, box)
    augment = Augment(AugmentConfig(horizontal_flip=0.0, iou_crop=True))
    whole = np.mean([augment(one, seed).image.shape == (100, 160, 3) for seed in range(600)])
    assert whole == pytest.approx(1 / choices, abs=0.05)


def test_translate_moves_every_border_by_its_part_at_most() -> None:
    sample = with_boxes(np.zeros((100, 200, 3), np.uint8))
    sizes = np.array([Augment(AugmentConfig(translate=0.2))(sample, seed).image.shape[:2] for seed in range(300)])
    assert sizes.min(axis=0) == pytest.approx([64, 128], abs=6)
    assert sizes.max(axis=0) == pytest.approx([136, 272], abs=6)
    assert (sizes >= [60, 120]).all()
    assert (sizes <= [140, 280]).all()


def test_jitter_places_the_picture_on_a_grey_square(sample: Sample) -> None:
    """The aspect, 1.6, changes by 1.3 / 0.7 at most; the boxes follow to within the blur of the resize."""
    augment = Augment(AugmentConfig(horizontal_flip=0.0, jitter=0.3, jitter_scale=(0.5, 1.0)))
    ratios, seen = [], 0
    for seed in range(100):
        result = augment(sample, seed)
        assert result.image.shape == (160, 160, 3)
        rows, columns = np.nonzero((result.image != 127).any(axis=2))
        ratios.append((np.ptp(columns) + 1) / (np.ptp(rows) + 1))
        assert result.objects.labels.tolist() == [5, 6, 7], "all of the picture is on the square"
        for box, label in zip(result.objects.boxes, result.objects.labels, strict=True):
            distance = np.abs(result.image.astype(int) - COLOURS[label - 5]).sum(axis=2)
            rows, columns = np.nonzero(distance < 180)
            visible = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, visible, atol=1.5)
            seen += 1
    assert seen == 300
    assert 1.6 * 0.7 / 1.3 - 0.05 < min(ratios) < 1.2
    assert 2.2 < max(ratios) < 1.6 * 1.3 / 0.7 + 0.05


def test_jitter_cuts_what_leaves_the_square(sample: Sample) -> None:
    augment = Augment(AugmentConfig(horizontal_flip=0.0, jitter=0.3, jitter_scale=(2.0, 2.0)))
    counts = [len(augment(sample, seed).objects.labels) for seed in range(60)]
    assert min(counts) < 3
    for seed in range(60):
        result = augment(sample, seed)
        assert (result.objects.boxes >= 0).all()
        assert (result.objects.boxes <= 160).all()


def test_hsv_keeps_grey_grey_and_changes_its_value(sample: Sample) -> None:
    grey = replace(sample, image=np.full((4, 4, 3), 100, np.uint8))
    augment = Augment(AugmentConfig(horizontal_flip=0.0, hsv=(0.1, 1.5, 1.5)))
    values = [augment(grey, seed).image for seed in range(200)]
    assert all((image == image[0, 0, 0]).all() for image in values)
    seen = [int(image[0, 0, 0]) for image in values]
    assert 66 <= min(seen) < 75
    assert 140 < max(seen) <= 150


def test_photometric_changes_come_one_by_one() -> None:
    """Of a grey picture saturation and hue change nothing: the rest is brightness added, contrast multiplied."""
    grey = with_boxes(np.full((4, 4, 3), 100, np.uint8))
    augment = Augment(AugmentConfig(horizontal_flip=0.0, photometric=0.5))
    values = np.array([int(augment(grey, seed).image[0, 0, 0]) for seed in range(600)])
    assert 0.15 < (values == 100).mean() < 0.35, "neither brightness nor contrast: a quarter"
    assert values.min() >= (100 - 32) * 0.5 - 1
    assert values.max() <= (100 + 32) * 1.5 + 1
    assert values.min() < 45
    assert values.max() > 175


def test_interpolation_is_bilinear_or_drawn_from_the_seed() -> None:
    assert {Augment(AugmentConfig()).interpolation(seed) for seed in range(20)} == {cv2.INTER_LINEAR}
    augment = Augment(AugmentConfig(random_interpolation=True))
    assert {augment.interpolation(seed) for seed in range(100)} == set(INTERPOLATIONS)
    assert augment.interpolation(3) == augment.interpolation(3)


@pytest.mark.parametrize("hsv", [(0.6, 1.5, 1.5), (0.1, 0.5, 1.5), (0.1, 1.5, 0.9)])
def test_hsv_has_its_ranges(hsv: tuple[float, float, float]) -> None:
    with pytest.raises(ValidationError, match="factors of at least 1"):
        AugmentConfig(hsv=hsv)


@pytest.mark.parametrize("mode", MODES)
def test_image_without_objects(mode: str) -> None:
    nothing = with_boxes(np.zeros((50, 70, 3), np.uint8))
    for seed in range(10):
        result = Augment(MODES[mode])(nothing, seed)
        assert result.objects.boxes.shape == (0, 4)
        assert min(result.image.shape[:2]) > 0


@pytest.mark.parametrize("jitter", [(2.0, 1.0), (0.0, 1.0), (1.0, 100.0)])
def test_scale_jitter_must_be_a_range(jitter: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        AugmentConfig(scale_jitter=jitter)


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


@pytest.mark.parametrize("mode", [*MODES, "jitter"])
def test_proposals_move_as_boxes_do(sample: Sample, mode: str) -> None:
    """The boxes as proposals: all that stay are among them, and so are those of which too little is left to stay."""
    augment = Augment(MODES.get(mode, AugmentConfig(jitter=0.3)))
    for seed in range(40):
        result = augment(replace(sample, proposals=sample.objects.boxes.copy()), seed)
        assert result.proposals is not None
        assert result.proposals.dtype == np.float32
        assert_same(replace(result, proposals=None), augment(sample, seed))
        proposals = {tuple(box) for box in result.proposals.tolist()}
        assert {tuple(box) for box in result.objects.boxes.tolist()} <= proposals
        height, width = result.image.shape[:2]
        assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in proposals)


def test_proposals_are_resized_with_the_picture(sample: Sample) -> None:
    result = resize_sample(replace(sample, proposals=sample.objects.boxes[:2].copy()), (50, 320))
    assert result.proposals is not None
    np.testing.assert_array_equal(result.proposals, sample.objects.boxes[:2] * np.float32([2, 0.5, 2, 0.5]))


def test_the_window_of_detr(sample: Sample) -> None:
    """At a shorter side of 400, 500 or 600 px (from 100) its sides are 384 to 600 px: .64 to 1 of the height; the width
    of 640, 800 or 960 is cut to at most 600: .4 to .9375 of it."""
    augment = Augment(MODES["resize crop"])
    shapes = np.array([augment(sample, seed).image.shape[:2] for seed in range(300)])
    for sides, full, least, most in ((shapes[:, 0], 100, 0.64, 1.0), (shapes[:, 1], 160, 0.4, 0.9375)):
        assert round(least * full) <= sides.min() < (least + 0.05) * full
        assert (most - 0.05) * full < sides.max() <= round(most * full)


def test_the_window_of_detr_keeps_what_is_left_of_an_object(sample: Sample) -> None:
    augment = Augment(MODES["resize crop"])
    widths = [
        box[2] - box[0]
        for seed in range(300)
        for result in [augment(sample, seed)]
        for box, label in zip(result.objects.boxes, result.objects.labels, strict=True)
        if label == 5
    ]
    assert min(widths) < 0.2 * 30, "less than a quarter of an object should stay too"


def test_half_of_the_pictures_have_a_window(sample: Sample) -> None:
    augment = Augment(AugmentConfig(horizontal_flip=0.0, resize_crop=0.5))
    cropped = sum(augment(sample, seed).image.shape != sample.image.shape for seed in range(200))
    assert 75 < cropped < 125


def hues(image: np.ndarray) -> np.ndarray:
    return np.array([[colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in row] for row in image])


def test_hsv_moves_all_hues_alike_and_keeps_the_rest() -> None:
    """By the definition of HSV in Python's colorsys, to within the rounding of 8 bits."""
    image = np.array([[(200, 40, 30), (30, 180, 60), (50, 70, 220), (220, 210, 40)]], np.uint8)
    augment = Augment(AugmentConfig(horizontal_flip=0.0, hsv=(0.1, 1.0, 1.0)))
    before, moves = hues(image), []
    for seed in range(100):
        after = hues(augment(with_boxes(image), seed).image)
        moved = (after[..., 0] - before[..., 0] + 0.5) % 1 - 0.5
        np.testing.assert_allclose(moved, moved.mean(), atol=0.012)
        np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=0.012)
        moves.append(moved.mean())
    assert -0.105 < min(moves) < -0.08
    assert 0.08 < max(moves) < 0.105


def test_hsv_blends_with_grey_by_one_factor() -> None:
    image = np.array([[(140, 100, 90), (90, 130, 100), (100, 110, 150)]], np.uint8)
    augment = Augment(AugmentConfig(horizontal_flip=0.0, hsv=(0.0, 1.5, 1.0)))
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    factors = []
    for seed in range(100):
        result = augment(with_boxes(image), seed).image
        factor = ((result - grey) * (image - grey)).sum() / ((image - grey) ** 2).sum()
        np.testing.assert_allclose(result, grey + factor * (image - grey), atol=1.1)
        factors.append(factor)
    assert 0.65 < min(factors) < 0.72
    assert 1.43 < max(factors) < 1.52


@pytest.mark.parametrize("change", [{"hsv": (0.1, 1.5, 1.5)}, {"photometric": 1.0}])
def test_the_canvas_keeps_its_colour_and_the_picture_changes(change: dict[str, Any]) -> None:
    """Colours that change after a window are those of the whole picture changed before it."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    for seed in range(10):
        coloured, larger, smaller = (
            Augment(AugmentConfig(horizontal_flip=0.0, **change, **jitter))(with_boxes(image), seed).image
            for jitter in ({}, {"scale_jitter": (0.5, 0.5)}, {"scale_jitter": (2.0, 2.0)})
        )
        assert (coloured != image).any()
        matches = [(y, x) for y in range(21) for x in range(31) if (larger[y : y + 20, x : x + 30] == coloured).all()]
        assert len(matches) == 1
        assert (larger == FILL).all(axis=2).sum() == 40 * 60 - 20 * 30
        assert any((coloured[y : y + 10, x : x + 15] == smaller).all() for y in range(11) for x in range(16))


@pytest.mark.parametrize("column", ["masks", "keypoints"])
def test_what_no_augmentation_moves_yet_is_refused(sample: Sample, column: str) -> None:
    unmoved = {"masks": np.zeros((3, 100, 160), np.bool_), "keypoints": np.zeros((3, 17, 3), np.float32)}
    sample = replace(sample, objects=replace(sample.objects, **{column: unmoved[column]}))
    for change in (
        flip,
        lambda sample: take_window(sample, Window(0, 0, (50, 50))),
        lambda sample: resize_sample(sample, (50, 80)),
        lambda sample: move_boxes(sample, lambda boxes: boxes + 1),
    ):
        with pytest.raises(ValueError, match=f"image 'id' has {column}, which augmentation and resizing cannot move"):
            change(sample)
    assert resize_sample(sample, (100, 160)) is sample, "nothing moves"


def test_areas_are_scaled_as_their_boxes() -> None:
    """A segment of 600 of the 1200 px^2 of its box: twice as wide it has 1200, and half of that is 600."""
    sample = with_boxes(np.zeros((100, 160, 3), np.uint8), (10, 20, 40, 60))
    sample = replace(sample, objects=replace(sample.objects, area=np.array([600], np.float32)))
    assert flip(sample).objects.area.tolist() == [600]
    wide = resize_sample(sample, (100, 320))
    assert wide.objects.area.tolist() == [1200]
    assert take_window(wide, Window(0, 0, (100, 50))).objects.area.tolist() == [600]
