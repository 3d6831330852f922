"""The COCO reader, on small files written here and on real data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.dataset import ImageDataset
from tests.data.writers import coco_content, write_coco


def read(root: Path, content: dict[str, Any], **changes: Any) -> ImageDataset:
    write_coco(root, content)
    return read_coco(COCOConfig(**{"root": str(root), **changes}), "train")


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 41, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, **changes}


def test_boxes_crowds_areas_and_ids_with_gaps(tmp_path: Path) -> None:
    dataset = read(tmp_path, coco_content())
    truth = dataset.ground_truth(0)
    np.testing.assert_array_equal(truth.objects.boxes, [(10, 5, 30, 15), (0, 0, 60, 40), (1.5, 2.5, 5.5, 8.5)])
    assert dataset.categories.names == ("car", "dog")
    assert dataset.categories.ids == (3, 18)
    assert truth.objects.labels.tolist() == [1, 0, 0]
    assert truth.objects.ignore.tolist() == [False, True, False]
    assert truth.objects.area.tolist() == [150.5, 99, 24]  # no area: width x height
    assert (truth.image_id, truth.size) == (7, (40, 60))


def test_image_without_objects_and_id_zero_are_kept(tmp_path: Path) -> None:
    dataset = read(tmp_path, coco_content())
    assert len(dataset) == 2
    assert dataset.image_id(1) == 0
    assert len(dataset.ground_truth(1).objects.boxes) == 0


def test_image_ids_may_be_strings(tmp_path: Path) -> None:
    images = [{"id": "left/1", "file_name": "a.jpg"}]  # width and height may be missing
    dataset = read(tmp_path, coco_content(images=images, annotations=[annotation(image_id="left/1")]))
    assert dataset.image_id(0) == "left/1"
    assert dataset.ground_truth(0).size == (40, 60)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (annotation(category_id=4), "image 7: annotation 41: the category id 4 is not among the categories"),
        (annotation(category_id=None), "the category id None"),
        (annotation(bbox=None), r"annotation 41: expected 'bbox' \[x, y, width, height\], got None"),
        (annotation(bbox=[1, 2, 3]), r"got \[1, 2, 3\]"),
        (annotation(bbox=[1, 2, 3, "four"]), "expected 'bbox'"),
        (annotation(bbox="1234"), "expected 'bbox'"),
        (annotation(bbox=[1, 2, 3, 10**400]), "expected 'bbox'"),
        (annotation(iscrowd="perhaps"), "annotation 41: iscrowd: expected 0 or 1, got 'perhaps'"),
        (annotation(bbox=[1, 2, 0, 4]), "annotation 41: box x 1 to 1, y 2 to 6 is empty"),
        (annotation(bbox=[1, 2, -3, 4]), "is empty"),
        (annotation(bbox=[1, 2, float("nan"), 4]), "is not finite"),
        (annotation(bbox=[50, 2, 30, 4]), r"leaves the image, 60 x 40 \(w x h\)"),
        (annotation(image_id=8), "annotation 41: the image id 8 is not among the images"),
        (annotation(image_id=None), "annotation 41: the image id None is not among the images"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, item: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, coco_content(annotations=[item]))


def test_bad_annotations_may_be_dropped(tmp_path: Path) -> None:
    content = coco_content(annotations=[annotation(), annotation(bbox=None), annotation(category_id=4)])
    dataset = read(tmp_path, content, on_bad_label="drop_box")
    assert len(dataset.ground_truth(0).objects.boxes) == 1
    assert "2 boxes dropped" in dataset.summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "its list of images is empty"),
        ({"images": None}, "a list of mappings under 'images'"),
        ({"annotations": [3]}, "a list of mappings under 'annotations'"),
        ({"annotations": None}, "a list of mappings under 'annotations'"),
        ({"categories": []}, "expected categories that each have an 'id' and a 'name'"),
        ({"categories": [{"name": "car"}]}, "expected categories that each have an 'id' and a 'name'"),
        ({"categories": [{"id": 3, "name": " "}]}, "expected categories that each have an 'id' and a 'name'"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "2 categories have the id 3"),
        (
            {"categories": [{"id": n, "name": "other", "supercategory": kind} for n, kind in enumerate("ab")]},
            r"2 categories have the name 'other' and differ in their supercategory \(a, b\)",
        ),
        ({"images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "2 images have the id 7"),
        ({"images": [{"file_name": "a.jpg"}]}, r"images\[0\]: expected an integer or a text as 'id', got None"),
        ({"images": [{"id": float("nan"), "file_name": "a.jpg"}]}, r"images\[0\]: expected an integer .*got nan"),
        ({"images": [{"id": 7, "width": 60, "height": 40}]}, "image 7: has no 'file_name'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_coco(tmp_path, coco_content())
    path.write_text(json.dumps(coco_content(**{"annotations": [], **changes})))
    with pytest.raises(DataError, match=message) as raised:
        read_coco(COCOConfig(root=str(tmp_path)), "train")
    assert "instances_train2017.json" in str(raised.value)


@pytest.mark.parametrize("text", ["{", "", "[]", "3"])
def test_what_is_not_coco_json_is_named(tmp_path: Path, text: str) -> None:
    write_coco(tmp_path, coco_content()).write_text(text)
    with pytest.raises(DataError, match=r"instances_train2017\.json: (cannot be read as JSON|expected a COCO file)"):
        read_coco(COCOConfig(root=str(tmp_path)), "train")


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    with pytest.raises(DataError, match=r"data\.train_images: the folder .*pictures does not exist"):
        read_coco(COCOConfig(root=str(tmp_path), train_images="pictures"), "train")
    with pytest.raises(DataError, match=r"x\.json does not exist; JSON files there: instances_train2017\.json"):
        read_coco(COCOConfig(root=str(tmp_path), train_annotations="annotations/x.json"), "train")
    (tmp_path / "train2017" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"image 7: the picture .*a\.jpg does not exist"):
        read_coco(COCOConfig(root=str(tmp_path)), "train")


def test_evaluation_needs_no_training_files(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content(), split="val")
    assert len(read_coco(COCOConfig(root=str(tmp_path)), "val")) == 2


def test_real_coco(shared_data: Path) -> None:
    """Counts as pycocotools gives them."""
    from pycocotools.coco import COCO

    root = shared_data / "coco-mini"
    dataset = read_coco(COCOConfig(root=str(root)), "val")
    api = COCO(root / "annotations" / "instances_val2017.json")
    assert dataset.categories.ids == tuple(sorted(api.getCatIds()))
    assert dataset.categories.names == tuple(api.cats[i]["name"] for i in dataset.categories.ids)
    assert (len(dataset), len(dataset.categories.names)) == (48, 80)
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        rows = api.imgToAnns[truth.image_id]
        assert truth.objects.ignore.tolist() == [bool(row["iscrowd"]) for row in rows]
        assert [dataset.categories.ids[label] for label in truth.objects.labels] == [row["category_id"] for row in rows]
        xywh = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        np.testing.assert_allclose(truth.objects.boxes, xywh + np.pad(xywh[:, :2], ((0, 0), (2, 0))), atol=0.02)
        np.testing.assert_allclose(truth.objects.area, [row["area"] for row in rows], rtol=1e-6)
        assert dataset.load(index).image.shape == (*truth.size, 3)
