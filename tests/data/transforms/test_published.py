"""The published recipes: boxes move with the picture, and the result is the same for the same seed."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from detkit.data.transforms import Augment, parse_augment
from detkit.data.transforms.augment import INTERPOLATIONS
from detkit.data.transforms.geometry import FILL
from detkit.data.transforms.windows import MEAN, MIN_CROP
from detkit.structures import Sample
from tests.data.transforms.samples import (
    BOXES,
    COLOURS,
    assert_same,
    framed,
    only,
    pixels_of,
    three_rectangles,
    with_boxes,
)

MODES = {
    "flip": only("horizontal_flip", probability=1),
    "zoom in": only("scale_jitter", scale=[1.0, 1.8]),
    "zoom out": only("scale_jitter", scale=[0.3, 1.0]),
    "crop": only("crop", probability=1),
    "expand": only("expand", max_ratio=3),
    "iou crop": only("iou_crop"),
    "resize crop": only("resize_crop", probability=1),
    "translate": only("translate", max_part=0.3),
    "all": Augment(parse_augment(["flip", {"name": "scale_jitter"}, {"name": "crop"}])),
}


@pytest.fixture
def sample() -> Sample:
    return three_rectangles()


@pytest.mark.parametrize("mode", MODES)
def test_boxes_still_frame_their_objects(sample: Sample, mode: str) -> None:
    augment = MODES[mode]
    seen = 0
    for seed in range(60):
        result = augment(sample, seed)
        assert result.image_id == "id"
        objects = result.objects
        for box, label, ignore in zip(objects.boxes, objects.labels, objects.ignore, strict=True):
            assert tuple(box) == framed(pixels_of(result, label))
            assert ignore == (label == 7)
            seen += 1
    assert seen > 60


@pytest.mark.parametrize("mode", ["flip", "zoom out", "crop", "expand"])
def test_nothing_is_lost_where_the_objects_stay_whole(sample: Sample, mode: str) -> None:
    for seed in range(60):
        assert MODES[mode](sample, seed).objects.labels.tolist() == [5, 6, 7]


def test_same_seed_same_result_and_other_seed_another(sample: Sample) -> None:
    entries = parse_augment(["ssd", {"name": "scale_jitter"}, {"name": "crop"}])
    one, two = Augment(entries), Augment(entries)
    for seed in range(5):
        one(sample, seed + 100)  # what came before does not matter
        assert_same(one(sample, seed), two(sample, seed))
    assert len({one(sample, seed).image.tobytes() for seed in range(20)}) > 15


def test_the_sample_given_is_not_changed(sample: Sample) -> None:
    before = replace(sample, image=sample.image.copy(), objects=sample.objects.map(np.copy))
    for mode in MODES.values():
        mode(sample, 0)
    only("photometric", each_probability=1)(sample, 0)
    assert_same(sample, before)


def test_flip_happens_with_its_probability(sample: Sample) -> None:
    augment = only("horizontal_flip", probability=0.3)
    flipped = sum(augment(sample, seed).objects.boxes[0, 0] != BOXES[0, 0] for seed in range(400))
    assert 80 < flipped < 160


def test_no_entry_changes_nothing(sample: Sample) -> None:
    assert_same(Augment(())(sample, 3), sample)


def test_zoom_out_surrounds_the_picture_with_grey(sample: Sample) -> None:
    result = only("scale_jitter", scale=[0.5, 0.5])(sample, 0)
    assert result.image.shape == (200, 320, 3)
    assert (result.image == FILL).all(axis=2).sum() == 200 * 320 - 100 * 160


def test_zoom_in_keeps_an_object_while_a_quarter_of_it_is_left() -> None:
    """Half the height is always cut, so a quarter is half of the width; a region to ignore stays to the last pixel."""
    image = np.zeros((100, 160, 3), np.uint8)
    sample = with_boxes(image, (0, 0, 40, 100), (0, 0, 40, 100))
    sample = replace(sample, objects=replace(sample.objects, ignore=np.array([False, True])))
    augment = only("scale_jitter", scale=[2, 2])
    widths: dict[int, set[float]] = {0: set(), 1: set()}
    for seed in range(300):
        result = augment(sample, seed)
        for (x1, _, x2, _), label in zip(result.objects.boxes.tolist(), result.objects.labels.tolist(), strict=True):
            widths[label].add(x2 - x1)
    assert (min(widths[0]), max(widths[0])) == (20, 40)
    assert (min(widths[1]), max(widths[1])) == (1, 40)


def test_crop_keeps_a_minimum_of_the_picture_around_a_tiny_object() -> None:
    sample = with_boxes(np.zeros((100, 160, 3), np.uint8), (80.2, 50.3, 80.9, 50.8))
    augment = only("crop", probability=1)
    for seed in range(100):
        result = augment(sample, seed)
        assert result.image.shape[0] >= MIN_CROP * 100
        assert result.image.shape[1] >= MIN_CROP * 160
        np.testing.assert_allclose(result.objects.boxes[:, 2:] - result.objects.boxes[:, :2], [(0.7, 0.5)], atol=1e-4)


def test_expand_surrounds_half_of_the_pictures_with_the_mean_colour(sample: Sample) -> None:
    augment = only("expand")
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
    augment = only("iou_crop")
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
    augment = only("iou_crop")
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
    augment = only("iou_crop")
    whole = np.mean([augment(one, seed).image.shape == (100, 160, 3) for seed in range(600)])
    assert whole == pytest.approx(1 / choices, abs=0.05)


def test_translate_moves_every_border_by_its_part_at_most() -> None:
    sample = with_boxes(np.zeros((100, 200, 3), np.uint8))
    sizes = np.array([only("translate", max_part=0.2)(sample, seed).image.shape[:2] for seed in range(300)])
    assert sizes.min(axis=0) == pytest.approx([64, 128], abs=8)
    assert sizes.max(axis=0) == pytest.approx([136, 272], abs=8)
    assert (sizes >= [60, 120]).all()
    assert (sizes <= [140, 280]).all()


def test_jitter_places_the_picture_on_a_grey_square(sample: Sample) -> None:
    """The aspect, 1.6, changes by 1.3 / 0.7 at most; the boxes follow to within the blur of the resize."""
    augment = only("jitter", scale=[0.5, 1])
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
    augment = only("jitter", scale=[2, 2])
    counts = [len(augment(sample, seed).objects.labels) for seed in range(60)]
    assert min(counts) < 3
    for seed in range(60):
        result = augment(sample, seed)
        assert (result.objects.boxes >= 0).all()
        assert (result.objects.boxes <= 160).all()


def test_interpolation_is_bilinear_or_drawn_from_the_seed() -> None:
    assert {Augment(()).interpolation(seed) for seed in range(20)} == {cv2.INTER_LINEAR}
    augment = only("random_interpolation")
    assert {augment.interpolation(seed) for seed in range(100)} == set(INTERPOLATIONS)
    assert augment.interpolation(3) == augment.interpolation(3)


@pytest.mark.parametrize("mode", MODES)
def test_image_without_objects(mode: str) -> None:
    nothing = with_boxes(np.zeros((50, 70, 3), np.uint8))
    for seed in range(10):
        result = MODES[mode](nothing, seed)
        assert result.objects.boxes.shape == (0, 4)
        assert min(result.image.shape[:2]) > 0


@pytest.mark.parametrize(
    "name", ["scale_jitter", "jitter", "large_scale_jitter", "random_affine", "mixup", "copy_paste"]
)
@pytest.mark.parametrize("limits", [(2.0, 1.0), (0.0, 1.0), (1.0, 100.0)])
def test_a_scale_must_be_a_range(name: str, limits: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        only(name, scale=limits)


@pytest.mark.parametrize("mode", [*MODES, "jitter"])
def test_proposals_move_as_boxes_do(sample: Sample, mode: str) -> None:
    """The boxes as proposals: all that stay are among them, and so are those of which too little is left to stay."""
    augment = MODES.get(mode, only("jitter"))
    for seed in range(40):
        result = augment(replace(sample, proposals=sample.objects.boxes.copy()), seed)
        assert result.proposals is not None
        assert result.proposals.dtype == np.float32
        assert_same(replace(result, proposals=None), augment(sample, seed))
        proposals = {tuple(box) for box in result.proposals.tolist()}
        assert {tuple(box) for box in result.objects.boxes.tolist()} <= proposals
        height, width = result.image.shape[:2]
        assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in proposals)


def test_the_window_of_detr(sample: Sample) -> None:
    """At a shorter side of 400, 500 or 600 px (from 100) its sides are 384 to 600 px: .64 to 1 of the height; the width
    of 640, 800 or 960 is cut to at most 600: .4 to .9375 of it."""
    augment = MODES["resize crop"]
    shapes = np.array([augment(sample, seed).image.shape[:2] for seed in range(300)])
    for sides, full, least, most in ((shapes[:, 0], 100, 0.64, 1.0), (shapes[:, 1], 160, 0.4, 0.9375)):
        assert round(least * full) <= sides.min() < (least + 0.05) * full
        assert (most - 0.05) * full < sides.max() <= round(most * full)


def test_the_window_of_detr_keeps_what_is_left_of_an_object(sample: Sample) -> None:
    augment = MODES["resize crop"]
    widths = [
        box[2] - box[0]
        for seed in range(300)
        for result in [augment(sample, seed)]
        for box, label in zip(result.objects.boxes, result.objects.labels, strict=True)
        if label == 5
    ]
    assert min(widths) < 0.2 * 30, "less than a quarter of an object should stay too"


def test_half_of_the_pictures_have_a_window(sample: Sample) -> None:
    augment = only("resize_crop", probability=0.5)
    cropped = sum(augment(sample, seed).image.shape != sample.image.shape for seed in range(200))
    assert 75 < cropped < 125
