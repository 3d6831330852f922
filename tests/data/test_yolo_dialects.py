"""YOLO's and darknet's files as tools write them: unusual, but clear, and so read and counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from detkit.data.checks import DataError, NoValidation
from detkit.data.dataset import ImageDataset
from detkit.data.yolo import YOLODataConfig, read_yolo
from tests.data.writers import write_picture, write_yolo

Split = Literal["train", "val"]
DOG = "0 0.5 0.25 0.5 0.5"  # of 60 x 40 (w x h): x 15 to 45, y 0 to 20
DOG_BOX = (15, 0, 45, 20)


def read(root: Path, split: Split = "train", **changes: Any) -> ImageDataset:
    return read_yolo(YOLODataConfig(**{"root": str(root), **changes}), split)


def write(root: Path, files: dict[str, str]) -> Path:
    """Text files, and flat pictures of 40 x 60 (h, w) for the names that end on .jpg."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jpg"):
            write_picture(root / name)
        else:
            (root / name).write_text(text)
    return root


def boxes_of(dataset: ImageDataset, index: int = 0) -> list[tuple[float, ...]]:
    return [tuple(np.round(box, 3).tolist()) for box in dataset.ground_truth(index).objects.boxes]


# ---- lines


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("0 0.5 0.25 0.5 0.5 0.87", "1 line with a confidence, which is left out"),
        ("0.0 0.5 0.25 0.5 0.5 1", "1 line with a confidence, which is left out"),
        ("0,0.5,0.25,0.5,0.5", "1 line with commas or semicolons between its numbers"),
        ("0, 0.5, 0.25, 0.5, 0.5,", "1 line with commas or semicolons between its numbers"),
        ("0;0.5;\t0.25;0.5;0.5", "1 line with commas or semicolons between its numbers"),
        ("0\t0.5\t0.25\t0.5\t0.5", None),
        ("0.0 .5 +0.25 5e-1 0.50", None),
        ("0 0.25 0 0.75 0 0.75 0.5 0.25 0.5", None),  # the corners of an oriented box
    ],
)
def test_forms_of_a_box(tmp_path: Path, line: str, note: str | None) -> None:
    write_yolo(tmp_path, {"a": line})
    dataset = read(tmp_path)
    assert boxes_of(dataset) == [DOG_BOX]
    assert note is None or note in dataset.summary


@pytest.mark.parametrize(("shape", "points"), [([2, 3], "0.9 0.9 2 0 0 0"), ([3, 2], "0.9 0.9 0.1 0.2 0 0")])
def test_keypoints_that_the_yaml_announces_stand_behind_the_box(tmp_path: Path, shape: Any, points: str) -> None:
    write_yolo(tmp_path, {"a": f"{DOG} {points}\n{DOG}", "b": "0 0.1 0.1 0.9 0.1 0.9 0.9"}, kpt_shape=shape)
    with pytest.raises(DataError, match=r"1 problem\n.*b\.txt:1: expected .*, alone or with keypoints in 11"):
        read(tmp_path)
    dataset = read(tmp_path, on_bad_label="drop_box")
    assert boxes_of(dataset) == [DOG_BOX, DOG_BOX]
    assert dataset.objects.keypoints is not None
    assert dataset.objects.keypoints.shape == (2, shape[0], 3)


@pytest.mark.parametrize("points", ["0.9 0.9 2 0 0 0", "0.9 0.9 2.0 0 0 0.0 0.1 0.1 1", "0.2 0.3 1 " * 17])
def test_keypoints_that_nothing_announces_are_recognised(tmp_path: Path, points: str) -> None:
    """As polygons, `cx cy` and `w h` would be corners."""
    write_yolo(tmp_path, {"a": f"{DOG} {points}\n", "b": f"{DOG} {points.replace('2', '0')}\n{DOG}\n"})
    dataset = read(tmp_path)
    assert boxes_of(dataset, 0) == [DOG_BOX]
    assert boxes_of(dataset, 1)[0] == DOG_BOX
    assert dataset.objects.keypoints is not None
    assert dataset.objects.keypoints.shape == (3, len(points.split()) // 3, 3)


def test_polygons_are_no_keypoints_by_chance(tmp_path: Path) -> None:
    """An object at the lower right corner of its picture: every third number behind the first five is 1."""
    corner = "0 0.5 0.75 0.75 0.5 1 0.5 1 1 0.75 1"
    write_yolo(tmp_path, {"a": corner, "b": "0 0.1 0.1 0.9 0.1 0.9 0.9"})
    assert boxes_of(read(tmp_path)) == [(30, 20, 60, 40)]


def test_keypoints_among_polygons_are_a_problem(tmp_path: Path) -> None:
    polygon = "0 0.1 0.1 0.9 0.1 0.9 0.9"
    write_yolo(tmp_path, {"a": f"{DOG} {'0.5 0.5 1 ' * 4}", "b": polygon, "c": f"{DOG} {'0.5 0.5 1 ' * 3}"})
    with pytest.raises(DataError, match="2 problems") as raised:
        read(tmp_path)
    for name in "ac":
        message = f"{name}.txt:1: expected a polygon like other lines, not a box with keypoints; kpt_shape in"
        assert message in str(raised.value)


# ---- text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_byte_order_marks_in_every_text(tmp_path: Path, encoding: str) -> None:
    folder = write_yolo(tmp_path, {"é": DOG}, train="list.txt")
    (tmp_path / "list.txt").write_text("images/train/é.jpg\r\n")
    for path in (folder / "é.txt", tmp_path / "list.txt", tmp_path / "data.yaml"):
        text = path.read_text()
        path.write_bytes(f"\ufeff{text}".encode("utf-16-le") if "bom" in encoding else text.encode(encoding))
    assert boxes_of(read(tmp_path)) == [DOG_BOX]


def test_label_files_may_have_the_suffix_in_capitals(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": None})
    (folder / "a.TXT").write_text(DOG)
    assert boxes_of(read(tmp_path)) == [DOG_BOX]
    (folder / "b.TXT").write_text(DOG)
    with pytest.raises(DataError, match=r"b\.TXT: no picture belongs to this label file"):
        read(tmp_path)


def test_comments_in_lists(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG, "b": DOG, "#c": DOG}, train="images/train/list.txt")
    (tmp_path / "images" / "train" / "list.txt").write_text("# pictures\n#b.jpg\na.jpg\n#c.jpg\n")
    dataset = read(tmp_path)
    assert [dataset.image_id(i) for i in range(len(dataset))] == ["images/train/a.jpg", "images/train/#c.jpg"]


def test_names_are_text_as_it_stands(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG})
    names = ["007", "010", "1e3", "1.0", "no", "2023-01-01", "12:30", "=", "0x1F", "~"]
    (tmp_path / "data.yaml").write_text(f"names: [{', '.join(names)}]\ntrain: images/train\nnc: 10\n")
    assert read(tmp_path).categories.names == tuple(names)
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "2023")
    (tmp_path / "labels" / "train").rename(tmp_path / "labels" / "2023")
    (tmp_path / "data.yaml").write_text("names: {3: 1e3}\ntrain: 2023\npath: images\n")
    with pytest.raises(DataError, match=r"the class 0 is not known; the names are 3 \(1e3\) to 3 \(1e3\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "nc", "expected"),
    [
        ({"1": "dog", "2": "cat"}, 2, {1: "dog", 2: "cat"}),
        ({"1": "dog", "2": "cat"}, 3, {1: "dog", 2: "cat"}),
        ({"7": "cat", "1": "dog"}, None, {1: "dog", 7: "cat"}),
    ],
)
def test_numbers_of_the_names_are_those_of_the_labels(tmp_path: Path, names: Any, nc: Any, expected: Any) -> None:
    write_yolo(tmp_path, {"a": f"{max(expected)} 0.5 0.25 0.5 0.5\n1 0.5 0.5 0.1 0.1"}, names=names, nc=nc)
    dataset = read(tmp_path)
    assert dict(zip(dataset.categories.ids, dataset.categories.names, strict=True)) == expected
    assert dataset.ground_truth(0).objects.labels.tolist() == [1, 0]


def test_classes_may_be_chosen_and_merged(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": f"{DOG}\n1 0.5 0.5 1 1\n1 0.5 30 1 1"})
    dataset = read(tmp_path, classes=("dog",))  # what is wrong with a cat does not matter
    assert (boxes_of(dataset), dataset.categories.names) == ([DOG_BOX], ("dog",))
    assert "2 objects of other classes left out (cat 2)" in dataset.summary
    merged = read(tmp_path, merge={"pet": ("cat", "dog")}, on_bad_label="drop_box")
    assert (merged.categories.names, merged.ground_truth(0).objects.labels.tolist()) == (("pet",), [0, 0])


# ---- folders and lists


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("JPEGImages/a.jpg", "labels/a.txt"),  # darknet
        ("images/JPEGImages/a.jpg", "images/labels/a.txt"),
        ("images/a.jpg", "images/a.txt"),  # labelImg, in the folder of the pictures
        ("pictures/a.jpg", "pictures/a.txt"),
    ],
)
def test_where_label_files_lie(tmp_path: Path, picture: str, label: str) -> None:
    write(tmp_path, {picture: "", label: DOG, "data.yaml": f"names: [dog]\ntrain: {Path(picture).parent}"})
    assert boxes_of(read(tmp_path)) == [DOG_BOX]


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("../datasets/other", ""),
        ("/content/datasets/other", ""),
        ("C:\\datasets\\other", ""),
        ("../datasets/kit", "kit"),
        ("/content/datasets/kit", "kit"),
        ("C:\\datasets\\kit", "kit"),
    ],
)
def test_path_of_another_machine(tmp_path: Path, path: str, below: str) -> None:
    write_yolo(tmp_path / below, {"a": DOG}, path=path)
    (tmp_path / below / "data.yaml").replace(tmp_path / "data.yaml")
    dataset = read(tmp_path)
    assert boxes_of(dataset) == [DOG_BOX]
    assert "1 path that is not here: the folder of the description is taken" in dataset.summary


@pytest.mark.parametrize(
    "entry", ["images\\train", "/content/kit/images/train", "kit/images/train", "..\\images\\train"]
)
def test_folder_under_the_name_of_another_machine(tmp_path: Path, entry: str) -> None:
    write_yolo(tmp_path, {"a": DOG}, train=entry)
    dataset = read(tmp_path)
    assert (boxes_of(dataset), dataset.image_id(0)) == ([DOG_BOX], "images/train/a.jpg")
    assert "1 path found under another spelling" in dataset.summary


def test_one_folder_is_not_taken_for_two_splits(tmp_path: Path) -> None:
    """Of `../train/images` and `../valid/images`, which are not here, `images` may be either."""
    write(tmp_path / "kit", {"images/a.jpg": "", "labels/a.txt": DOG})
    write(tmp_path / "kit", {"data.yaml": "names: [dog]\ntrain: ../train/images\nval: ../valid/images"})
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"images: the folder or list .* does not exist"):
            read(tmp_path / "kit", split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "data/obj_train_data/a.jpg",  # CVAT: the list lies in `data`
        "C:\\kit\\obj_train_data\\a.jpg",
        "/home/somebody/kit/obj_train_data/a.jpg",
        "./obj_train_data/a.jpg",
    ],
)
def test_lists_of_another_machine(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"obj_train_data/a.jpg": "", "obj_train_data/a.txt": DOG, "train.txt": line})
    write(tmp_path, {"data.yaml": "names: [dog]\ntrain: train.txt"})
    dataset = read(tmp_path)
    assert boxes_of(dataset) == [DOG_BOX]
    assert ("1 path found under another spelling" in dataset.summary) == (line[0] != ".")


@pytest.mark.parametrize("train", ["list.txt", ["images/train", "images"], ["images/train", "images/train"]])
def test_picture_listed_again_is_trained_on_again_and_measured_once(tmp_path: Path, train: Any) -> None:
    write_yolo(tmp_path, {"a": DOG, "b": f"{DOG} 0.9"}, train=train, val=train)
    (tmp_path / "list.txt").write_text("".join(f"images/train/{name}.jpg\n" for name in ("a", "b", "../train/a", "b")))
    dataset, val = read(tmp_path), read(tmp_path, "val")
    assert [dataset.image_id(i)[-5:] for i in range(4)] == ["a.jpg", "b.jpg"] * 2  # type: ignore[index]
    assert len(dataset.objects.boxes) == 4
    assert "2 pictures listed again and trained on as often, 1 line with a conf" in dataset.summary
    assert len(val) == 2
    assert "2 pictures listed again and read once" in val.summary


def test_picture_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_yolo(tmp_path, {"a": DOG, "b": DOG}, train=["list.txt", "images/more"])
    for kind, suffix, old in (("images", ".jpg", "a"), ("labels", ".txt", "a")):
        (tmp_path / kind / "train" / f"{old}{suffix}").rename(tmp_path / kind / "train" / f"{name}{suffix}")
        (tmp_path / kind / "more").mkdir()
        (tmp_path / kind / "train" / f"b{suffix}").rename(tmp_path / kind / "more" / f"{name}{suffix}")
    (tmp_path / "list.txt").write_bytes(b"images/train/caf\xe9.jpg\n")
    dataset = read(tmp_path)
    assert [dataset.image_id(i) for i in range(2)] == [f"images/{folder}/{name}.jpg" for folder in ("train", "more")]
    assert [boxes_of(dataset, i) for i in range(2)] == [[DOG_BOX]] * 2


# ---- descriptions


@pytest.mark.parametrize("root", ["", "obj.data"])
@pytest.mark.parametrize("valid", [True, False])
def test_darknets_data_file(tmp_path: Path, root: str, valid: bool) -> None:
    """As CVAT exports it: its paths begin with `data/`, which is the folder of the file itself."""
    text = "classes = 2\ntrain  = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(tmp_path, {"obj.data": f"{text}valid = data/valid.txt\n" if valid else text, "obj.names": "dog\ncat\n\n"})
    for split, name in (("train", "a"), ("valid", "b")):
        write(tmp_path, {f"obj_{split}_data/{name}.jpg": "", f"obj_{split}_data/{name}.txt": DOG})
        write(tmp_path, {f"{split}.txt": f"data/obj_{split}_data/{name}.jpg\n"})
    dataset = read(tmp_path / root)
    assert (boxes_of(dataset), dataset.categories.names) == ([DOG_BOX], ("dog", "cat"))
    if valid:
        assert read(tmp_path / root, "val").image_id(0) == "obj_valid_data/b.jpg"
    else:
        with pytest.raises(NoValidation, match=r"data\.val: .*obj\.data has no validation split; splits there: train"):
            read(tmp_path / root, "val")


def test_darknets_data_file_is_checked(tmp_path: Path) -> None:
    write(tmp_path, {"obj.data": "classes = 3\nnames = obj.names\n", "obj.names": "dog\n\ncat\n"})
    with pytest.raises(DataError, match=r"obj\.data: names: expected the names of the classes"):
        read(tmp_path)
    write(tmp_path, {"obj.names": "dog\ncat\n"})
    with pytest.raises(DataError, match=r"obj\.data: nc: says 3 classes, but names has 2"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        ("classes.txt", {"train": "images/train", "val": "images/val"}),
        ("labels/classes.txt", {"train": "images/train", "val": "images/valid"}),
        ("obj.names", {"train": "train/images", "val": "valid/images"}),
        ("train/_darknet.labels", {"train": "train", "val": "valid"}),
        ("classes.txt", {"train": "images"}),
        ("classes.txt", {"train": "JPEGImages"}),
        ("classes.txt", {"train": "."}),
    ],
)
def test_names_without_a_yaml_file(tmp_path: Path, names: str, folders: dict[str, str]) -> None:
    write(tmp_path, {names: "dog\ncat\n"})
    for folder in folders.values():
        labels = folder.replace("images", "labels").replace("JPEGImages", "labels")
        write(tmp_path, {f"{folder}/a.jpg": "", f"{labels}/a.txt": DOG})
    for split, folder in folders.items():
        dataset = read(tmp_path, split)  # type: ignore[arg-type]
        assert (boxes_of(dataset), dataset.categories.names) == ([DOG_BOX], ("dog", "cat"))
        assert dataset.image_id(0) == Path(folder, "a.jpg").as_posix()
    if "val" not in folders:
        with pytest.raises(NoValidation, match="has no validation split"):
            read(tmp_path, "val")


@pytest.mark.parametrize("val", ["", "val:", "val: null", "val: ~", "val: []", "val: ''"])
def test_no_validation(tmp_path: Path, val: str) -> None:
    write_yolo(tmp_path, {"a": DOG})
    (tmp_path / "data.yaml").write_text(f"names: [dog]\ntrain: images/train\ntest: images/train\n{val}")
    with pytest.raises(NoValidation, match=r"data\.yaml has no validation split; splits there: train, test"):
        read(tmp_path, "val")
    with pytest.raises(NoValidation):
        read(tmp_path, "val", val=None)
    assert len(read(tmp_path, "val", val="test")) == 1
    with pytest.raises(DataError, match="has no key 'tset'") as raised:
        read(tmp_path, "val", val="tset")
    assert not isinstance(raised.value, NoValidation)


def test_valid_is_another_word_for_val(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG})
    (tmp_path / "data.yaml").write_text("names: [dog]\nvalid: images/train")
    assert len(read(tmp_path, "val")) == 1
