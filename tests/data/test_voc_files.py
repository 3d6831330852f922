"""Where lists, pictures and XML files lie: PASCAL's layout and those of annotation tools, and which belong together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.data.checks import DataError
from detkit.data.dataset import ImageDataset
from detkit.data.voc import VOCConfig, read_voc
from tests.data.writers import voc_object, write_picture, write_voc

DOG = voc_object("dog", (1, 1, 9, 9))
BOXES = {name: voc_object("dog", (1, 1, 10 + number, 10)) for number, name in enumerate("abcd")}  # a's is 10 px wide


def read(root: Path, *train: str, **settings: Any) -> ImageDataset:
    return read_voc(VOCConfig(root=str(root), train=train or ("2007_train",), classes="auto", **settings), "train")


def pictures(dataset: ImageDataset) -> list[str]:
    return [Path(dataset.path(index)).name for index in range(len(dataset))]


def ids(dataset: ImageDataset) -> list[Any]:
    return [dataset.image_id(index) for index in range(len(dataset))]


def widths(dataset: ImageDataset) -> list[float]:
    return [float(width) for width in dataset.objects.boxes[:, 2]]


def write_list(folder: Path, content: str | bytes, name: str = "train") -> None:
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_flat(folder: Path, *names: str) -> None:
    """Pictures with XML beside them."""
    source = write_voc(folder.parent / "made", {name: [BOXES.get(name, DOG)] for name in names})
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (source / "JPEGImages" / f"{name}.jpg").rename(folder / f"{name}.jpg")
        (source / "Annotations" / f"{name}.xml").rename(folder / f"{name}.xml")


# ---- lists


@pytest.mark.parametrize(
    "line",
    [
        "{}.jpg",
        "{}.JPG",
        "{}.xml",
        "./JPEGImages/{}.jpg",
        "../JPEGImages/{}.jpg",
        "/home/me/VOC2007/JPEGImages/{}.jpg",
        "C:\\data\\VOC2007\\JPEGImages\\{}.jpg",
        "Annotations/{}.xml",
        "JPEGImages/{}.jpg Annotations/{}.xml",
        "  {}  ",
        "{} 1",
        "{}  -1",
        "{}\t0",
    ],
)
def test_names_in_a_list(tmp_path: Path, line: str) -> None:
    folder = write_voc(tmp_path, {"a": [BOXES["a"]], "b c": [BOXES["b"]], "d.v2": [BOXES["c"]]})
    names = ("a", "d.v2") if "Annotations/{}.xml" in line and "JPEG" in line else ("a", "b c", "d.v2")
    write_list(folder, "\n".join(line.replace("{}", name) for name in names))
    assert ids(read(tmp_path)) == list(names)


@pytest.mark.parametrize(
    "content",
    [
        "ä\nb\n".encode("utf-8-sig"),
        "ä\r\nb\r\n".encode(),
        "ä\rb".encode(),
        "ä\nb\n".encode("utf-16"),
        b"\xfe\xff" + "ä\nb".encode("utf-16-be"),
    ],
    ids=["BOM", "Windows", "old Mac", "UTF-16", "UTF-16, big endian"],
)
def test_lists_as_every_system_writes_them(tmp_path: Path, content: bytes) -> None:
    folder = write_voc(tmp_path, {"ä": [DOG], "b": [DOG]})
    write_list(folder, content)
    assert ids(read(tmp_path)) == ["ä", "b"]


def test_ids_with_spaces_are_told_from_columns_by_the_files(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"my dog": [DOG], "my dog 1": [DOG], "my": [DOG]})
    write_list(folder, "my\nmy dog\nmy dog 1\n")
    assert ids(read(tmp_path)) == ["my", "my dog", "my dog 1"]
    write_list(folder, "my  1\nmy dog -1\n")
    assert ids(read(tmp_path)) == ["my", "my dog"]
    write_list(folder, "my\nmy dog\nmy dog 2\n")  # the last is not there, and `my dog` is no other spelling of it
    with pytest.raises(DataError, match=r"my dog 2\.jpg: neither this picture nor its annotation file"):
        read(tmp_path)


def test_folders_below_the_pictures(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"7": [DOG]})
    for camera in ("cam1", "cam2"):
        for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (folder / kind / camera).mkdir()
            (folder / kind / camera / f"7.{suffix}").write_bytes((folder / kind / f"7.{suffix}").read_bytes())
    write_list(folder, "cam1/7\nJPEGImages/cam2/7.jpg\n7")
    assert ids(read(tmp_path)) == ["cam1/7", "cam2/7", "7"]
    write_list(folder, "cam3/7\ncam4/7")
    with pytest.raises(DataError, match="cam3/7 and cam4/7 both lead to the picture 7"):
        read(tmp_path)


def test_lists_directly_in_imagesets_and_a_root_that_is_the_year(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    lists = folder / "ImageSets"
    for path in (lists / "Main").iterdir():
        path.rename(lists / path.name)
    (lists / "Main").rmdir()
    assert ids(read(tmp_path)) == ids(read(folder)) == ids(read(folder, "train")) == ["a", "b"]
    with pytest.raises(DataError, match=r"trainval\.txt does not exist; lists there: train, val"):
        read(folder, "trainval")


# ---- folders


def test_folders_of_pictures_with_xml_beside_them(tmp_path: Path) -> None:
    write_flat(tmp_path / "train", "b", "a")
    write_flat(tmp_path / "valid", "a")
    (tmp_path / "train" / "README.roboflow.txt").write_text("not a picture")
    (tmp_path / "train" / "._a.jpg").write_text("what macOS leaves in an archive")
    assert ids(read(tmp_path, "train")) == ["a", "b"]
    assert ids(read(tmp_path, "train", "valid")) == ["train/a", "train/b", "valid/a"]
    assert ids(read(tmp_path / "valid", ".")) == ["a"]
    config = VOCConfig(root=str(tmp_path), train=("train",), val=("valid",), classes="auto")
    assert widths(read_voc(config, "val")) == [10]


@pytest.mark.parametrize(("images", "xml"), [("images", "annotations"), ("JPEGImages", "Annotations"), ("images", "")])
def test_a_folder_that_holds_pictures_and_xml_apart(tmp_path: Path, images: str, xml: str) -> None:
    folder = write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    (tmp_path / "set").mkdir()
    (folder / "JPEGImages").rename(tmp_path / "set" / images)
    if xml:
        (folder / "Annotations").rename(tmp_path / "set" / xml)
    else:
        for path in (folder / "Annotations").iterdir():
            path.rename(tmp_path / "set" / images / path.name)
    assert ids(read(tmp_path, "set")) == ids(read(tmp_path / "set", ".")) == ["a", "b"]


def test_what_is_no_split_is_refused_with_what_there_is(tmp_path: Path) -> None:
    write_flat(tmp_path / "train", "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"data\.train: expected <year>_<list> .*, got 'trian'; .* has empty, made, train"
    ):
        read(tmp_path, "trian")
    with pytest.raises(DataError, match=r"data\.train: my_set: .*VOCmy does not exist; .* has empty, made, train"):
        read(tmp_path, "my_set")
    with pytest.raises(DataError, match=r"data\.train: empty: no picture in .*; known: \.jpg, "):
        read(tmp_path, "empty")
    (tmp_path / "train" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"data\.train: train: none of its 1 pictures .* such as .*train/a\.xml"):
        read(tmp_path, "train")


# ---- which picture belongs to which XML


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".bmp", ".tif", ".tiff", ".webp"])
def test_suffixes_of_pictures(tmp_path: Path, suffix: str) -> None:
    folder = write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    (folder / "JPEGImages" / "a.jpg").unlink()
    write_picture(folder / "JPEGImages" / f"a{suffix}")
    assert pictures(read(tmp_path)) == [f"a{suffix}", "b.jpg"]


def test_upper_case_xml(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [DOG]})
    (folder / "Annotations" / "a.xml").rename(folder / "Annotations" / "a.XML")
    assert ids(read(tmp_path)) == ["a"]


def rename_in_xml(folder: Path, filename: Callable[[str], str]) -> None:
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace(f"{path.stem}.jpg", filename(path.stem)))


@pytest.mark.parametrize("filename", ["a.jpg", "b.png", "x.jpg", "C:\\photos\\x.jpg", "a"])
def test_the_id_decides_whatever_filename_says(tmp_path: Path, filename: str) -> None:
    """Tools copy XML files, and with them <filename>: believed, the boxes of b would land on a."""
    folder = write_voc(tmp_path, {name: [BOXES[name]] for name in "abc"})
    rename_in_xml(folder, lambda _: filename)
    dataset = read(tmp_path)
    assert (pictures(dataset), widths(dataset)) == (["a.jpg", "b.jpg", "c.jpg"], [10, 11, 12])
    differing = 3 if "x" in filename else 2
    assert f"{differing} annotations with another picture's <filename> paired by id" in dataset.summary


@pytest.mark.parametrize("filename", ["{}.jpg", "{}.JPG", "{}", "/home/me/{}.jpg", "C:\\photos\\{}.jpg", "{}.png", ""])
def test_other_spellings_of_the_own_name_are_no_difference(tmp_path: Path, filename: str) -> None:
    rename_in_xml(write_voc(tmp_path, {"a": [DOG], "b c": [DOG]}), lambda stem: filename.replace("{}", stem))
    assert "<filename>" not in read(tmp_path).summary


def test_filename_finds_a_picture_that_is_called_otherwise(tmp_path: Path) -> None:
    """It is then no picture without XML, in a folder where every picture counts."""
    write_flat(tmp_path / "set", "a", "b")
    (tmp_path / "set" / "a.jpg").rename(tmp_path / "set" / "photo 1.jpg")
    path = tmp_path / "set" / "a.xml"
    path.write_text(path.read_text().replace("a.jpg", "D:\\phone\\photo 1.jpg"))
    dataset = read(tmp_path, "set")
    assert (pictures(dataset), widths(dataset)) == (["photo 1.jpg", "b.jpg"], [10, 11])
    assert "1 picture found by <filename> as none has the id" in dataset.summary
    assert "background" not in dataset.summary


def test_filename_is_not_believed_where_the_picture_is_of_another_xml(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {name: [BOXES[name]] for name in "abc"})
    rename_in_xml(folder, lambda _: "a.jpg")
    (folder / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 problem\n.*b\.xml: the picture .*b\.jpg does not exist"):
        read(tmp_path)
    for name in "ac":
        (folder / "JPEGImages" / f"{name}.jpg").unlink()
    write_picture(folder / "JPEGImages" / "photo.jpg")
    rename_in_xml(folder, lambda _: "photo.jpg")  # three files claim it
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace("a.jpg", "photo.jpg"))
    with pytest.raises(DataError, match="3 problems"):
        read(tmp_path)


def test_of_several_pictures_of_one_id_filename_chooses(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    write_picture(folder / "JPEGImages" / "a.png")
    assert pictures(read(tmp_path)) == ["a.jpg", "b.jpg"]
    rename_in_xml(folder, lambda stem: f"{stem}.png")
    dataset = read(tmp_path)
    assert pictures(dataset) == ["a.png", "b.jpg"]
    assert "1 picture chosen among several of one id" in dataset.summary


def test_pictures_without_xml_in_a_folder(tmp_path: Path) -> None:
    write_flat(tmp_path / "set", "a", "b", "c")
    for name in "bc":
        (tmp_path / "set" / f"{name}.xml").unlink()
    dataset = read(tmp_path, "set")
    assert [len(dataset.ground_truth(index).objects) for index in range(3)] == [1, 0, 0]
    assert "2 pictures without XML read as background" in dataset.summary


def test_a_list_with_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """As an old archive leaves them: the list and the names of the files are of the same encoding."""
    name = os.fsdecode(b"caf\xe9")
    folder = write_voc(tmp_path, {"cafe": [DOG]})
    (folder / "JPEGImages/cafe.jpg").rename(folder / f"JPEGImages/{name}.jpg")
    (folder / "Annotations/cafe.xml").rename(folder / f"Annotations/{name}.xml")
    write_list(folder, b"caf\xe9\n")
    assert ids(read(tmp_path)) == [name]


def test_a_list_that_is_cut_short(tmp_path: Path) -> None:
    write_list(write_voc(tmp_path, {"a": [DOG]}), b"\xff\xfea")
    with pytest.raises(DataError, match=r"train\.txt is cut short, or not UTF-16 text"):
        read(tmp_path)
