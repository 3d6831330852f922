"""COCO files as tools write them: unusual, but clear, and so read and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from detkit.data.checks import DataError, NoValidation
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.dataset import ImageDataset
from detkit.engine.evaluate import detection_store, label_map, relabel
from detkit.evaluation.report import detections_to_coco
from detkit.structures import Detections, Objects
from tests.data.writers import coco_content, write_coco, write_picture

Split = Literal["train", "val"]
DOG, CAR = {"id": 18, "name": "dog"}, {"id": 3, "name": "car"}


def read(root: Path, split: Split = "train", **changes: Any) -> ImageDataset:
    return read_coco(COCOConfig(**{"root": str(root), **changes}), split)


def item(number: int, **changes: Any) -> dict[str, Any]:
    """An annotation of the image 7: a dog at x 10 to 30, y 5 to 15."""
    return {"id": number, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], **changes}


def names_of(dataset: ImageDataset, index: int = 0) -> list[str]:
    return [dataset.categories.names[label] for label in dataset.ground_truth(index).objects.labels]


# ---- classes are names


def test_val_may_have_other_ids_and_fewer_classes(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    dog = {"id": 1, "name": "dog"}
    write_coco(tmp_path, coco_content(categories=[dog], annotations=[item(0, category_id=1)]), split="val")
    train, val = read(tmp_path), read(tmp_path, "val")
    assert val.categories.names == train.categories.names == ("car", "dog")
    assert val.categories.ids == (2, 1)  # the file's own id of the dog, and one that it does not use
    assert names_of(val) == ["dog"]


def test_val_may_have_more_classes_whose_objects_are_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    content = coco_content(
        categories=[{"id": 1, "name": "bus"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "car"}],
        annotations=[item(0, category_id=1), item(1, category_id=2), item(2, category_id=1, bbox=None)],
    )
    write_coco(tmp_path, content, split="val")
    val = read(tmp_path, "val")
    assert (val.categories.names, val.categories.ids) == (("car", "dog"), (3, 2))
    assert names_of(val) == ["dog"]
    assert "2 objects of classes unknown to train left out (bus 2)" in val.summary


def test_files_without_a_common_class_are_an_error(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    write_coco(tmp_path, coco_content(categories=[{"id": 3, "name": "Car"}], annotations=[]), split="val")
    with pytest.raises(DataError, match=r"none of its categories \(Car\) is one of those of the training file \(car, "):
        read(tmp_path, "val")


def test_detections_are_written_with_the_ids_of_the_validation_file(tmp_path: Path) -> None:
    """A detector that was trained on 3 = car, 18 = dog, on a file with 18 = car, 3 = dog: pycocotools agrees."""
    write_coco(tmp_path, coco_content())
    swapped = [{"id": 18, "name": "car"}, {"id": 3, "name": "dog"}]
    path = write_coco(tmp_path, coco_content(categories=swapped), split="val")
    train, val = read(tmp_path), read(tmp_path, "val")
    boxes = torch.from_numpy(val.ground_truth(0).objects.boxes)
    labels = torch.tensor([train.categories.names.index(name) for name in names_of(val)])
    detections = Detections(Objects(boxes=boxes, labels=labels, scores=torch.ones(3)), train.categories)
    store = detection_store(val)
    store.update(7, relabel(detections, label_map(train.categories, val.categories), val.categories))
    entries = detections_to_coco(store.detections, store.categories)
    rows = json.loads(path.read_text())["annotations"]
    assert [(e["category_id"], e["bbox"]) for e in entries] == [(row["category_id"], row["bbox"]) for row in rows]


@pytest.mark.parametrize("heading", ["animals", "dog"])
def test_heading_category_of_roboflow_is_no_class(tmp_path: Path, heading: str) -> None:
    """Its id 0 stands for the others, also where it is called like the only one."""
    rows = [{"id": 0, "name": heading, "supercategory": "none"}, {"id": 1, "name": "dog", "supercategory": heading}]
    write_coco(tmp_path, coco_content(categories=rows, annotations=[item(0, category_id=1)]))
    dataset = read(tmp_path)
    assert (dataset.categories.names, dataset.categories.ids) == (("dog",), (1,))
    assert names_of(dataset) == ["dog"]
    assert f"1 heading among the categories left out ('{heading}')" in dataset.summary


def test_category_that_is_used_is_no_heading(tmp_path: Path) -> None:
    rows = [{"id": 0, "name": "animal", "supercategory": "none"}, {"id": 1, "name": "dog", "supercategory": "animal"}]
    write_coco(tmp_path, coco_content(categories=rows, annotations=[item(0, category_id=0)]))
    assert read(tmp_path).categories.names == ("animal", "dog")


def test_categories_of_one_name_are_one_class_with_the_id_that_is_used(tmp_path: Path) -> None:
    rows = [{"id": 1, "name": "dog"}, {"id": 2, "name": "car"}, {"id": 5, "name": "dog "}]
    write_coco(tmp_path, coco_content(categories=rows, annotations=[item(0, category_id=5), item(1, category_id=2)]))
    dataset = read(tmp_path)
    assert (dataset.categories.names, dataset.categories.ids) == (("dog", "car"), (5, 2))
    assert names_of(dataset) == ["dog", "car"]
    assert "1 name that several categories have read as one class" in dataset.summary


def test_classes_may_be_chosen_and_merged(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    swapped = [{"id": 18, "name": "car"}, {"id": 3, "name": "dog"}]
    write_coco(tmp_path, coco_content(categories=swapped), split="val")
    chosen = read(tmp_path, classes=("dog",))
    assert (names_of(chosen), chosen.categories.ids) == (["dog"], (18,))
    assert "2 objects of other classes left out (car 2)" in chosen.summary
    assert names_of(read(tmp_path, "val", classes=("dog",))) == ["dog"] * 2
    for split, category_id in (("train", 3), ("val", 18)):
        merged = read(tmp_path, split, merge={"thing": ("car", "dog")})  # type: ignore[arg-type]
        assert (merged.categories.names, merged.categories.ids) == (("thing",), (category_id,))
        assert names_of(merged) == ["thing"] * 3


# ---- ids


@pytest.mark.parametrize(
    ("image_id", "written"),
    [
        (7, "7"),
        ("7", 7),
        (7, "007"),
        ("000007", 7),
        (7, 7.0),
        (7.0, 7),
        (2**70, str(2**70)),
        (-(2**63) - 1, -(2**63) - 1),
    ],
)
def test_ids_may_be_text_here_and_numbers_there(tmp_path: Path, image_id: Any, written: Any) -> None:
    images = [{"id": image_id, "file_name": "a.jpg"}, {"id": 0, "file_name": "b.jpg"}]
    write_coco(tmp_path, coco_content(images=images, annotations=[item(0, image_id=written)]))
    dataset = read(tmp_path)
    assert dataset.image_id(0) == dataset.ground_truth(0).image_id == image_id
    assert type(dataset.image_id(0)) is (int if isinstance(image_id, float) else type(image_id))
    assert names_of(dataset) == ["dog"]
    counted = "1 annotation matched by an id that is text here and a number there" in dataset.summary
    assert counted == (isinstance(image_id, str) != isinstance(written, str))


def test_image_ids_may_be_mixed_and_are_told_apart(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": "7", "file_name": "b.jpg"}]
    write_coco(tmp_path, coco_content(images=images, annotations=[item(0, image_id="7"), item(1, image_id="7")]))
    dataset = read(tmp_path)
    assert [dataset.image_id(index) for index in range(2)] == [7, "7"]
    assert [len(names_of(dataset, index)) for index in range(2)] == [0, 2]
    assert len(detection_store(dataset).ground_truth) == 2


def test_an_id_that_fits_two_images_belongs_to_neither(tmp_path: Path) -> None:
    images = [{"id": "07", "file_name": "a.jpg"}, {"id": "7", "file_name": "b.jpg"}]
    write_coco(tmp_path, coco_content(images=images, annotations=[item(0), item(1, image_id="07")]))
    dataset = read(tmp_path)
    assert [len(names_of(dataset, index)) for index in range(2)] == [1, 0]
    assert "1 annotation of images that are not listed left out" in dataset.summary


def test_category_ids_may_be_text(tmp_path: Path) -> None:
    rows = [{"id": "10", "name": "car"}, {"id": "9", "name": "dog"}]
    write_coco(tmp_path, coco_content(categories=rows, annotations=[item(0, category_id=9)]))
    dataset = read(tmp_path)
    assert (dataset.categories.names, dataset.categories.ids) == (("dog", "car"), ("9", "10"))  # as numbers, 9 is first
    assert names_of(dataset) == ["dog"]
    rows = [{"id": "vehicle", "name": "car"}, {"id": "animal", "name": 7}]
    write_coco(tmp_path, coco_content(categories=rows, annotations=[item(0, category_id="animal")]))
    dataset = read(tmp_path)
    assert (dataset.categories.names, dataset.categories.ids) == (("car", "7"), ("vehicle", "animal"))


def test_annotations_of_images_that_are_not_listed_are_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content(annotations=[item(0), item(1, image_id=9), item(2, image_id="nine")]))
    dataset = read(tmp_path)
    assert names_of(dataset) == ["dog"]
    assert "2 annotations of images that are not listed left out" in dataset.summary


# ---- fields


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}])
@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 5, 30, 5, 30, 9], [12, 8, 20, 15, 10, 15]],
        {"size": [40, 60], "counts": [405, 10, *([30, 10] * 19), 1225]},
    ],
)
def test_segmentation_without_a_box(tmp_path: Path, bbox: dict[str, Any], segmentation: Any) -> None:
    row = {key: value for key, value in item(0).items() if key != "bbox"} | bbox | {"segmentation": segmentation}
    write_coco(tmp_path, coco_content(annotations=[row]))
    dataset = read(tmp_path)
    np.testing.assert_array_equal(dataset.ground_truth(0).objects.boxes, [(10, 5, 30, 15)])
    assert "1 object without a bbox read as the box around its segmentation" in dataset.summary


@pytest.mark.parametrize(
    "changes", [{"bbox": ["10", "5", " 20 ", "1e1"]}, {"area": "9", "iscrowd": None}, {"area": None}]
)
def test_numbers_may_be_text_and_fields_may_be_missing(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_coco(tmp_path, coco_content(annotations=[{k: v for k, v in item(0, **changes).items() if k != "id"}]))
    objects = read(tmp_path).ground_truth(0).objects
    np.testing.assert_array_equal(objects.boxes, [(10, 5, 30, 15)])
    assert objects.area == (9 if changes.get("area") else 200)
    assert not objects.ignore.any()


@pytest.mark.parametrize(
    ("flag", "ignored"),
    [(0, False), ("0", False), ("False", False), (False, False), (1, True), ("true", True), (1.0, True)],
)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_flags_are_read_by_their_meaning(tmp_path: Path, key: str, flag: Any, ignored: bool) -> None:
    write_coco(tmp_path, coco_content(annotations=[item(0, **{key: flag})]))
    assert read(tmp_path).ground_truth(0).objects.ignore.tolist() == [ignored]


@pytest.mark.parametrize("size", [("60", "40"), (60.0, 40.0), (None, None), ("wide", 40)])
def test_sizes_may_be_text_or_floats(tmp_path: Path, size: tuple[Any, Any]) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    write_coco(tmp_path, coco_content(images=images, annotations=[item(0)]))
    assert read(tmp_path).ground_truth(0).size == (40, 60)


@pytest.mark.parametrize(("size", "size_text"), [(("40", "60"), "40 x 60"), ((61.6, 40.0), "62 x 40")])
def test_sizes_that_are_no_integers_are_checked_too(tmp_path: Path, size: tuple[Any, Any], size_text: str) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    write_coco(tmp_path, coco_content(images=images, annotations=[item(0)]))
    with pytest.raises(DataError, match=f"says {size_text}"):
        read(tmp_path)


def test_file_of_a_test_set_has_no_annotations(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    content = coco_content()
    del content["annotations"]
    write_coco(tmp_path, content, split="val")
    assert len(read(tmp_path, "val").objects.boxes) == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    path = write_coco(tmp_path, coco_content())
    path.write_bytes(path.read_text().encode(encoding))
    assert len(read(tmp_path)) == 2


# ---- where the pictures are


@pytest.mark.parametrize(
    "name", ["sub\\a.jpg", "./sub/a.jpg", "train2017/sub/a.jpg", "C:\\pictures\\sub\\a.jpg", "https://x.org/sub/a.jpg"]
)
def test_pictures_under_the_names_of_another_machine(tmp_path: Path, name: str) -> None:
    content = coco_content(images=[{"id": 7, "file_name": "sub/a.jpg"}], annotations=[item(0)])
    path = write_coco(tmp_path, content)
    path.write_text(json.dumps({**content, "images": [{"id": 7, "file_name": name}]}))
    dataset = read(tmp_path, train_images="train2017")
    assert Path(dataset.path(0)) == tmp_path / "train2017" / "sub" / "a.jpg"
    assert ("1 path found under another spelling" in dataset.summary) == (name[0] != ".")


def test_url_instead_of_a_file_name(tmp_path: Path) -> None:
    content = coco_content(annotations=[item(0)])
    path = write_coco(tmp_path, content)
    images = [{"id": 7, "coco_url": "http://images.cocodataset.org/train2017/a.jpg"}]
    path.write_text(json.dumps({**content, "images": images}))
    assert Path(read(tmp_path).path(0)) == tmp_path / "train2017" / "a.jpg"


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("annotations/instances_default.json", "images"),  # CVAT
        ("result.json", "images"),  # Label Studio
        ("train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
    ],
)
def test_pictures_are_found_beside_the_file_or_in_usual_folders(tmp_path: Path, file: str, folder: str) -> None:
    write_picture(tmp_path / folder / "a.jpg")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    content = coco_content(images=[{"id": 6, "file_name": "lost.jpg"}, {"id": 7, "file_name": "a.jpg"}])
    (tmp_path / file).write_text(json.dumps(content))
    dataset = read(tmp_path, train_annotations=file, on_bad_label="drop_image")
    assert Path(dataset.path(0)) == tmp_path / folder / "a.jpg"
    (tmp_path / folder / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"data\.train_images: lost\.jpg, the first picture of .*, is in none of"):
        read(tmp_path, train_annotations=file)


def test_pictures_are_looked_for_where_most_of_them_are(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_content())
    write_picture(path.parent / "a.jpg")  # left beside the file by somebody
    assert Path(read(tmp_path).path(0)) == tmp_path / "train2017" / "a.jpg"


def test_no_validation(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    with pytest.raises(NoValidation, match=r"data\.val_annotations: null"):
        read(tmp_path, "val", val_annotations=None)


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg"])
def test_two_images_that_are_one_file(name: str, tmp_path: Path) -> None:
    """Whose objects they are cannot be told."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 0, "file_name": name}]
    write_coco(tmp_path, coco_content(images=images))
    with pytest.raises(DataError, match=r"2 images are the file .*a\.jpg; each needs one of its own"):
        read(tmp_path)
