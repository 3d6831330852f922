"""`detkit convert`: what is written is read back the same, by detkit and by others, and what is lost is reported."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from detkit import cli
from detkit.config import UserError, load_config
from detkit.data.build import build_dataset
from detkit.data.checks import DataError
from detkit.data.dataset import ImageDataset
from detkit.engine.convert import WRITERS, convert
from detkit.engine.convert_source import Source, read_source
from detkit.engine.init_config import init_config
from detkit.engine.settings import RunConfig
from tests.cli_support import TINY
from tests.data.foreign_sets import SETS
from tests.data.writers import write_picture

OWN = ("voc", "coco", "yolo")
Boxes = dict[str, list[tuple[str, list[float], bool]]]

# Pictures of 60 x 40 in three splits: three with the same name, one not ASCII, one without objects. `zebra` comes
# before `cat`, and `unused` has no object.
CLASSES = ["zebra", "cat", "007", "unused", "grüner Apfel"]
SET: dict[str, dict[str, list[tuple[int, list[float], bool]]]] = {
    "train": {
        "cam1/a.jpg": [(0, [10, 5, 20, 10], False), (1, [0, 0, 60, 40], True)],
        "cam2/a.jpg": [(2, [1.25, 2.5, 4.125, 6], False)],
        "b ü.jpg": [],
    },
    "val": {"cam1/a.jpg": [(4, [30, 20, 30, 20], False)]},
    "test": {"c.jpg": [(1, [3, 4, 5, 6], False)]},
}


def coco_set(root: Path, files: dict[str, Any] | None = None) -> Path:
    categories = [{"id": number * 3 + 1, "name": name} for number, name in enumerate(CLASSES)]
    for split, pictures in (files or SET).items():
        images, annotations = [], []
        for number, (name, objects) in enumerate(pictures.items(), start=5):
            write_picture(root / split / name, value=10 * number)
            images.append({"id": number, "file_name": name, "width": 60, "height": 40})
            for label, box, crowd in objects:
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": label * 3 + 1, "bbox": box}
                annotations.append({**row, "area": box[2] * box[3], "iscrowd": int(crowd)})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def boxes_of(source: Source) -> dict[str, Boxes]:
    """For each split and the content of each picture: class, box rounded to 1e-3 px and whether it is ignored."""
    return {split: _boxes(dataset) for split, dataset in source.splits.items()}


def _boxes(dataset: ImageDataset) -> Boxes:
    result = {}
    for index in range(len(dataset)):
        objects = dataset.ground_truth(index).objects
        names = [dataset.categories.names[label] for label in objects.labels]
        rows = zip(names, objects.boxes.round(3).tolist(), objects.ignore.tolist(), strict=True)
        result[f"{Path(dataset.path(index)).read_bytes()!r}"] = sorted(rows)
    return result


def without_ignored(splits: dict[str, Boxes]) -> dict[str, Boxes]:
    return {s: {key: [row for row in rows if not row[2]] for key, rows in boxes.items()} for s, boxes in splits.items()}


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(OWN, 2)))
def test_round_trip_of_two_formats(first: str, second: str, tmp_path: Path) -> None:
    """From one to the other and back: splits, pictures to the byte, boxes, classes in their order."""
    coco_set(tmp_path / "coco")
    convert(tmp_path / "coco", tmp_path / "first", first)
    convert(tmp_path / "first", tmp_path / "second", second)
    convert(tmp_path / "second", tmp_path / "back", first)
    original, back = (read_source(tmp_path / name, None, "raise") for name in ("coco", "back"))
    assert (original.format, back.format) == ("coco", first)
    assert back.categories.names == tuple(CLASSES)
    expected = without_ignored(boxes_of(original)) if "yolo" in (first, second) else boxes_of(original)
    assert boxes_of(back) == expected
    assert list(back.splits) == ["train", "val", "test"]


def test_round_trip_through_all_three(tmp_path: Path) -> None:
    """VOC -> COCO -> YOLO -> VOC; what YOLO cannot mark is reported."""
    names = ["voc", "coco", "yolo", "voc2"]
    convert(coco_set(tmp_path / "start"), tmp_path / "voc", "voc")
    for old, new in itertools.pairwise(names):
        lines = convert(tmp_path / old, tmp_path / new, new.rstrip("2"))
        reported = any("marked as ignored (difficult or a crowd)" in line for line in lines)
        assert reported == (new == "yolo")
    ends = [read_source(tmp_path / name, None, "raise") for name in ("voc", "voc2")]
    assert without_ignored(boxes_of(ends[0])) == boxes_of(ends[1])
    assert ends[0].categories == ends[1].categories


def test_coco_keeps_its_ids(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "a"), tmp_path / "b", "coco")
    peers = [COCO(str(tmp_path / folder / "train.json")) for folder in "ab"]
    for table in ("imgs", "cats"):
        assert sorted(getattr(peers[0], table)) == sorted(getattr(peers[1], table))
    for old, new in zip(*(peer.anns.values() for peer in peers), strict=True):
        assert {key: new[key] for key in old} == old


def test_the_original_tools_read_what_is_written(tmp_path: Path) -> None:
    """torchvision's VOC with its fixed folders, and pycocotools; the first box is (10, 5, 30, 15), continuous."""
    torchvision = pytest.importorskip("torchvision.datasets")
    convert(coco_set(tmp_path / "in"), tmp_path / "voc" / "VOCdevkit", "voc")
    convert(tmp_path / "in", tmp_path / "coco", "coco")
    peer = torchvision.VOCDetection(str(tmp_path / "voc"), year="2007", image_set="train")
    assert peer[0][0].size == (60, 40)
    first = peer[0][1]["annotation"]["object"][0]
    assert first["bndbox"] == {"xmin": "11", "ymin": "6", "xmax": "30", "ymax": "15"}
    coco = torchvision.CocoDetection(str(tmp_path / "coco" / "train"), str(tmp_path / "coco" / "train.json"))
    assert coco[0][1][0]["bbox"] == [10, 5, 20, 10]


def test_darknets_lines_by_hand(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "out", "yolo")
    line = (tmp_path / "out/labels/train/cam1/a.txt").read_text()
    assert line == "0 0.33333333 0.25000000 0.33333333 0.25000000\n"  # (20, 10) and (20, 10) of 60 x 40
    assert (tmp_path / "out/labels/train/b ü.txt").read_text() == ""
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text(encoding="utf-8"))
    assert content == {**{s: f"images/{s}" for s in SET}, "nc": 5, "names": CLASSES}


def test_same_names_in_one_folder_get_a_number(tmp_path: Path) -> None:
    """VOC has one folder of pictures; the other formats keep one a split, where only the suffix can clash."""
    one, other = [(0, [1, 1, 5, 5], False)], [(0, [2, 2, 5, 5], False)]
    coco_set(tmp_path / "in", {"train": {"a.jpg": one, "A.png": other}, "val": {"a.jpg": one}})
    convert(tmp_path / "in", tmp_path / "voc", "voc")
    assert sorted(os.listdir(tmp_path / "voc/VOC2007/JPEGImages")) == ["A_2.png", "a.jpg", "a_3.jpg"]
    lines = convert(tmp_path / "in", tmp_path / "yolo", "yolo")
    assert sorted(os.listdir(tmp_path / "yolo/images/train")) == ["A_2.png", "a.jpg"]
    assert os.listdir(tmp_path / "yolo/images/val") == ["a.jpg"]
    assert any("1 picture renamed" in line for line in lines)


@pytest.mark.parametrize("to", OWN)
def test_folders_that_mean_something_and_odd_names(to: str, tmp_path: Path) -> None:
    """`images` in the midst of a path would lead to other label files; no reader looks for pictures called `.JPE`."""
    pictures = {"x/images/a.jpg": [(0, [1, 1, 5, 5], False)], "y/labels/ b .jpg": [(1, [2, 2, 5, 5], False)]}
    coco_set(tmp_path / "in", {"train": pictures})
    write_picture(tmp_path / "in/train/c.jpg", value=200)
    (tmp_path / "in/train/c.jpg").rename(tmp_path / "in/train/c.JPE")
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["images"].append({"id": 99, "file_name": "c.JPE", "width": 60, "height": 40})
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    convert(tmp_path / "in", tmp_path / "out", to)
    old, new = (read_source(tmp_path / name, None, "raise") for name in ("in", "out"))
    assert len(new.splits["train"]) == 3
    assert boxes_of(old) == boxes_of(new)


def test_a_picture_of_a_list_that_names_it_twice_is_written_once(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "voc", "voc")
    path = tmp_path / "voc/VOC2007/ImageSets/Main/train.txt"
    path.write_text(path.read_text() * 2)
    lines = convert(tmp_path / "voc", tmp_path / "out", "coco")
    assert len(COCO(str(tmp_path / "out/train.json")).imgs) == 3
    assert any("3 repetitions of a picture in its list" in line for line in lines)


def test_a_picture_of_two_splits_is_one_file_of_voc(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "voc", "voc")
    lists = tmp_path / "voc/VOC2007/ImageSets/Main"
    (lists / "val.txt").write_text((lists / "train.txt").read_text())
    convert(tmp_path / "voc", tmp_path / "out", "voc")
    copied = tmp_path / "out/VOC2007/ImageSets/Main"
    assert (copied / "val.txt").read_text() == (copied / "train.txt").read_text() == (lists / "train.txt").read_text()
    assert len(os.listdir(tmp_path / "out/VOC2007/JPEGImages")) < 5


def test_what_files_hold_besides_boxes_is_counted(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "in")
    content = json.loads((root / "train.json").read_text())
    content["annotations"][0] |= {"caption": "it sleeps", "attributes": {"furry": True}}
    content["images"][0] |= {"license": 3, "caption": "a zebra"}
    content["categories"][0] |= {"supercategory": "animal"}
    (root / "train.json").write_text(json.dumps(content))
    reported = "\n".join(convert(root, tmp_path / "out", "voc"))
    for line in (
        "1 annotation with 'caption'",
        "1 annotation with 'attributes'",
        "1 image with 'license'",
        "1 image with 'caption'",
        "1 class with 'supercategory'",
    ):
        assert f"  {line}\n" in f"{reported}\n"


def test_further_files_of_coco_are_named(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "in")
    os.link(root / "train.json", root / "person_keypoints_train.json")
    (root / "train.json").rename(root / "instances_train.json")
    (root / "train").rename(root / "images")
    assert "  1 annotation file (person_keypoints_train.json)" in convert(root, tmp_path / "out", "yolo")


def test_darknets_description_without_a_split_is_reported(tmp_path: Path) -> None:
    (tmp_path / "obj.data").write_text("classes = 1\nnames = obj.names\n")
    (tmp_path / "obj.names").write_text("cat\n")
    with pytest.raises(UserError, match=r"obj\.data: describes no train, val or test split"):
        convert(tmp_path, tmp_path / "out", "coco")


def test_flags_of_voc_and_files_in_no_list_are_counted(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "voc", "voc")
    xml = tmp_path / "voc/VOC2007/Annotations/cam1/a.xml"
    text = xml.read_text().replace("<truncated>0", "<truncated>1", 1).replace("<pose>Unspecified", "<pose>Left", 1)
    xml.write_text(text)
    write_picture(tmp_path / "voc/VOC2007/JPEGImages/z.jpg")
    reported = "\n".join(convert(tmp_path / "voc", tmp_path / "out", "yolo"))
    for line in ("1 object with <truncated>", "1 object with <pose>", "1 file that no list names (picture or XML)"):
        assert f"  {line}\n" in reported


def test_confidences_of_yolo_are_counted(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "yolo", "yolo")
    (tmp_path / "yolo/labels/train/cam1/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0.5 0.5 0.1 0.1 0.9\n")
    reported = "\n".join(convert(tmp_path / "yolo", tmp_path / "out", "coco"))
    assert "polygon" not in reported
    assert "  1 line with a confidence" in reported


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    small, twice = (0, [1, 1, 0.5, 5], False), (1, [2, 2, 5, 5], False)
    coco_set(tmp_path / "in", {"train": {"a.jpg": [small, twice, twice]}})
    assert "  1 object of at most 1 px, which VOC cannot hold" in convert(tmp_path / "in", tmp_path / "voc", "voc")
    assert "  1 object repeated, which YOLO reads once" in convert(tmp_path / "in", tmp_path / "yolo", "yolo")
    assert "everything was carried over to coco" in convert(tmp_path / "in", tmp_path / "coco", "coco")


@pytest.mark.parametrize("to", OWN)
def test_the_section_that_is_printed_reads_the_data(to: str, tmp_path: Path) -> None:
    lines = convert(coco_set(tmp_path / "in"), tmp_path / "out", to)
    section = yaml.safe_load(lines[-1].removeprefix("next, in a configuration: "))["data"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**TINY, "data": section}))
    config = load_config(tmp_path / "run.yaml", RunConfig)
    train, val = (build_dataset(config.data, split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert (len(train), len(val)) == (3, 1)
    assert train.categories.names == tuple(CLASSES)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("to", OWN)
def test_every_foreign_format_to_every_own_one(name: str, to: str, tmp_path: Path) -> None:
    convert(SETS[name](tmp_path / "in"), tmp_path / "out", to)
    found = read_source(tmp_path / "out", to, "raise")
    (rows,) = boxes_of(found)["train"].values()
    assert rows == [("cat", [10, 5, 30, 15], False)]


def test_pictures_are_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = coco_set(tmp_path / "in") / "train/cam1/a.jpg"
    convert(tmp_path / "in", tmp_path / "linked", "coco")
    assert (tmp_path / "linked/train/cam1/a.jpg").samefile(source)
    convert(tmp_path / "in", tmp_path / "copied", "coco", copy=True)
    copied = tmp_path / "copied/train/cam1/a.jpg"
    assert not copied.samefile(source)
    assert copied.read_bytes() == source.read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    lines = convert(tmp_path / "in", tmp_path / "other", "coco")
    assert any("5 pictures copied" in line for line in lines)
    assert (tmp_path / "other/train/cam1/a.jpg").read_bytes() == source.read_bytes()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_set(tmp_path / "in")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WRITERS["yolo"], "write", full)
    assert cli.main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "yolo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out.incomplete: cannot write: No space left on device" in line
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    coco_set(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "in", tmp_path / "empty", "coco")
    with pytest.raises(UserError, match="exists already"):
        convert(tmp_path / "in", tmp_path / "empty", "voc")
    (tmp_path / "new.incomplete").mkdir()
    with pytest.raises(UserError, match="left by a conversion that was interrupted"):
        convert(tmp_path / "in", tmp_path / "new", "voc")


def test_bad_labels_follow_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco_set(tmp_path / "in", {"train": {"a.jpg": [(0, [1, 1, 0, 5], False), (1, [2, 2, 5, 5], False)]}})
    with pytest.raises(DataError, match="is empty"):
        convert(tmp_path / "in", tmp_path / "out", "yolo")
    assert cli.main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "yolo"]) == 2
    assert "or give --on-bad-label: clip" in capsys.readouterr().err
    lines = convert(tmp_path / "in", tmp_path / "out", "yolo", on_bad_label="drop_box")
    assert any("1 box dropped" in line for line in lines)


@pytest.mark.parametrize(
    ("only", "split"), [("instances_val2017.json", "val"), ("test.json", "test"), ("x.json", "train")]
)
def test_a_single_file_is_the_split_it_is_called_after(only: str, split: str, tmp_path: Path) -> None:
    root = coco_set(tmp_path / "in", {"train": SET["train"]})
    (root / "train.json").rename(root / only)
    (root / "train").rename(root / "images")
    assert list(read_source(root, None, "raise").splits) == [split]


@pytest.mark.parametrize("name", SETS)
def test_init_names_the_command_for_a_foreign_format(name: str, tmp_path: Path) -> None:
    root = SETS[name](tmp_path / "in")
    with pytest.raises(UserError, match=rf"format {name}; `detkit convert {root} FOLDER --to coco`"):
        init_config(tmp_path / "my.yaml", "faster_rcnn", root)


def test_splits_of_voc_in_folders_and_in_lists_of_the_root(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "out", "voc")
    devkit = (tmp_path / "out/VOC2007").rename(tmp_path / "plain")
    expected = boxes_of(read_source(tmp_path / "in", None, "raise"))
    assert boxes_of(read_source(devkit, None, "raise")) == expected  # root/ImageSets/Main
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        for name in (devkit / f"ImageSets/Main/{split}.txt").read_text(encoding="utf-8").splitlines():
            target = tmp_path / "flat" / folder / name.replace("/", "_")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(devkit / f"JPEGImages/{name}.jpg", target.with_name(f"{target.name}.jpg"))
            os.link(devkit / f"Annotations/{name}.xml", target.with_name(f"{target.name}.xml"))
    assert boxes_of(read_source(tmp_path / "flat", None, "raise")) == expected  # Roboflow's folders


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.jpg")
    with pytest.raises(UserError, match="neither VOC"):
        convert(tmp_path / "in", tmp_path / "out", "coco")
    with pytest.raises(UserError, match="expected one of yolo, voc, coco, labelme"):
        convert(tmp_path / "in", tmp_path / "out", "coco", format_name="tfrecord")
    with pytest.raises(UserError, match="no such folder"):
        convert(tmp_path / "none", tmp_path / "out", "coco")
    with pytest.raises(UserError, match="in the format createml"):
        convert(tmp_path / "in", tmp_path / "out", "coco", format_name="createml")


@pytest.mark.long
def test_bccd_is_the_same_after_all_three(shared_data: Path, tmp_path: Path) -> None:
    original = read_source(shared_data / "bccd/VOCdevkit", None, "drop_box")
    previous = shared_data / "bccd/VOCdevkit"
    for to in ("coco", "yolo", "voc"):
        convert(previous, tmp_path / to, to, on_bad_label="drop_box")
        previous = tmp_path / to
    back = read_source(previous, None, "raise")
    for split, dataset in original.splits.items():
        order = [[d.path(i).rpartition("/")[2] for i in range(len(d))] for d in (dataset, back.splits[split])]
        assert sorted(order[0]) == sorted(order[1])
        other = back.splits[split].take([order[1].index(name) for name in order[0]])
        np.testing.assert_allclose(other.objects.boxes, dataset.objects.boxes, atol=1e-3)
        assert (other.objects.labels == dataset.objects.labels).all()


def test_splits_of_yolo_without_train_and_without_a_yaml_file(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "out", "yolo")
    text = (tmp_path / "out/data.yaml").read_text(encoding="utf-8")
    (tmp_path / "out/data.yaml").write_text(text.replace("train: images/train\n", ""), encoding="utf-8")
    assert list(read_source(tmp_path / "out", None, "raise").splits) == ["val", "test"]
    (tmp_path / "out/data.yaml").unlink()
    (tmp_path / "out/classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    assert list(read_source(tmp_path / "out", None, "raise").splits) == ["train", "val", "test"]
