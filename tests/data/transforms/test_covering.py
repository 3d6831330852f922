"""Copy-paste and cutout beside slow references."""

from dataclasses import replace

import numpy as np
import pytest

from detkit.structures import MaskCrops, Objects, Sample
from tests.data.transforms.samples import crops_of, dense_masks, framed, only, with_boxes, with_masks_and_keypoints
from tests.data.transforms.test_mixing import handed_out, random_sample
from tests.reference import augment as reference


def test_rectangles_are_pasted_as_in_the_reference() -> None:
    """At scale 1 a picture of the same size is only mirrored, so that pixels and boxes are exact."""
    one, two = random_sample(1, 30, 40, count=5), random_sample(2, 30, 40, count=5)
    augment, dropped, along = only("copy_paste", scale=[1, 1], max_covered=0.6), 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rng.random()  # its probability
        mirrored = rng.random() < 0.5
        rng.uniform(size=3)  # scale and place
        chosen = {row for row in range(5) if rng.random() < 0.5}
        other, boxes = two.image, two.objects.boxes.copy()
        if mirrored:
            other, boxes[:, [0, 2]] = other[:, ::-1], 40 - boxes[:, [2, 0]]
        pasted = sorted(reference.with_companions(boxes.tolist(), chosen))
        image, covered = reference.paste(one.image, other, boxes[pasted].tolist())
        visible = [row for row, box in enumerate(one.objects.boxes) if reference.hidden_part(box, covered) <= 0.6]
        result = augment(one, seed, 0, handed_out([two]))
        np.testing.assert_array_equal(result.image, image)
        assert result.objects.labels.tolist() == [*(100 + row for row in visible), *(200 + row for row in pasted)]
        np.testing.assert_allclose(result.objects.boxes, [*one.objects.boxes[visible], *boxes[pasted]], atol=1e-4)
        dropped, along = dropped + (len(visible) < 5), along + (len(pasted) > len(chosen))
    assert dropped > 5
    assert along > 5


def two_squares(mask: bool = True) -> tuple[Sample, Sample]:
    """20 x 20 at (10, 10) in a dark picture; a bright disc of diameter 20 in a square of the same place, in grey."""
    dark, grey = np.full((40, 40, 3), 20, np.uint8), np.full((40, 40, 3), 90, np.uint8)
    rows, columns = np.mgrid[:40, :40] + 0.5
    disc = (rows - 20) ** 2 + (columns - 20) ** 2 < 100
    dark[10:30, 10:30], grey[disc] = 200, 250
    one, two = (with_masks_and_keypoints(with_boxes(image, (10, 10, 30, 30))) for image in (dark, grey))
    return one, replace(two, objects=replace(two.objects, masks=crops_of(disc[None])))


def test_masks_paste_pixels_and_what_lies_beneath_loses_them() -> None:
    """The square keeps its four corners, 86 of 400 pixels, and a box around them that is its old one."""
    one, two = two_squares()
    result = only("copy_paste", scale=[1, 1], object_probability=1, max_covered=0.8)(one, 0, 0, handed_out([two]))
    (disc,), masks = dense_masks(two), dense_masks(result)
    np.testing.assert_array_equal(result.image, np.where(disc[..., None], two.image, one.image))
    np.testing.assert_array_equal(masks[1], disc)
    assert not (masks[0] & disc).any()
    assert masks[0].sum() == 400 - disc.sum() == 84
    assert result.objects.boxes.tolist() == [[10, 10, 30, 30]] * 2
    strict = only("copy_paste", scale=[1, 1], object_probability=1, max_covered=0.75)(one, 0, 0, handed_out([two]))
    assert strict.objects.labels.tolist() == [0], "79 of 100 pixels are covered: only the disc is left"


def test_a_box_shrinks_to_what_its_mask_has_left() -> None:
    """The right half is covered: a box and an area of half."""
    one = with_masks_and_keypoints(with_boxes(np.zeros((40, 40, 3), np.uint8), (10, 10, 30, 30)))
    one = replace(one, objects=replace(one.objects, area=np.array([400], np.float32)))
    # Mirrored it is the same.
    two = with_boxes(np.full((40, 40, 3), 255, np.uint8), (15, 0, 25, 40))
    two = with_masks_and_keypoints(replace(two, objects=replace(two.objects, area=np.array([400], np.float32))))
    for seed in range(4):
        result = only("copy_paste", scale=[1, 1], object_probability=1)(one, seed, 0, handed_out([two]))
        assert [framed(mask) for mask in dense_masks(result)] == [(10, 10, 30, 30), (15, 0, 25, 40)]
        assert result.objects.area is not None
        assert result.objects.area.tolist() == [200, 400]
    bitmaps = dense_masks(one)
    bitmaps[0, :, 25:] = False  # its right end is now what the bar covers
    narrow = replace(one, objects=replace(one.objects, masks=crops_of(bitmaps)))
    (first, _) = only("copy_paste", scale=[1, 1], object_probability=1)(narrow, 0, 0, handed_out([two])).objects.boxes
    assert first.tolist() == [10, 10, 15, 30]


def test_an_object_without_a_mask_is_not_pasted_and_covered_as_its_box() -> None:
    """In data with masks: of the second picture only the disc is pasted; beneath it lies a box of 400 px of which 316
    are covered, and its neighbour, whose mask is not known either, is in plain sight."""
    one, two = two_squares()
    no_mask = MaskCrops.of([np.zeros((0, 0))] * 2, np.zeros((2, 4)))
    boxes = np.array([(10, 10, 30, 30), (30, 30, 38, 38)], np.float32)
    area = np.array([400, 64], np.float32)
    one = replace(one, objects=Objects(boxes, np.array([0, 1]), area=area, masks=no_mask))
    bitmaps = np.zeros((2, 40, 40), np.bool_)
    bitmaps[0] = dense_masks(two)[0]
    two = replace(two, objects=Objects(boxes, np.array([2, 3]), area=area, masks=crops_of(bitmaps)))
    for max_covered, labels in ((0.8, [0, 1, 2]), (0.75, [1, 2])):
        augment = only("copy_paste", scale=[1, 1], object_probability=1, max_covered=max_covered)
        result = augment(one, 0, 0, handed_out([two]))
        assert result.objects.labels.tolist() == labels
        np.testing.assert_array_equal(result.objects.boxes[:-1], boxes[2 - len(labels[:-1]) :])
        assert result.objects.area is not None
        np.testing.assert_array_equal(result.objects.area[:-1], area[2 - len(labels[:-1]) :])
        assert isinstance(result.objects.masks, MaskCrops)
        assert [bool(size.prod()) for size in result.objects.masks.sizes] == [label == 2 for label in labels]


def test_ignored_objects_are_not_chosen_but_come_along() -> None:
    """A crowd is no object to paste; where an object is pasted whose box shows it, it is there, to be ignored."""
    two = with_boxes(np.full((40, 40, 3), 255, np.uint8), (5, 5, 15, 15), (18, 18, 30, 30), (19, 19, 25, 25))
    two = replace(two, objects=replace(two.objects, ignore=np.array([True, False, True])))
    nothing = with_boxes(np.zeros((40, 40, 3), np.uint8))
    result = only("copy_paste", scale=[1, 1], object_probability=1)(nothing, 0, 0, handed_out([two]))
    assert result.objects.labels.tolist() == [1, 2]
    assert result.objects.ignore.tolist() == [False, True]


def test_proposals_of_what_is_pasted() -> None:
    two = with_boxes(np.full((40, 40, 3), 255, np.uint8), (10, 10, 30, 30))
    two = replace(two, proposals=np.array([[10, 10, 30, 20], [0, 10, 18, 30], [0, 10, 20, 30]], np.float32))
    one = with_boxes(np.zeros((40, 40, 3), np.uint8), proposals=np.array([[0, 0, 5, 5]], np.float32))
    settings = {"scale": [1, 1], "object_probability": 1}
    seeds = [seed for seed in range(20) if np.random.default_rng(seed).random(2)[1] >= 0.5]  # not mirrored
    result = only("copy_paste", **settings)(one, seeds[0], 0, handed_out([two]))
    assert result.proposals is not None
    assert result.proposals.tolist() == [[0, 0, 5, 5], [10, 10, 30, 20], [0, 10, 20, 30]], "8 of 18 columns are too few"


@pytest.mark.parametrize("holes", [1, 3])
def test_cutout_hides_squares_and_drops_what_is_hidden(holes: int) -> None:
    sample, dropped, outside = random_sample(1, 30, 40, count=6), 0, 0
    augment = only("cutout", size=0.5, holes=holes, max_covered=0.7)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rng.random()  # its probability
        covered = np.zeros((30, 40), np.bool_)
        for _ in range(holes):
            row, column = rng.integers(30), rng.integers(40)
            for y in range(row - 7, row + 8):  # half of 30 px is 15
                for x in range(column - 7, column + 8):
                    if 0 <= y < 30 and 0 <= x < 40:
                        covered[y, x] = True
                    else:
                        outside += 1
        result = augment(sample, seed)
        assert (result.image[covered] == 114).all()
        np.testing.assert_array_equal(result.image[~covered], sample.image[~covered])
        visible = [row for row, box in enumerate(sample.objects.boxes) if reference.hidden_part(box, covered) <= 0.7]
        assert result.objects.labels.tolist() == [100 + row for row in visible]
        np.testing.assert_array_equal(result.objects.boxes, sample.objects.boxes[visible])
        dropped += len(visible) < 6
    assert dropped > 3
    assert outside > 0


def test_cutout_takes_from_masks_what_it_hides_and_leaves_the_boxes() -> None:
    sample = with_masks_and_keypoints(with_boxes(np.full((40, 40, 3), 9, np.uint8), (10, 10, 30, 30), (0, 0, 2, 2)))
    augment, gone = only("cutout", size=0.5, max_covered=1), 0
    for seed in range(30):
        result = augment(sample, seed)
        hidden = (result.image == 114).all(axis=2)
        np.testing.assert_array_equal(dense_masks(result), dense_masks(sample) & ~hidden)
        np.testing.assert_array_equal(result.objects.boxes, sample.objects.boxes)
        gone += not dense_masks(result)[1].any()
    assert gone, "a mask of which nothing is left takes no box with it"


def test_points_beneath_are_hidden() -> None:
    """A square of all the picture covers every point, of which one was hidden and one not labelled before."""
    sample = with_masks_and_keypoints(with_boxes(np.zeros((40, 40, 3), np.uint8), (10, 10, 30, 30)))
    augment = only("cutout", size=1, max_covered=1)
    seen = set()
    for seed in range(30):
        result = augment(sample, seed)
        points = result.objects.keypoints
        assert points is not None
        assert points[0, 1:, 2].tolist() == [1, 0]
        hidden = (result.image[10, 10] == 114).all()
        assert points[0, 0, 2] == (1 if hidden else 2)
        seen.add(bool(hidden))
    assert seen == {True, False}
