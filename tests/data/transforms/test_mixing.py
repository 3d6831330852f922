"""Mosaic and mixup beside slow references, and what every entry that mixes pictures has to keep."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from detkit.data.transforms import Augment, parse_augment
from detkit.data.transforms.mixing import MosaicConfig
from detkit.structures import Objects, Sample
from tests.data.transforms.samples import dense_masks, framed, only, with_boxes, with_masks_and_keypoints
from tests.reference import augment as reference

MIXING = ("mosaic", "mixup", "copy_paste")


def random_sample(number: int, height: int, width: int, count: int = 4) -> Sample:
    rng = np.random.default_rng(number)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (width - 2, height - 2)
    boxes = corners.reshape(-1, 4).astype(np.float32) + np.float32([0, 0, 2, 2])
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Sample(image, Objects(boxes, 100 * number + np.arange(count)), number)


def handed_out(samples: list[Sample]) -> Callable[[np.random.Generator, int], list[Sample]]:
    """`others` that draws nothing: the first so many of `samples`."""
    return lambda _, count: samples[:count]


@pytest.mark.parametrize("grid", [2, 3])
def test_mosaic_is_the_one_of_the_reference(grid: int) -> None:
    """Pictures with a side of 24 px are not resized. The sample lies in the middle of the others."""
    sizes = [(24, 18), (13, 24), (24, 24), (24, 7), (20, 24), (24, 9), (2, 24), (24, 23), (16, 24)][: grid**2]
    samples = [random_sample(number, *size) for number, size in enumerate(sizes)]
    own = (len(samples) - 1) // 2
    others = samples[:own] + samples[own + 1 :]
    augment, cut = only("mosaic", size=24, grid=grid), 0
    for seed in range(20):
        rng, reach = np.random.default_rng(seed), 0.5 / (grid - 1)
        rng.random()  # its probability
        rows, columns = (rng.uniform(-reach, reach, grid - 1) for _ in range(2))
        pictures = [(sample.image, sample.objects.boxes.tolist()) for sample in samples]
        canvas, objects = reference.mosaic(pictures, 24, rows, columns)
        result = augment(samples[own], seed, 0, handed_out(others))
        np.testing.assert_array_equal(result.image, canvas)
        assert result.objects.labels.tolist() == [100 * number + row for number, row, _ in objects]
        np.testing.assert_allclose(result.objects.boxes, [box for _, _, box in objects], atol=1e-4)
        assert result.image_id == own
        cut += len(objects) < 4 * grid**2
    assert cut > 1, "some objects were cut away"


def test_mosaic_scales_each_picture_to_fit() -> None:
    """All red and covered by its object, 40 x 20 becomes 20 x 10 and 5 x 10 becomes 10 x 20, where nothing is cut."""
    red = np.array([255, 0, 0], np.uint8)
    samples = [with_boxes(np.full((h, w, 3), red), (0, 0, w, h)) for h, w in ((20, 40), (10, 5), (20, 20), (7, 7))]
    sides = set()
    for seed in range(60):
        result = only("mosaic", size=20)(samples[0], seed, 0, handed_out(samples[1:]))
        assert len(result.objects) == 4
        for x1, y1, x2, y2 in result.objects.boxes.astype(int):
            assert (result.image[y1:y2, x1:x2] == red).all()
            sides.add((x2 - x1, y2 - y1))
        assert (result.image == red).all(axis=2).sum() == (result.image != 114).any(axis=2).sum()
    assert {(20, 10), (10, 20), (20, 20)} <= sides


def test_the_lines_of_a_mosaic_move_by_half_a_square() -> None:
    white = with_boxes(np.full((20, 20, 3), 255, np.uint8))
    corners = []
    for seed in range(100):
        image = only("mosaic", size=20)(
            white, seed, 0, handed_out([with_boxes(np.zeros((20, 20, 3), np.uint8))] * 3)
        ).image
        corners.append(framed(image[..., 0] == 255))
    lefts, bottoms = [box[0] for box in corners], [box[3] for box in corners]
    assert (min(lefts), max(lefts)) == (10, 30), "the white picture lies above on the right"
    assert (min(bottoms), max(bottoms)) == (10, 30)


def test_masks_and_points_of_a_mosaic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures of 20 x 20, the lines at 15 px: what lies 5 px from the left or the top is cut in the first cell,
    the other cells begin at 15 px. The third picture has no object."""
    monkeypatch.setattr(MosaicConfig, "_draw_lines", lambda *_: [0, 15, 40])
    one = with_masks_and_keypoints(with_boxes(np.zeros((20, 20, 3), np.uint8), (2, 4, 12, 16)))
    nothing = with_masks_and_keypoints(with_boxes(np.zeros((20, 20, 3), np.uint8)))
    # The sample lies second, after the first of the others.
    result = only("mosaic", size=20)(one, 0, 0, handed_out([one, nothing, one]))
    assert result.image.shape == (40, 40, 3)
    assert result.objects.boxes.tolist() == [[0, 0, 7, 11], [17, 0, 27, 11], [17, 19, 27, 31]]
    expected = np.zeros((3, 40, 40), np.bool_)
    expected[0, 0:11, 0:7] = expected[1, 0:11, 17:27] = expected[2, 19:31, 17:27] = True
    np.testing.assert_array_equal(dense_masks(result), expected)
    assert result.objects.keypoints is not None
    assert result.objects.keypoints.tolist() == [
        [[0, 0, 0], [7, 11, 1], [0, 0, 0]],
        [[0, 0, 0], [27, 11, 1], [0, 0, 0]],
        [[17, 19, 2], [27, 31, 1], [0, 0, 0]],
    ]
    nowhere = only("mosaic", size=20)(nothing, 0, 0, handed_out([nothing] * 3))
    assert dense_masks(nowhere).shape == (0, 40, 40)
    assert nowhere.objects.keypoints is not None
    assert nowhere.objects.keypoints.shape == (0, 3, 3)


@pytest.mark.parametrize("beta", [None, 1.5])
def test_mixup_blends_pixels_and_keeps_the_objects_of_both(beta: float | None) -> None:
    rows, columns = np.mgrid[:16, :20]
    smooth = np.stack([12 * columns, 255 - 15 * rows, 6 * (rows + columns)], axis=2).astype(np.uint8)
    one, two = random_sample(1, 24, 30), replace(random_sample(2, 16, 20), image=smooth)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rng.random()  # its probability
        mirrored = rng.random() < 0.5
        scale = rng.uniform(0.5, 1.5) * 1.5
        offset = [rng.uniform(min(free, 0), 0) for free in (30 - 20 * scale, 24 - 16 * scale)]
        share = 0.5 if beta is None else rng.beta(beta, beta)
        matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
        boxes = two.objects.boxes.copy()
        if mirrored:
            boxes[:, [0, 2]] = 20 - boxes[:, [2, 0]]
        other = reference.warp(smooth[:, ::-1] if mirrored else smooth, matrix, 24, 30, fill=114)
        result = only("mixup", beta=beta)(one, seed, 0, handed_out([two]))
        np.testing.assert_allclose(result.image, share * one.image + (1 - share) * other, atol=9)
        moved = [reference.warp_box(box, matrix, 24, 30) for box in boxes]
        rows = [
            row
            for row, (box, visible) in enumerate(moved)
            if visible >= 0.25 and min(box[2] - box[0], box[3] - box[1]) >= 1
        ]
        assert result.objects.labels.tolist() == [100, 101, 102, 103, *(200 + row for row in rows)]
        np.testing.assert_array_equal(result.objects.boxes[:4], one.objects.boxes)
        np.testing.assert_allclose(result.objects.boxes[4:], [moved[row][0] for row in rows], atol=1e-4)


@pytest.mark.parametrize("name", MIXING)
def test_proposals_masks_and_points_of_both_travel(name: str) -> None:
    """Objects of one colour each, in plain sight: after the change box, mask and colour are in the same place."""

    def one(number: int, box: tuple[int, int, int, int]) -> Sample:
        image = np.full((40, 60, 3), 20, np.uint8)
        image[box[1] : box[3], box[0] : box[2]] = 255
        sample = with_masks_and_keypoints(with_boxes(image, box))
        return replace(sample, proposals=sample.objects.boxes.copy(), image_id=number)

    settings: dict[str, Any] = {"mosaic": {"size": 60}, "mixup": {}, "copy_paste": {"object_probability": 1}}[name]
    others = handed_out([one(2, (30, 20, 50, 38))] * 3)
    for seed in range(10):
        result = only(name, **settings)(one(1, (5, 3, 25, 15)), seed, 0, others)
        objects = result.objects
        assert result.proposals is not None
        assert objects.keypoints is not None
        around = (result.proposals[:, None, :2] <= objects.boxes[:, :2]) & (
            result.proposals[:, None, 2:] >= objects.boxes[:, 2:]
        )
        assert around.all(axis=2).any(axis=0).all(), "a box may have shrunk to what is not covered"
        for box, mask, points in zip(objects.boxes, dense_masks(result), objects.keypoints, strict=True):
            np.testing.assert_allclose(framed(mask), box, atol=1)
            assert result.image[mask].mean() > 120
            seen = points[points[:, 2] == 2, :2]
            assert ((seen >= box[:2] - 0.01) & (seen <= box[2:] + 0.01)).all() or name == "copy_paste"


@pytest.mark.parametrize("name", [*MIXING, "cutout", "large_scale_jitter", "random_affine"])
def test_the_same_for_the_same_seed_and_nothing_given_is_changed(name: str) -> None:
    samples = [random_sample(number, 30, 40) for number in range(4)]
    before = [(sample.image.copy(), sample.objects.boxes.copy()) for sample in samples]
    augment = only(name)
    one, two = (augment(samples[0], 5, 0, handed_out(samples[1:])) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.objects.boxes, two.objects.boxes)
    assert one.image.tobytes() != augment(samples[0], 6, 0, handed_out(samples[1:])).image.tobytes()
    for sample, (image, boxes) in zip(samples, before, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.objects.boxes, boxes)


@pytest.mark.parametrize("name", [*MIXING, "cutout", "large_scale_jitter", "random_affine"])
def test_pictures_without_objects(name: str) -> None:
    nothing = random_sample(0, 30, 40, count=0)
    assert len(only(name)(nothing, 0, 0, handed_out([nothing] * 3)).objects) == 0
    assert len(only(name)(nothing, 0, 0, handed_out([random_sample(1, 30, 40)] * 3)).objects) <= 12


@pytest.mark.parametrize("name", MIXING)
def test_without_other_pictures_an_entry_says_what_it_needs(name: str) -> None:
    assert only(name).mixes
    assert not only("horizontal_flip").mixes
    with pytest.raises(ValueError, match=r"mixes several pictures: call augment\(sample, seed, epoch, others\)"):
        only(name)(random_sample(0, 30, 40), 0)


@pytest.mark.parametrize("name", [*MIXING, "cutout", "large_scale_jitter", "random_affine"])
def test_colours_that_change_before_are_those_of_the_picture_alone(name: str) -> None:
    """As if the picture had come with them: canvas, hole and the other pictures keep their colours."""
    samples = [random_sample(number, 32, 40) for number in range(4)]
    entries: list[Any] = [{"name": "hsv", "hue": 0}, {"name": name}]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rng.uniform(size=1)
        colour, light = rng.uniform(1 / 1.5, 1.5), rng.uniform(1 / 1.5, 1.5)
        grey = cv2.cvtColor(cv2.cvtColor(samples[0].image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        changed = cv2.addWeighted(samples[0].image, light * colour, grey, light * (1 - colour), 0)
        result = Augment(parse_augment(entries))(samples[0], seed, 0, handed_out(samples[1:]))
        # The same numbers for the second entry: the first draws its three, whatever it does with them.
        plain: list[Any] = [{"name": "hsv", "hue": 0, "saturation": 1, "exposure": 1}, {"name": name}]
        recoloured = replace(samples[0], image=changed)
        expected = Augment(parse_augment(plain))(recoloured, seed, 0, handed_out(samples[1:]))
        np.testing.assert_array_equal(result.image, expected.image)
