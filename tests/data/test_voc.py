"""The VOC reader, on small files written here and on real data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.config import ConfigError, parse_config, parse_yaml
from detkit.data.checks import DataError, NoValidation
from detkit.data.voc import VOC_CLASSES, VOCConfig, read_voc
from detkit.structures import Categories
from tests.data.writers import voc_object, write_voc


def config(devkit: Path, **changes: Any) -> VOCConfig:
    return VOCConfig(**{"root": str(devkit), "train": ("2007_train",), "val": ("2007_val",), **changes})


def test_corners_are_inclusive_pixels_counted_from_one(tmp_path: Path) -> None:
    write_voc(tmp_path, {"000001": [voc_object("dog", (1, 1, 60, 40)), voc_object("car", (11, 6, 20, 15))]})
    truth = read_voc(config(tmp_path), "train").ground_truth(0)
    np.testing.assert_array_equal(truth.objects.boxes, [(0, 0, 60, 40), (10, 5, 20, 15)])
    assert [VOC_CLASSES[label] for label in truth.objects.labels] == ["dog", "car"]
    assert truth.objects.area.tolist() == [2400, 100]
    assert (truth.image_id, truth.size) == ("000001", (40, 60))


def test_the_twenty_classes_are_numbered_from_one_by_the_data_set(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": []})
    dataset = read_voc(config(tmp_path), "val")
    assert dataset.categories.names == VOC_CLASSES
    assert dataset.categories.ids == tuple(range(1, 21))
    assert len(dataset.ground_truth(0).objects.boxes) == 0


def test_fractional_corners_are_kept(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("dog", (1.5, 2.25, 20.75, 30.5))]})
    np.testing.assert_array_equal(
        read_voc(config(tmp_path), "train").ground_truth(0).objects.boxes, [(0.5, 1.25, 20.75, 30.5)]
    )


def test_tags_are_read_by_name_in_any_order_and_difficult_may_be_missing(tmp_path: Path) -> None:
    shuffled = (
        "<object><bndbox><ymax>15</ymax><xmax>20</xmax><ymin>6</ymin><xmin>11</xmin></bndbox>"
        "<difficult>1</difficult><name>dog</name></object>"
    )
    write_voc(tmp_path, {"1": [shuffled, voc_object("dog", (11, 6, 20, 15))]})
    truth = read_voc(config(tmp_path), "train").ground_truth(0)
    np.testing.assert_array_equal(truth.objects.boxes, [(10, 5, 20, 15)] * 2)
    assert truth.objects.ignore.tolist() == [True, False]


def test_difficult_objects_may_be_trained_on_but_never_count_in_evaluation(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("dog", (1, 1, 9, 9), difficult=1)]})
    for difficult, split, ignored in (("ignore", "train", True), ("train", "train", False), ("train", "val", True)):
        dataset = read_voc(config(tmp_path, difficult=difficult), split)
        assert dataset.ground_truth(0).objects.ignore.tolist() == [ignored]


def test_parts_of_a_person_are_not_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    person = voc_object("person", (5, 5, 30, 30)).replace("</object>", f"{part}</object>")
    write_voc(tmp_path, {"1": [person]})
    np.testing.assert_array_equal(read_voc(config(tmp_path), "train").ground_truth(0).objects.boxes, [(4, 4, 30, 30)])


def test_own_names_give_the_labels_in_their_order(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("zebra", (1, 1, 9, 9)), voc_object("ant", (1, 1, 9, 9))]})
    dataset = read_voc(config(tmp_path, classes=("zebra", "ant")), "train")
    assert dataset.categories.names == ("zebra", "ant")
    assert dataset.ground_truth(0).objects.labels.tolist() == [0, 1]


def test_auto_takes_the_names_of_the_training_lists_for_both_splits(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("zebra", (1, 1, 9, 9)), voc_object("ant", (1, 1, 9, 9))]}, lists=["train"])
    write_voc(tmp_path, {"2": [voc_object("zebra", (1, 1, 9, 9))]}, lists=["val"])
    for split in ("train", "val"):
        assert read_voc(config(tmp_path, classes="auto"), split).categories.names == ("ant", "zebra")
    write_voc(tmp_path, {"2": [voc_object("yak", (1, 1, 9, 9)), voc_object("ant", (1, 1, 9, 9))]}, lists=["val"])
    val = read_voc(config(tmp_path, classes="auto"), "val")
    assert val.ground_truth(0).objects.labels.tolist() == [0]
    assert "1 object of other classes left out (yak 1)" in val.summary  # nothing can learn it


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<annotation>", r"2 problems such as .*1\.xml: is not well-formed XML"),
        ("<annotation><filename/></annotation>", "no XML file has an <object>"),
        (
            "<annotation><object><name></name></object></annotation>",
            r"1\.xml: object 1 \(no name, .* <name>, the class",
        ),
    ],
)
def test_auto_says_why_there_is_no_class(tmp_path: Path, xml: str, reason: str) -> None:
    folder = write_voc(tmp_path, {"1": [], "2": []})
    for name in ("1", "2"):
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"auto: no object with a class in 2007_train.*{reason}"):
            read_voc(config(tmp_path, classes="auto", on_bad_label="drop_image"), split)
    with pytest.raises(DataError, match="the folder /nowhere does not exist"):
        read_voc(config(Path("/nowhere"), classes="auto"), "train")


def test_a_list_of_classes_leaves_the_others_out_and_counts_them(tmp_path: Path) -> None:
    """Whatever else is wrong with the others: they are not looked at."""
    objects = [voc_object("cat", (1, 1, 9, 9)), voc_object("dog", (30, 1, 9, 9)), voc_object("bee", (1, 1, 5, 5))]
    write_voc(tmp_path, {"1": [*objects, objects[2]], "2": objects[1:2]})
    dataset = read_voc(config(tmp_path, classes=("ant", "cat")), "train")
    assert dataset.categories == Categories(("ant", "cat"), (1, 2))
    assert dataset.objects.labels.tolist() == [1]
    assert "4 objects of other classes left out (dog 2, bee 2), 1 class without objects (ant)" in dataset.summary
    assert "1 image without objects" in dataset.summary


def test_a_misspelt_class_is_reported_and_refused_only_if_nothing_is_left(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("dgo", (1, 1, 9, 9)), voc_object("cat", (1, 1, 9, 9))]})
    summary = read_voc(config(tmp_path, classes=("dog", "cat")), "train").summary
    assert "1 class without objects (dog: did you mean 'dgo'?)" in summary
    with pytest.raises(DataError, match=r"voc train \(2007_train\) has no object of dog; its objects are of dgo, cat"):
        read_voc(config(tmp_path, classes=("dog",)), "train")


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (None, tuple("vehicle" if name == "car" else name for name in VOC_CLASSES)),
        ("auto", ("cat", "vehicle")),
        (("vehicle", "dog"), ("vehicle", "dog")),
    ],
)
def test_merged_classes_are_one(tmp_path: Path, classes: Any, names: tuple[str, ...]) -> None:
    """`van` is none of VOC's 20, but the configuration says what it is, and `vehicle` stands in a file itself."""
    objects = [voc_object(name, (1, 1, 9, 9)) for name in ("cat", "van", "car", "vehicle")]
    write_voc(tmp_path, {"1": objects})
    dataset = read_voc(config(tmp_path, classes=classes, merge={"vehicle": ("car", "van")}), "train")
    assert dataset.categories.names == names
    found = [names[label] for label in dataset.objects.labels]
    assert found == (["vehicle"] * 3 if "cat" not in names else ["cat", "vehicle", "vehicle", "vehicle"])


@pytest.mark.parametrize(("name", "hint"), [("van", "vann: did you mean 'van'?"), ("vans", "vann")])
def test_a_misspelt_class_to_merge_is_reported(tmp_path: Path, name: str, hint: str) -> None:
    """It may be another class of the data, but none that is merged already."""
    write_voc(tmp_path, {"1": [voc_object(name, (1, 1, 9, 9)), voc_object("car", (1, 1, 9, 9))]})
    merge = {"vehicle": ("car", "vans", "vann") if name == "vans" else ("car", "vann")}
    assert (
        f"1 class without objects ({hint})" in read_voc(config(tmp_path, classes="auto", merge=merge), "train").summary
    )


def test_no_validation_split_is_an_error_of_its_own(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": []})
    for text in ("val: []", "val: null", ""):
        given = parse_config(parse_yaml(f"root: {tmp_path}\ntrain: 2007_train\n{text}", "here"), VOCConfig)
        assert len(read_voc(given, "train")) == 1
        with pytest.raises(NoValidation, match=r"data\.val: no split"):
            read_voc(given, "val")


def test_a_split_may_be_given_as_text(tmp_path: Path) -> None:
    given = parse_config({"root": "x", "train": "2007_train", "val": "2007_val"}, VOCConfig)
    assert (given.train, given.val) == (("2007_train",), ("2007_val",))
    assert VOCConfig(root="x", train="2007_train") == VOCConfig(root="x", train=("2007_train",))  # type: ignore[arg-type]
    for value in (3, [3]):
        with pytest.raises(ConfigError, match="train"):
            parse_config({"root": "x", "train": value}, VOCConfig)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_ignored_objects_has_a_line_of_its_own(tmp_path: Path, split: Any) -> None:
    easy, hard = voc_object("dog", (1, 1, 9, 9)), voc_object("dog", (1, 1, 9, 9), difficult=1)
    line = "\n  Every object is ignored (marked difficult or as a crowd): nothing can be learned or measured."
    for objects, expected in (([hard, hard], True), ([hard, easy], False), ([], False)):
        write_voc(tmp_path, {"1": objects})
        assert (line in read_voc(config(tmp_path), split).summary) == expected


def test_unknown_class_names_the_file_the_object_and_the_nearest_name(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("dog", (1, 1, 9, 9)), voc_object("motorbikes", (1, 1, 9, 9))]})
    with pytest.raises(DataError) as raised:
        read_voc(config(tmp_path), "train")
    for part in ("1.xml: object 2 (motorbikes", "did you mean 'motorbike'?", "data.classes"):
        assert part in str(raised.value)
    with pytest.raises(DataError, match="motorbikes"):
        read_voc(config(tmp_path, on_bad_label="clip"), "train")  # clipping mends boxes, not names
    assert "1 box dropped" in read_voc(config(tmp_path, on_bad_label="drop_box"), "train").summary


@pytest.mark.parametrize("classes", [[], ["a", "a"]])
def test_class_list_must_be_names_once_each(classes: list[str]) -> None:
    with pytest.raises(ConfigError, match="classes: expected different names"):
        parse_config({"root": "x", "train": ["2007_train"], "classes": classes}, VOCConfig)


@pytest.mark.parametrize("text", ["<annotation><object>", "", "no xml at all"])
def test_broken_xml_is_named(tmp_path: Path, text: str) -> None:
    folder = write_voc(tmp_path, {"1": [], "2": []})
    (folder / "Annotations" / "1.xml").write_text(text)
    with pytest.raises(DataError, match=r"1\.xml: is not well-formed XML"):
        read_voc(config(tmp_path), "train")
    assert "1 image dropped" in read_voc(config(tmp_path, on_bad_label="drop_image"), "train").summary


def test_missing_annotation_and_missing_picture_are_named(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"1": [], "2": []})
    (folder / "JPEGImages" / "2.jpg").unlink()
    (folder / "ImageSets" / "Main" / "train.txt").write_text("1\n2\n3\n")
    with pytest.raises(DataError, match="2 problems") as raised:
        read_voc(config(tmp_path), "train")
    assert "2.jpg does not exist" in str(raised.value)
    assert "3.jpg: neither this picture nor its annotation file" in str(raised.value)


def test_a_picture_without_xml_is_background_if_others_have_xml(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"1": [], "2": [voc_object("dog", (1, 1, 9, 9))]})
    (folder / "Annotations" / "1.xml").unlink()
    dataset = read_voc(config(tmp_path), "train")
    assert [len(dataset.ground_truth(index).objects) for index in range(2)] == [0, 1]
    assert "1 picture without XML read as background" in dataset.summary
    (folder / "Annotations" / "2.xml").unlink()
    with pytest.raises(DataError, match=r"2007_train: none of its 2 pictures .* such as .*Annotations/1\.xml"):
        read_voc(config(tmp_path), "train")


@pytest.mark.parametrize("corners", [("", 1, 9, 9), ("left", 1, 9, 9)])
def test_corner_that_is_no_number_is_named(tmp_path: Path, corners: tuple[Any, ...]) -> None:
    write_voc(tmp_path, {"1": [voc_object("dog", corners)]})
    with pytest.raises(DataError, match=r"object 1 \(dog, xmin (\?|left) ymin 1 xmax 9 ymax 9\): <bndbox>"):
        read_voc(config(tmp_path), "train")


def test_box_of_nan_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path, {"1": [voc_object("dog", ("nan", 1, 9, 9))]})
    with pytest.raises(DataError, match="is not finite"):
        read_voc(config(tmp_path), "train")


def test_missing_size_is_taken_from_the_picture(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"1": []})
    (folder / "Annotations" / "1.xml").write_text(
        "<annotation><size><width>0</width><height>0</height></size></annotation>"
    )
    assert read_voc(config(tmp_path), "train").ground_truth(0).size == (40, 60)


def test_list_of_one_class_is_read_by_its_first_column(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"000001": [], "000002": []})
    (folder / "ImageSets" / "Main" / "dog_train.txt").write_text("000001 -1\n\n000002  1\n")
    dataset = read_voc(config(tmp_path, train=("2007_dog_train",)), "train")
    assert [dataset.image_id(i) for i in range(len(dataset))] == ["000001", "000002"]


def test_several_years_are_read_together_and_told_apart(tmp_path: Path) -> None:
    write_voc(tmp_path, {"000001": []}, year="2007")
    write_voc(tmp_path, {"000001": []}, year="2012")
    dataset = read_voc(config(tmp_path, train=("2007_train", "2012_train")), "train")
    assert [dataset.image_id(i) for i in range(2)] == ["2007/000001", "2012/000001"]


def test_id_listed_twice_is_trained_on_twice_and_measured_once(tmp_path: Path) -> None:
    """Two lists may share pictures, and one may repeat those of rare classes."""
    folder = write_voc(tmp_path, {"000001": [], "000002": []})
    (folder / "ImageSets" / "Main" / "twice.txt").write_text("000001\n000002\n000001\n")
    train = read_voc(config(tmp_path, train=("2007_train", "2007_twice")), "train")
    assert [train.image_id(index) for index in range(5)] == ["000001", "000002", "000001", "000002", "000001"]
    assert "3 pictures listed again and kept" in train.summary
    val = read_voc(config(tmp_path, val=("2007_twice",)), "val")
    assert [val.image_id(index) for index in range(len(val))] == ["000001", "000002"]
    assert "1 picture listed again and read once" in val.summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/nowhere"}, "the folder /nowhere does not exist"),
        ({"train": ("2012_train",)}, r"VOC2012 does not exist; .* has VOC2007"),
        ({"train": ("2007_trainval",)}, r"trainval\.txt does not exist; lists there: empty, train, val"),
        ({"train": ("2007_empty",)}, r"empty\.txt is empty"),
        ({"train": ("trainval",)}, "expected <year>_<list> such as 2007_trainval, or a folder .* got 'trainval'"),
        ({"train": ()}, "expected at least one split"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_voc(tmp_path, {"000001": []})
    (folder / "ImageSets" / "Main" / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=message):
        read_voc(config(tmp_path, **changes), "train")


class TestBloodCells:
    """Two boxes of BCCD are empty: BloodImage_00338 in val, BloodImage_00343 in train."""

    @pytest.fixture
    def blood(self, shared_data: Path) -> VOCConfig:
        return config(shared_data / "bccd" / "VOCdevkit", train=("2007_trainval",), classes="auto")

    def test_empty_boxes_are_reported_by_name(self, blood: VOCConfig) -> None:
        with pytest.raises(DataError, match="2 problems") as raised:
            read_voc(blood, "train")
        assert "BloodImage_00343.xml: object 4 (RBC, xmin 181 ymin 329 xmax 181 ymax 329)" in str(raised.value)
        assert "BloodImage_00338.xml: object 13 (RBC, xmin 504 ymin 337 xmax 504 ymax 337)" in str(raised.value)

    @pytest.mark.parametrize("policy", ["drop_box", "clip"])
    def test_empty_boxes_are_dropped_and_counted(self, blood: VOCConfig, policy: str) -> None:
        dataset = read_voc(blood.model_copy(update={"on_bad_label": policy}), "train")
        assert (len(dataset), dataset.categories.names) == (292, ("Platelets", "RBC", "WBC"))
        assert "2 boxes dropped" in dataset.summary

    def test_their_images_are_dropped_and_counted(self, blood: VOCConfig) -> None:
        dataset = read_voc(blood.model_copy(update={"on_bad_label": "drop_image"}), "train")
        assert len(dataset) == 290
        assert "2 images dropped" in dataset.summary


def test_real_voc_has_difficult_objects(shared_data: Path) -> None:
    dataset = read_voc(config(shared_data / "voc07-mini" / "VOCdevkit"), "val")
    assert len(dataset) == 50
    assert sum(int(dataset.ground_truth(i).objects.ignore.sum()) for i in range(50)) == 22
    sample = dataset.load(0)
    assert sample.image.shape[:2] == dataset.ground_truth(0).size
