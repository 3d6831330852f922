"""Masks and keypoints of COCO files: all their forms, what is wrong and what is unusual, and real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as peer

from detkit.data.checks import DataError
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.dataset import ImageDataset
from detkit.structures import EncodedMasks, MaskCrops
from tests.data.writers import coco_content, write_coco

TRIANGLE = [10, 5, 30, 5, 10, 15]
NAMES = ["nose", "left_eye", "right_eye"]


def annotation(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 7, "category_id": 3, "bbox": [1, 2, 40, 30], "area": 12, **changes}


def read(root: Path, *annotations: dict[str, Any], categories: Any = None, **changes: Any) -> ImageDataset:
    content = coco_content(annotations=list(annotations))
    write_coco(root, content | ({"categories": categories} if categories else {}))
    return read_coco(COCOConfig(**{"root": str(root), **changes}), "train")


def masks_of(dataset: ImageDataset) -> EncodedMasks:
    masks = dataset.ground_truth(0).objects.masks
    assert isinstance(masks, EncodedMasks)
    return masks


def square() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 10:30] = 1
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [2]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


@pytest.mark.parametrize(
    "polygons",
    [
        [TRIANGLE],
        TRIANGLE,
        [[10, 5], [30, 5], [10, 15]],
        [[[10, 5], [30, 5], [10, 15]]],
        [["10", "5", "30.0", "5", "10", "15"]],
    ],
)
def test_forms_of_one_polygon(tmp_path: Path, polygons: Any) -> None:
    (polygon,) = masks_of(read(tmp_path, annotation(segmentation=polygons))).decode(0)
    assert polygon.tolist() == [[10, 5], [30, 5], [10, 15]]


@pytest.mark.parametrize("form", ["list", "text"])
def test_run_lengths_are_the_pixels(tmp_path: Path, form: str) -> None:
    counts = runs_of(square()) if form == "list" else peer.encode(np.asfortranarray(square()))["counts"].decode()
    dataset = read(tmp_path, annotation(iscrowd=1, segmentation={"size": [40, 60], "counts": counts}))
    np.testing.assert_array_equal(masks_of(dataset).bitmap(0), square().astype(bool))
    masks = dataset.load(0).objects.masks
    assert isinstance(masks, MaskCrops)
    assert masks.windows.tolist() == [[10, 5, 30, 15]]


def test_objects_with_only_a_box_and_short_polygons_are_counted(tmp_path: Path) -> None:
    forms: list[Any] = [[TRIANGLE, [1, 2, 3, 4]], [[1, 2, 3, 4]], [], None]
    dataset = read(tmp_path, *(annotation(number, segmentation=form) for number, form in enumerate(forms)))
    masks = masks_of(dataset)
    assert [masks.decode(index) is None for index in range(4)] == [False, True, True, True]
    assert len(masks.decode(0) or ()) == 1
    assert "3 objects with only a box, no mask" in dataset.summary
    assert "2 polygons of less than three points left out" in dataset.summary


def test_a_file_without_masks_has_no_column(tmp_path: Path) -> None:
    dataset = read(tmp_path, annotation(segmentation=[]), annotation(1))
    assert dataset.objects.masks is None
    assert "only a box" not in dataset.summary


def test_who_asks_for_boxes_gets_no_masks_and_no_problems_of_theirs(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content(annotations=[annotation(segmentation=[[1, 2, 3]], keypoints=[1])]))
    dataset = read_coco(COCOConfig(root=str(tmp_path)), "train", columns=())
    assert set(dataset.objects.columns()) == {"boxes", "labels", "ignore", "area"}
    assert dataset.categories.keypoints is None


FAULTS = [
    ({"segmentation": [[1, 2, 3, 4, 5]]}, "segmentation: expected x and y of each point, found 5 numbers in a polygon"),
    ({"segmentation": [[1, 2, 3, 4, 5, "six"]]}, "segmentation: expected polygons .* of numbers alone"),
    ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "segmentation: a polygon has a number that is not finite"),
    ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "segmentation: a polygon has a number that is not finite, or far"),
    ({"segmentation": "polygon"}, "segmentation: expected polygons"),
    (
        {"segmentation": {"size": [60, 40], "counts": [2400]}},
        r"annotation 0: segmentation: its run lengths are of 40 x 60 \(w x h\), the image of 60 x 40",
    ),
    ({"segmentation": {"size": [40, 60], "counts": [2399]}}, "segmentation: expected run lengths"),
    ({"segmentation": {"size": [40, 60], "counts": "zz"}}, "expected run lengths .*and counts 'zz'"),
    ({"keypoints": [1, 2, 2]}, "keypoints: expected 9 numbers, x, y, visibility of 3 points, found 3"),
    ({"keypoints": [1, 2, 3] * 3}, "keypoints: expected a visibility of 0 .*, found 3"),
    ({"keypoints": [float("nan"), 2, 2] * 3}, "keypoints: a coordinate is not finite"),
    ({"keypoints": [1, 2, "seen"] * 3}, "keypoints: expected x, y and visibility of each point, as numbers"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_what_is_wrong_is_named_and_follows_the_policy(tmp_path: Path, changes: Any, message: str) -> None:
    categories = [{"id": 3, "name": "person", "keypoints": NAMES}]
    with pytest.raises(DataError, match=message):
        read(tmp_path, annotation(**changes), categories=categories)
    dataset = read(tmp_path, annotation(**changes), annotation(1), categories=categories, on_bad_label="drop_box")
    assert len(dataset.objects) == 1
    assert "1 box dropped" in dataset.summary


def test_run_lengths_of_an_image_without_a_size_are_of_the_picture(tmp_path: Path) -> None:
    """The file says no size; a picture of 60 x 40 does not agree with 40 x 60."""
    content = coco_content(images=[{"id": 7, "file_name": "a.jpg"}])
    for size, agrees in (([40, 60], True), ([60, 40], False)):
        content["annotations"] = [annotation(segmentation={"size": size, "counts": [0, 2400]})]
        write_coco(tmp_path, content)
        if agrees:
            assert masks_of(read_coco(COCOConfig(root=str(tmp_path)), "train")).bitmap(0).all()
        else:
            with pytest.raises(DataError, match="says 40 x 60"):
                read_coco(COCOConfig(root=str(tmp_path)), "train")


def test_a_polygon_that_reaches_outside_is_cut_at_the_border(tmp_path: Path) -> None:
    dataset = read(tmp_path, annotation(segmentation=[[-20, -20, 20, -20, 20, 20, -20, 20]]))
    expected = np.zeros((40, 60), np.bool_)
    expected[:20, :20] = True
    np.testing.assert_array_equal(masks_of(dataset).bitmap(0), expected)


PERSON = {"id": 3, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3], [1, 9], "eye"]}


def test_keypoints_are_in_the_middle_of_their_pixel_and_zero_where_not_labelled(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        annotation(keypoints=[10, 20, 2, 5, 6, 1, 7, 8, 0], num_keypoints=2),
        annotation(1),
        annotation(2, keypoints=[0] * 9),
        categories=[{"id": 1, "name": "dog"}, PERSON],
    )
    points = dataset.ground_truth(0).objects.keypoints
    assert points is not None
    assert points.tolist() == [[[10.5, 20.5, 2], [5.5, 6.5, 1], [0, 0, 0]], *[[[0, 0, 0]] * 3] * 2]
    assert "2 objects without labelled keypoints" in dataset.summary
    assert "2 pairs of a skeleton without two keypoints left out" in dataset.summary
    known = dataset.categories.keypoints
    assert known is not None
    assert (known.names, known.flip_pairs, known.skeleton) == (tuple(NAMES), ((1, 2),), ((0, 1), (0, 2)))
    assert known.sigmas == (0.026, 0.025, 0.025)


def test_keypoints_outside_the_picture_are_not_labelled_and_counted(tmp_path: Path) -> None:
    """Of 60 x 40: at most a pixel away they are moved onto the border."""
    points = [60, 39, 2, 75, 10, 2, -1, 10, 1]
    dataset = read(tmp_path, annotation(keypoints=points), categories=[PERSON])
    found = dataset.ground_truth(0).objects.keypoints
    assert found is not None
    assert found.tolist() == [[[60, 39.5, 2], [0, 0, 0], [0, 10.5, 1]]]
    assert "2 keypoints moved by at most 1 px" in dataset.summary
    assert "1 keypoint outside the picture read as not labelled" in dataset.summary


def test_classes_with_different_keypoints(tmp_path: Path) -> None:
    """One list cannot hold both; those of the classes that are chosen can be one."""
    dog = {"id": 1, "name": "dog", "keypoints": ["tail"]}
    rows = [annotation(keypoints=[1, 1, 2] * 3), annotation(1, category_id=1, keypoints=[1, 1, 2])]
    both = read(tmp_path, *rows, categories=[dog, PERSON])
    assert both.objects.keypoints is None
    assert "2 classes whose keypoints are left out, as those of dog and person differ" in both.summary
    one = read(tmp_path, *rows, categories=[dog, PERSON], classes=("dog",))
    assert one.objects.keypoints is not None
    assert one.objects.keypoints.tolist() == [[[1.5, 1.5, 2]]]
    merged = read(tmp_path, *rows, categories=[dog, PERSON], classes=("man",), merge={"man": ("person",)})
    assert merged.categories.keypoints is not None
    assert merged.categories.keypoints.names == tuple(NAMES)


def test_keypoints_that_no_category_names_are_counted(tmp_path: Path) -> None:
    dataset = read(tmp_path, annotation(keypoints=[1, 1, 2]))
    assert dataset.objects.keypoints is None
    assert "1 object with keypoints left out, as its category names none" in dataset.summary


def test_validation_has_the_keypoints_of_training(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content(annotations=[annotation()], categories=[PERSON]))
    for names, agrees in ((NAMES, True), (NAMES[::-1], False), ([], True)):
        categories = [{"id": 9, "name": "person", "keypoints": names}]
        write_coco(tmp_path, coco_content(annotations=[annotation(category_id=9)], categories=categories), split="val")
        if agrees:
            known = read_coco(COCOConfig(root=str(tmp_path)), "val").categories.keypoints
            assert known is not None
            assert (known.names, known.skeleton) == (tuple(NAMES), ((0, 1), (0, 2)))
        else:
            with pytest.raises(DataError, match=r"its keypoints \(right_eye, left_eye, nose\) are not those of the"):
                read_coco(COCOConfig(root=str(tmp_path)), "val")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools under numpy 2
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_are_those_of_pycocotools(shared_data: Path, split: Any) -> None:
    """Polygons of one and several parts, and crowds as run lengths; what is loaded has the same pixels."""
    from pycocotools.coco import COCO

    root = shared_data / "coco-mini"
    dataset = read_coco(COCOConfig(root=str(root)), split)
    api = COCO(root / "annotations" / f"instances_{split}2017.json")
    crowds = 0
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        rows = api.imgToAnns[truth.image_id]
        crowds += sum(row["iscrowd"] for row in rows)
        assert isinstance(truth.objects.masks, EncodedMasks)
        expected = [api.annToMask(row) for row in rows]
        np.testing.assert_array_equal(
            truth.objects.masks.dense(), np.array(expected).reshape(truth.objects.masks.dense().shape)
        )
        if index < 5:
            masks = dataset.load(index).objects.masks
            assert isinstance(masks, MaskCrops)
            np.testing.assert_array_equal(masks.dense(truth.size), truth.objects.masks.dense())
    assert crowds > 0
    assert "only a box" not in dataset.summary


@pytest.mark.parametrize(
    "segmentation",
    [
        [[70, 5, 80, 5, 80, 15]],  # beyond the right border
        [[5, -9, 15, -9, 10, -1]],
        [[10, 10, 30, 10, 20, 10]],  # without an area
        [[10, 10, 10, 10, 10, 10]],
        {"size": [40, 60], "counts": [2400]},
        {"size": [40, 60], "counts": [0, 0, 2400]},
    ],
)
def test_a_mask_without_a_pixel_is_counted(tmp_path: Path, segmentation: Any) -> None:
    """It is learned by no mask loss, and measured as COCO does, as an object that nothing can match."""
    dataset = read(tmp_path, annotation(segmentation=segmentation), annotation(1, segmentation=[TRIANGLE]))
    assert not masks_of(dataset).bitmap(0).any()
    assert "1 object whose mask has no pixel in the picture" in dataset.summary


def test_masks_with_a_pixel_are_not_counted(tmp_path: Path) -> None:
    forms = ([TRIANGLE], [[0, 0, 0, 0, 0, 0], TRIANGLE], [[59.5, 39.5, 80, 39.5, 80, 80]], [])
    dataset = read(tmp_path, *(annotation(number, segmentation=form) for number, form in enumerate(forms)))
    assert "no pixel" not in dataset.summary
