"""A column that no code knows travels from the reader to the targets and to the evaluators, beside the right boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkit.data.checks import DataError, RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.data.loader import build_loader
from detkit.data.transforms import Augment, parse_augment
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, ImageId, ImageInfo, Size
from tests.data.writers import write_picture

NUM_IMAGES = 12
BOXES = [(5, 5, 25, 25), (40, 8, 60, 30), (70, 50, 110, 90), (10, 60, 30, 85)]  # apart, in 100 x 120 (h x w)


def grey_of(image: int, number: int) -> int:
    return 10 + 4 * (image * len(BOXES) + number)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """Each box is filled with a grey of its own, which is also its occlusion, in 255ths. Every third image is empty."""
    images = []
    for index in range(NUM_IMAGES):
        picture, objects = np.zeros((100, 120, 3), np.uint8), []
        for number, (x1, y1, x2, y2) in enumerate(BOXES if index % 3 else []):
            grey = grey_of(index, number)
            picture[y1:y2, x1:x2] = grey
            columns = {"occlusion": grey / 255, "corners": [[x1, y1], [x2, y2]], "ignore": number == 3}
            objects.append(RawObject(f"object {number}", number % 2, (x1, y1, x2, y2), columns=columns))
        path = str(tmp_path / f"{index}.png")
        cv2.imwrite(path, picture)
        images.append(RawImage(index, path, path, (100, 120), objects))
    return ImageDataset(images, name="drawn", categories=Categories.of_names(["even", "odd"]))


def as_it_is(image_id: ImageId, size: Size, draw: int | None) -> ImageInfo:
    return ImageInfo(image_id, size, size, (1.0, 1.0), (3, 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unknown_column_reaches_the_targets_beside_its_box(dataset: ImageDataset, workers: int) -> None:
    """The centre of every box, flipped and cut by a window, has the grey of its occlusion."""
    loader = build_loader(
        dataset,
        place=as_it_is,
        stride=32,
        batch_size=3,
        augment=Augment(parse_augment(["flip", {"name": "scale_jitter", "scale": [1.3, 2.5]}])),
        seed=0,
        workers=workers,
        shuffle=True,
        aspect_grouping=False,
        with_targets=True,
    )
    seen, ignored = 0, 0
    for batch in loader:
        assert batch.targets is not None
        for image, target in zip(batch.images, batch.targets, strict=True):
            objects = target.objects
            occlusion, corners = objects.extra["occlusion"], objects.extra["corners"]
            assert isinstance(occlusion, torch.Tensor)
            assert occlusion.shape == (len(objects),)
            assert corners.shape == (len(objects), 2, 2)
            centres = ((objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2).long()
            for (x, y), part in zip(centres.tolist(), occlusion.tolist(), strict=True):
                assert image[0, y, x] == round(part * 255)
            seen += len(objects)
            ignored += int(objects.ignore.sum())
    assert len(BOXES) < seen < NUM_IMAGES * 2 // 3 * len(BOXES), "the windows drop some objects"
    assert 0 < ignored < seen


def test_an_unknown_column_reaches_the_ground_truth_of_the_evaluators(dataset: ImageDataset) -> None:
    store = DetectionStore(dataset.categories, [dataset.ground_truth(index) for index in range(len(dataset))])
    for index, image in enumerate(store.ground_truth):
        greys = [grey_of(index, number) for number in range(len(BOXES))] if index % 3 else []
        np.testing.assert_allclose(image.objects.extra["occlusion"] * 255, greys)
        np.testing.assert_array_equal(image.objects.extra["corners"].reshape(-1, 4), image.objects.boxes)


def one_image(tmp_path: Path, *columns: dict[str, Any]) -> ImageDataset:
    write_picture(tmp_path / "a.png")
    objects = [RawObject(f"object {n}", 0, (n, 5, n + 10, 20), columns=values) for n, values in enumerate(columns)]
    image = RawImage(0, str(tmp_path / "a.png"), "a.xml", (40, 60), objects)
    return ImageDataset([image], name="one", categories=Categories.of_names(["thing"]))


def test_an_object_without_a_value_is_not_ignored_and_has_the_area_of_its_box(tmp_path: Path) -> None:
    objects = one_image(tmp_path, {"ignore": True}, {"area": 7.5}, {}).ground_truth(0).objects
    assert objects.ignore.tolist() == [True, False, False]
    assert objects.area is not None
    assert objects.area.tolist() == [150, 7.5, 150]
    assert set(objects.columns()) == {"boxes", "labels", "ignore", "area"}


def test_known_columns_have_their_dtypes_and_others_those_of_their_values(tmp_path: Path) -> None:
    values = {"track_ids": 3, "scores": 0.5, "keypoints": [[1, 2, 2]], "truncated": True, "views": 2}
    columns = one_image(tmp_path, values).ground_truth(0).objects.columns()
    dtypes = {name: str(columns[name].dtype) for name in values}
    assert dtypes == {
        "track_ids": "int64",
        "scores": "float32",
        "keypoints": "float32",
        "truncated": "bool",
        "views": "int64",
    }


def test_a_column_that_an_object_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one: a.xml: object 1 has no 'occlusion', which other objects have"):
        one_image(tmp_path, {"occlusion": 0.5}, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"pose": [1]}, {"pose": [1, 2]}), "the column 'pose' is not an array of one shape"),
        (({"area": "large"},), "the column 'area' is not an array of float32"),
        (({"pose": "left"},), "the column 'pose': expected numbers, found <U4; number its values"),
    ],
)
def test_a_column_that_is_no_array_is_named(tmp_path: Path, values: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        one_image(tmp_path, *values)
