"""The reader of darknet's text labels, on small files written here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.config import ConfigError
from detkit.data.checks import DataError
from detkit.data.shapes import ShapesConfig, read_shapes
from detkit.data.yolo import YOLODataConfig, read_yolo
from tests.data.writers import write_picture, write_yolo

DOG = "0 0.5 0.25 0.5 0.5\n"  # of 60 x 40 (w x h): x 15 to 45, y 0 to 20


def config(root: Path, **changes: Any) -> YOLODataConfig:
    return YOLODataConfig(**{"root": str(root), **changes})


def test_shares_of_the_picture_become_corners(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": f"{DOG}1 0.5 0.5 1 1\n"})
    dataset = read_yolo(config(tmp_path), "train")
    truth = dataset.ground_truth(0)
    np.testing.assert_array_equal(truth.objects.boxes, [(15, 0, 45, 20), (0, 0, 60, 40)])
    assert truth.objects.labels.tolist() == [0, 1]
    assert truth.objects.area.tolist() == [600, 2400]
    assert not truth.objects.ignore.any()
    assert (truth.image_id, truth.size) == ("images/train/a.jpg", (40, 60))
    assert (dataset.categories.names, dataset.categories.ids) == (("dog", "cat"), (0, 1))


def test_polygon_is_read_as_its_bounding_box(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": "1 0.5 0.1 0.25 0.5 0.75 0.9\n0 0.1 0.1 0.9 0.1 0.9 0.5 0.1 0.5"})
    truth = read_yolo(config(tmp_path), "train").ground_truth(0)
    np.testing.assert_allclose(truth.objects.boxes, [(15, 4, 45, 36), (6, 4, 54, 20)], rtol=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_shapes_written_in_this_layout_are_those_of_voc(tmp_path: Path, split: Any) -> None:
    voc = read_shapes(ShapesConfig(root=str(tmp_path / "shapes"), num_train=12, num_val=5), split)
    folder = write_yolo(tmp_path / "yolo", {}, names=voc.categories.names, split=split)
    (tmp_path / "yolo" / "images" / split).mkdir(parents=True)
    for index in range(len(voc)):
        truth, path = voc.ground_truth(index), Path(voc.path(index))
        height, width = truth.size
        lines = [
            f"{label} {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} "
            f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
            for label, (x1, y1, x2, y2) in zip(truth.objects.labels, truth.objects.boxes.tolist(), strict=True)
        ]
        (folder / f"{path.stem}.txt").write_text("".join(lines))
        shutil.copy(path, tmp_path / "yolo" / "images" / split)
    yolo = read_yolo(config(tmp_path / "yolo"), split)
    assert len(yolo) == len(voc) > 4
    assert yolo.categories.names == voc.categories.names
    for index in range(len(voc)):
        one, two = voc.ground_truth(index), yolo.ground_truth(index)
        assert one.size == two.size
        np.testing.assert_allclose(one.objects.boxes, two.objects.boxes, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(one.objects.labels, two.objects.labels)
        np.testing.assert_array_equal(voc.load(index).image, yolo.load(index).image)


def test_shares_are_of_the_upright_picture(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG})
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    dataset = read_yolo(config(tmp_path), "train")
    assert dataset.ground_truth(0).size == dataset.load(0).image.shape[:2] == (60, 40)
    np.testing.assert_array_equal(dataset.ground_truth(0).objects.boxes, [(10, 0, 30, 30)])


def test_windows_lines_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": ""})
    (folder / "a.txt").write_bytes(f"\ufeff\r\n{DOG.strip()}\r\n  \r\n1\t0.5 0.5  0.1 0.1 \r\n".encode())
    path = tmp_path / "data.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    truth = read_yolo(config(tmp_path), "train").ground_truth(0)
    assert truth.objects.labels.tolist() == [0, 1]
    assert truth.objects.boxes[0].tolist() == [15, 0, 45, 20]


def test_missing_and_empty_label_files_mean_no_objects_and_are_counted(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG, "b": "", "c": None, "d": None})
    dataset = read_yolo(config(tmp_path), "train")
    assert [len(dataset.ground_truth(i).objects.boxes) for i in range(4)] == [1, 0, 0, 0]
    assert "4 images, 1 object of 2 classes" in dataset.summary
    assert "3 images without objects, 2 images without a label file" in dataset.summary


def test_no_label_file_at_all_is_an_error_that_says_where_one_was_expected(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": None, "b": None})
    with pytest.raises(DataError, match="train: none of 2 pictures has a label file") as raised:
        read_yolo(config(tmp_path), "train")
    assert str(tmp_path / "labels" / "train" / "a.txt") in str(raised.value)


def test_repeated_line_is_read_once_and_counted(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": f"{DOG}1 0.5 0.5 0.1 0.1\n{DOG.replace(' ', '  ')}", "b": DOG})
    dataset = read_yolo(config(tmp_path), "train")
    assert [dataset.ground_truth(i).objects.labels.tolist() for i in range(2)] == [[0, 1], [0]]
    assert "1 line repeated and read once" in dataset.summary


def test_label_file_without_a_picture_is_a_problem(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": DOG, "b": DOG})
    (folder / "classes.txt").write_text("dog\ncat\n")  # labelImg leaves it there
    read_yolo(config(tmp_path), "train")
    (tmp_path / "images" / "train" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 problem\n  labels/train/b\.txt: no picture belongs to this label file"):
        read_yolo(config(tmp_path), "train")
    dataset = read_yolo(config(tmp_path, on_bad_label="drop_image"), "train")
    assert len(dataset) == 1
    assert "1 image dropped" in dataset.summary


BAD = {
    "1 0.5 0.5 0.1": "expected class cx cy w h, or class and at least 3 points x y; found 4 columns: '1 0.5 0.5 0.1'",
    "1 0.5 0.5 0.1 0.1 90": "(cat): expected a confidence, 0 to 1, behind the box, found '1 0.5 0.5 0.1 0.1 90'",
    "1 0.5 0.5 0.1 0.1 0.9 0.9 0.9": "found 8 columns",
    "0 0,5 0,5 0,1 0,1": "expected numbers alone, found '0 0,5 0,5 0,1 0,1'",
    "0,,0.5,0.5,0.1,0.1": "found 1 columns: '0,,0.5,0.5,0.1,0.1'",
    "dog 0.5 0.5 0.1 0.1": "expected numbers alone, found 'dog 0.5 0.5 0.1 0.1'",
    "2 0.5 0.5 0.1 0.1": "the class 2 is not known; the names are 0 (dog) to 1 (cat)",
    "-1 0.5 0.5 0.1 0.1": "the class -1 is not known",
    "0.5 0.5 0.5 0.1 0.1": "the class 0.5 is not known",
    "nan 0.5 0.5 0.1 0.1": "the class nan is not known",
    "0 30 20 10 10": "expected shares of the picture, 0 to 1, found '0 30 20 10 10'; divide pixels by its width",
    "0 1.2 0.5 0.1 0.1": "(dog): box x 69 to 75, y 18 to 22 leaves the image, 60 x 40 (w x h)",
    "0 0.5 0.5 1.2 0.1": "(dog): box x -6 to 66",
    "0 0.5 0.5 0 0.1": "(dog): box x 30 to 30, y 18 to 22 is empty",
    "0 0.5 0.5 -0.1 0.1": "is empty",
    "0 nan 0.5 0.1 0.1": "is not finite",
    "0 0.5 inf 0.1 0.1": "is not finite",
    "1 0.2 0.2 0.2 0.4 0.2 0.6": "(cat): box x 12 to 12, y 8 to 24 is empty",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_line_is_named_and_dropped_alone(tmp_path: Path, line: str) -> None:
    write_yolo(tmp_path, {"a": f"{DOG}\n{line}\n", "b": DOG})
    with pytest.raises(DataError, match="1 problem\n") as raised:
        read_yolo(config(tmp_path), "train")
    assert "\n  images/train/a.jpg: labels/train/a.txt:3" in str(raised.value)
    assert BAD[line] in str(raised.value)
    dropped = read_yolo(config(tmp_path, on_bad_label="drop_box"), "train")
    assert (len(dropped), dropped.ground_truth(0).objects.labels.tolist()) == (2, [0])
    assert "1 box dropped" in dropped.summary
    assert len(read_yolo(config(tmp_path, on_bad_label="drop_image"), "train")) == 1


def test_boxes_that_leave_the_picture_are_cut_as_those_of_other_readers(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": "0 0.5 0.5 1.02 1\n1 0.9 0.5 0.4 0.5"})  # 0.6 px and 6 px too far
    dataset = read_yolo(config(tmp_path, on_bad_label="clip"), "train")
    np.testing.assert_allclose(dataset.ground_truth(0).objects.boxes, [(0, 0, 60, 40), (42, 10, 60, 30)], rtol=1e-6)
    assert "1 box cut by at most 1 px" in dataset.summary
    assert "1 box clipped" in dataset.summary


def test_label_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": DOG, "b": DOG})
    (folder / "a.txt").write_bytes(b"0 0.5 0.25 \xff")
    with pytest.raises(DataError, match=r"1 problem\n  images/train/a\.jpg: labels/train/a\.txt: expected UTF-8"):
        read_yolo(config(tmp_path), "train")
    assert len(read_yolo(config(tmp_path, on_bad_label="drop_image"), "train")) == 1


def test_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG, "b": DOG, "c": DOG})
    pictures = tmp_path / "images" / "train"
    cv2.imwrite(str(pictures / "a.jpg"), np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    (pictures / "a.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:-600])
    (pictures / "b.jpg").write_text("hello")
    with pytest.raises(DataError, match="2 problems") as raised:
        read_yolo(config(tmp_path), "train")
    assert "images/train/a.jpg: the picture" in str(raised.value)
    assert "truncated" in str(raised.value)
    assert "images/train/b.jpg: the picture" in str(raised.value)


# ---- where the pictures are


def test_the_last_folder_called_images_is_replaced(tmp_path: Path) -> None:
    root = tmp_path / "images" / "kit"
    write_yolo(root, {"images": DOG})
    assert len(read_yolo(config(root), "train").ground_truth(0).objects.boxes) == 1
    shutil.move(str(root / "images" / "train"), str(tmp_path / "images" / "kit" / "images" / "images"))
    shutil.move(str(root / "labels" / "train"), str(tmp_path / "images" / "kit" / "images" / "labels"))
    write_yolo(root, {}, train="images/images")
    assert len(read_yolo(config(root), "train").ground_truth(0).objects.boxes) == 1


def test_without_a_folder_called_images_the_labels_lie_beside_the_pictures(tmp_path: Path) -> None:
    write_yolo(tmp_path, {}, train="photos")
    write_picture(tmp_path / "photos" / "a.PNG")
    (tmp_path / "photos" / "a.txt").write_text(DOG)
    (tmp_path / "photos" / "notes.txt").write_text("not a label file")
    assert len(read_yolo(config(tmp_path), "train").ground_truth(0).objects.boxes) == 1


def test_folders_are_searched_in_full_and_lists_are_joined(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"b/two": None, "a": DOG}, train=["images/train", "lists/more.txt"])
    write_yolo(tmp_path, {"c": DOG, "d": DOG}, split="val", train=["images/train", "lists/more.txt"])
    (tmp_path / "images" / "train" / "._a.jpg").write_text("of macOS")
    (tmp_path / "lists").mkdir()
    lines = ["../images/val/d.jpg", "", str(tmp_path / "images" / "val" / "c.jpg")]
    (tmp_path / "lists" / "more.txt").write_text("\r\n".join(lines))
    dataset = read_yolo(config(tmp_path), "train")
    expected = ["train/a.jpg", "train/b/two.jpg", "val/d.jpg", "val/c.jpg"]
    assert [dataset.image_id(i) for i in range(len(dataset))] == [f"images/{name}" for name in expected]
    assert [len(dataset.ground_truth(i).objects.boxes) for i in range(4)] == [1, 0, 1, 1]
    (tmp_path / "lists" / "more.txt").write_text("images\\val\\d.jpg")  # from root, where it is not beside the list
    assert len(read_yolo(config(tmp_path), "train")) == 3


def test_yaml_may_have_another_name_and_lie_elsewhere(tmp_path: Path) -> None:
    write_yolo(tmp_path / "kit", {"a": DOG}, names={"1": "cat", "0": "dog"}, path="../kit", nc=2, test="images/train")
    (tmp_path / "yaml").mkdir()
    (tmp_path / "kit" / "data.yaml").rename(tmp_path / "yaml" / "mine.yaml")
    for changes, split in (({}, "train"), ({"val": "test"}, "val")):
        dataset = read_yolo(config(tmp_path / "yaml" / "mine.yaml", **changes), split)  # type: ignore[arg-type]
        assert dataset.categories.names == ("dog", "cat")
        assert dataset.image_id(0) == "images/train/a.jpg"
    with pytest.raises(DataError, match=r"data\.root: .*data\.yaml does not exist; set data\.root to one of .*mine"):
        read_yolo(config(tmp_path / "yaml"), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "names: expected the names of the classes, as .cat, dog., found None"),
        ("names: []", "names: expected the names of the classes"),
        ("names: dog", "names: expected the names of the classes, .* found 'dog'"),
        ("names: [dog, [cat]]", "names: expected the names of the classes"),
        ("names: {0: dog, two: cat}", "names: expected the numbers of the classes as keys, found 0, two"),
        ("names: {0: dog, -1: cat}", "names: expected the numbers of the classes as keys, found 0, -1"),
        ("names: {1: dog, 01: cat}", "names: expected the numbers of the classes as keys, found 1, 01"),
        ("names: [dog, '']", "names: expected the names of the classes"),
        ("names: {0: dog, 0: cat}", r"data\.yaml:1:17: key '0' stands twice"),
        ("names: [dog, cat, 'dog ']", "names: 2 classes are called 'dog'"),
        ("names: [dog, cat]\nnc: 3", "nc: says 3 classes, but names has 2"),
        ("names: {1: dog, 3: cat}\nnc: 3", "nc: says 3 classes, but names has 2"),
        ("names: [dog]\nnc: many", "nc: says many classes, but names has 1"),
        ("names: [dog]\nkpt_shape: 17", r"kpt_shape: expected \[points, 2 or 3\], found '17'"),
        ("names: [dog]\nkpt_shape: [17, 4]", r"kpt_shape: expected \[points, 2 or 3\], found \['17', '4'\]"),
        ("names: [dog]\npath: nowhere\ntrain: pictures", "path: the folder .*nowhere does not exist"),
        ("names: [dog]\nval: images/train", "data.train: .* has no key 'train'; splits there: val"),
        ("names: [dog]\ntrain:", "train: expected a folder of pictures, a .txt list, or several, found None"),
        ("names: [dog]\ntrain: []", "train: expected a folder"),
        ("names: [dog]\ntrain: images/trian", "train: images/trian: the folder or list .*trian does not exist; it is"),
        ("names: [dog]\ntrain: ../images/trian", "train: ../images/trian: the folder or list .*trian does not exist"),
        ("names: [dog]\ntrain: labels", "train: labels: no picture in .*labels; known: .jpg"),
        ("names: [dog]\ntrain: empty.txt", "empty.txt is empty: expected the path of a picture a line"),
        ("names: [dog]\ntrain: images/train/a.jpg", "a.jpg: expected UTF-8 text, the path of a picture a line"),
        ("names: [dog]\ntrain: bad.txt", "images/none.jpg: the picture .*none.jpg does not exist"),
        ("- dog", "expected a mapping with train, val and names, found a list"),
        ("names: [dog", r"data\.yaml:1:12: expected ','"),
        ("names: !!python/object/apply:os.getcwd []", r"data\.yaml:1:8: .*python/object"),
    ],
)
def test_what_is_wrong_with_the_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path, {"a": DOG})
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.txt").write_text("images/train/a.jpg\nimages/none.jpg")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises((DataError, ConfigError), match=message) as raised:
        read_yolo(config(tmp_path), "train")
    assert str(tmp_path) in str(raised.value)


def test_words_that_yaml_takes_for_booleans_are_names(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG})
    (tmp_path / "data.yaml").write_text("names: [yes, no, 7]\ntrain: images/train")
    assert read_yolo(config(tmp_path), "train").categories.names == ("yes", "no", "7")


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: the folder /nowhere does not exist; see datasets/README\.md"):
        read_yolo(config(Path("/nowhere")), "train")
    with pytest.raises(DataError, match=r"data\.root: .*data\.yaml does not exist; there is no YAML file"):
        read_yolo(config(tmp_path), "train")


def test_a_folder_beside_the_yaml_may_be_written_as_if_it_lay_above(tmp_path: Path) -> None:
    """Roboflow's exports say ../train/images where train/images is meant."""
    root = tmp_path / "kit"
    write_yolo(root, {"a": DOG})
    (root / "data.yaml").write_text("names: [dog]\ntrain: ../images/train")
    assert read_yolo(config(root), "train").image_id(0) == "images/train/a.jpg"
    write_yolo(tmp_path, {"real": DOG})  # a folder that does lie there is taken
    assert read_yolo(config(root), "train").image_id(0).endswith("images/train/real.jpg")


def test_linked_folders_are_searched_too(tmp_path: Path) -> None:
    write_yolo(tmp_path / "elsewhere", {"b": DOG})
    write_yolo(tmp_path / "kit", {"a": DOG})
    for kind in ("images", "labels"):
        (tmp_path / "kit" / kind / "train" / "more").symlink_to(tmp_path / "elsewhere" / kind / "train")
    dataset = read_yolo(config(tmp_path / "kit"), "train")
    assert [dataset.image_id(i) for i in range(2)] == ["images/train/a.jpg", "images/train/more/b.jpg"]
    assert [len(dataset.ground_truth(i).objects.boxes) for i in range(2)] == [1, 1]


def test_a_link_that_leads_back_is_not_followed_round_and_round(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": DOG, "more/b": None})
    pictures = tmp_path / "images" / "train"
    (pictures / "back").symlink_to(pictures)
    (pictures / "more" / "back").symlink_to(tmp_path / "images")  # and down again to train
    dataset = read_yolo(config(tmp_path), "train")
    assert {dataset.image_id(i) for i in range(len(dataset))} >= {"images/train/a.jpg", "images/train/more/b.jpg"}
    assert len({Path(dataset.path(i)).resolve() for i in range(len(dataset))}) == len(dataset) == 2


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path, {"a": DOG})

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read everything
    with pytest.raises(
        DataError, match=r"train: images/train: cannot be searched: .*Permission denied: .*images/train"
    ):
        read_yolo(config(tmp_path), "train")
