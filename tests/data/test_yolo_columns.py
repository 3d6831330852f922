"""Polygons and keypoints in the label files of darknet's descendants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.dataset import ImageDataset
from detkit.data.yolo import YOLODataConfig, read_yolo
from detkit.structures import EncodedMasks
from tests.data.writers import write_yolo

DOG = "0 0.5 0.25 0.5 0.5"  # of 60 x 40 (w x h): x 15 to 45, y 0 to 20


def read(root: Path, **changes: Any) -> ImageDataset:
    return read_yolo(YOLODataConfig(**{"root": str(root), **changes}), "train")


def test_a_polygon_is_the_mask_of_one_object(tmp_path: Path) -> None:
    square = "0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
    write_yolo(tmp_path, {"a": f"1 {square}\n1 0.5 0 1 0.5 0.5 1\n{DOG}"})
    dataset = read(tmp_path)
    objects = dataset.ground_truth(0).objects
    assert isinstance(objects.masks, EncodedMasks)
    (polygon,) = objects.masks.decode(0)
    np.testing.assert_allclose(polygon, [[15, 10], [45, 10], [45, 30], [15, 30]])
    expected = np.zeros((40, 60), np.bool_)
    expected[10:30, 15:45] = True
    np.testing.assert_array_equal(objects.masks.bitmap(0), expected)
    assert objects.masks.decode(2) is None
    assert "1 object with only a box, no mask" in dataset.summary
    assert "left out" not in dataset.summary


def test_who_asks_for_boxes_gets_no_more(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": "0 0.1 0.1 0.9 0.1 0.9 0.9"})
    dataset = read_yolo(YOLODataConfig(root=str(tmp_path)), "train", columns=("keypoints",))
    assert dataset.objects.masks is None
    assert len(dataset.objects) == 1


@pytest.mark.parametrize(
    ("shape", "line", "expected"),
    [
        ([2, 3], "0.5 0.5 2 0.25 0.1 1", [[30, 20, 2], [15, 4, 1]]),
        ([2, 3], "0.5 0.5 2.000 0.25 0.1 0", [[30, 20, 2], [0, 0, 0]]),
        ([2, 2], "0.5 0.5 0 0", [[30, 20, 2], [0, 0, 0]]),
        ([2, 2], "0.5 0.5 0 0.5", [[30, 20, 2], [0, 20, 2]]),
        ([2, 3], "1 1 2 1.3 0.1 2", [[60, 40, 2], [0, 0, 0]]),  # the second lies outside
        ([2, 3], "0.5 0.5 2 -7 9 0", [[30, 20, 2], [0, 0, 0]]),  # wherever it is, it is not labelled
    ],
)
def test_keypoints_are_shares_of_the_picture(tmp_path: Path, shape: Any, line: str, expected: Any) -> None:
    write_yolo(tmp_path, {"a": f"{DOG} {line}"}, kpt_shape=shape)
    objects = read(tmp_path).ground_truth(0).objects
    assert objects.keypoints is not None
    np.testing.assert_allclose(objects.keypoints[0], expected)
    np.testing.assert_allclose(objects.boxes, [[15, 0, 45, 20]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.5 0.5 3 0.1 0.1 1", "expected a visibility of 0 .* for each keypoint, found '0 0.5"),
        ("30 20 2 0.1 0.1 1", "expected keypoints as shares of the picture, 0 to 1, found"),
        ("nan 0.5 2 0.1 0.1 1", "expected keypoints as shares of the picture, 0 to 1, found"),
    ],
)
def test_wrong_keypoints_are_named(tmp_path: Path, line: str, message: str) -> None:
    write_yolo(tmp_path, {"a": f"{DOG} {line}"}, kpt_shape=[2, 3])
    with pytest.raises(DataError, match=rf"a\.txt:1 \(dog\): {message}"):
        read(tmp_path)


def test_a_polygon_with_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": "0 0.1 0.1 0.9 0.1 0.9 nan"})
    with pytest.raises(DataError, match="expected a polygon of finite numbers"):
        read(tmp_path)


THREE = f"{DOG} {'0.5 0.5 2 ' * 3}"


@pytest.mark.parametrize(
    ("keys", "names", "pairs"),
    [
        ({}, ("0", "1", "2"), ()),
        ({"flip_idx": [0, 2, 1]}, ("0", "1", "2"), ((1, 2),)),
        ({"kpt_names": ["nose", "left_eye", "right_eye"]}, ("nose", "left_eye", "right_eye"), ((1, 2),)),
        ({"kpt_names": {0: ["a", "b", "c"]}, "flip_idx": [2, 1, 0]}, ("a", "b", "c"), ((0, 2),)),
    ],
)
def test_names_and_pairs_of_the_yaml_file(tmp_path: Path, keys: Any, names: Any, pairs: Any) -> None:
    write_yolo(tmp_path, {"a": THREE}, kpt_shape=[3, 3], **keys)
    known = read(tmp_path).categories.keypoints
    assert known is not None
    assert (known.names, known.flip_pairs, len(known.sigmas)) == (names, pairs, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"flip_idx": [0, 1]}, "flip_idx: expected the numbers 0 to 2"),
        ({"flip_idx": [1, 2, 0]}, "flip_idx: expected the numbers 0 to 2, each pair of points exchanged"),
        ({"flip_idx": "0 2 1"}, "flip_idx"),
        ({"kpt_names": ["nose"]}, "kpt_names: expected the names of 3 points"),
    ],
)
def test_wrong_keys_of_the_yaml_file_are_named(tmp_path: Path, keys: Any, message: str) -> None:
    write_yolo(tmp_path, {"a": THREE}, kpt_shape=[3, 3], **keys)
    with pytest.raises(DataError, match=rf"data\.yaml: {message}"):
        read(tmp_path)
