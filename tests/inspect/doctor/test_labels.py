"""Findings about labels alone, each on a set that was drawn with that flaw; counts are those of the drawing."""

from pathlib import Path

import pytest

from detkit.config import UserError
from detkit.inspect.doctor.diagnose import diagnose
from tests.inspect.doctor.drawn_sets import CAT, CLEAN, DOG, GOOD, Drawn, config_of, findings_of, write_set

OF_THE_MODEL = ("anchor-none", "smaller-than-stride")  # right too for some of these boxes
# What is wrong: pictures of train, pictures of val, code, count, total.
FLAWS = {
    "empty": ([Drawn([*GOOD, (CAT, 5, 5, 0, 10)])], [Drawn([*GOOD, (DOG, 5, 5, 10, -3)])], "box-empty", 2, 54),
    "outside": ([Drawn([*GOOD, (CAT, 130, 5, 10, 10)])], [], "box-outside", 1, 51),
    "over the border": ([Drawn([*GOOD, (CAT, 110, 5, 20, 10)])], [], "box-over-border", 1, 51),
    "not finite": ([Drawn([*GOOD, (CAT, 5, 5, float("inf"), 10)])], [], "box-not-finite", 1, 51),
    "unknown class": ([Drawn([*GOOD, (9, 5, 5, 10, 10)])], [], "object-unreadable", 1, 51),
    "unreadable": ([], [Drawn(content=b"no picture")], "picture-unreadable", 1, 25),
    "size": ([Drawn(size=(100, 80), actual=(120, 80))], [], "size-disagrees", 1, 25),
    "twice": ([Drawn([*GOOD, (CAT, 10, 10, 30, 40.5)])], [], "box-twice", 1, 51),
    "three times": ([Drawn([GOOD[0]] * 3)], [], "box-twice", 2, 51),
    "two classes": ([], [Drawn([*GOOD, (DOG, 10, 10, 30, 40)])], "box-two-classes", 1, 51),
    "whole picture": ([Drawn([(CAT, 0, 0, 120, 80)])], [], "box-whole-picture", 1, 49),
    "one pixel": ([Drawn([*GOOD, (CAT, 5, 5, 1, 20)])], [], "box-one-pixel", 1, 51),
    "nothing": ([Drawn([]), Drawn([])], [Drawn([])], "image-without-objects", 3, 27),
}


def test_a_clean_set_has_no_finding(tmp_path: Path) -> None:
    assert findings_of(tmp_path) == {}


@pytest.mark.parametrize("case", FLAWS, ids=str)
def test_a_flaw_is_reported_and_nothing_else(tmp_path: Path, case: str) -> None:
    train, val, code, count, total = FLAWS[case]
    findings = findings_of(tmp_path, train, val)
    assert [each for each in findings if each not in OF_THE_MODEL] == [code]
    finding = findings[code]
    assert (finding.count, finding.total, len(finding.examples)) == (count, total, count)
    drawn = {"train": train, "val": val}
    assert {place.split for place in finding.examples} == {split for split in drawn if drawn[split]}
    first = finding.examples[0]
    assert first.path.endswith(f"{first.split}{len(CLEAN) + 1}.png")


def test_an_example_has_its_box_and_its_class(tmp_path: Path) -> None:
    (place,) = findings_of(tmp_path, [Drawn([*GOOD, (DOG, 5, 6, 1, 20)])])["box-one-pixel"].examples
    assert place.box == (5, 6, 6, 26)
    assert place.text == "dog, 1 x 20 px"


def test_an_overhang_of_a_pixel_and_near_boxes_are_no_flaw(tmp_path: Path) -> None:
    near = (CAT, 12, 10, 30, 40)  # IoU 28 / 32 with the first
    assert findings_of(tmp_path, [Drawn([*GOOD, near, (DOG, 100, 50, 21, 20)])]) == {}


def test_classes_of_one_split_rare_ones_and_those_of_none(tmp_path: Path) -> None:
    cats = [Drawn([(CAT, 10, 10, 30, 40)] * 1) for _ in range(25)]
    train = [*cats, Drawn([(DOG, 20, 20, 30, 30)])]
    data = write_set(tmp_path, train, [*cats[:1], Drawn([(3, 20, 20, 30, 30)])], ["cat", "dog", "cow", "hen"])
    findings = {finding.code: finding for finding in diagnose(config_of(data)).findings}
    classes = {
        code: (finding.severity, finding.count, finding.total)
        for code, finding in findings.items()
        if code.startswith("class")
    }
    assert classes == {
        "class-only-in-val": ("error", 1, 4),
        "class-only-in-train": ("warning", 1, 4),
        "class-without-objects": ("warning", 1, 4),
        "class-few-objects": ("warning", 1, 4),
        "class-imbalance": ("note", 1, 2),
    }
    assert "cow (1)" in findings["class-only-in-val"].message
    assert "dog (1)" in findings["class-only-in-train"].message
    assert "hen" in findings["class-without-objects"].message
    assert "25 objects of cat but 1 of dog, 25 times" in findings["class-imbalance"].message


def test_the_table_counts_objects_and_images_of_both_splits(tmp_path: Path) -> None:
    data = write_set(tmp_path, [Drawn([GOOD[0], (CAT, 50, 10, 20, 20)])], [Drawn()])
    table = diagnose(config_of(data)).tables[0]
    assert list(table.columns)[1:] == [
        f"{s} {what}" for s in ("train", "val") for what in ("objects", "images", "ignored")
    ]
    assert [list(row) for row in table.rows] == [["cat", 2, 1, 0, 1, 1, 0], ["dog", 0, 0, 0, 1, 1, 0]]


def test_errors_come_first(tmp_path: Path) -> None:
    train = [Drawn([*GOOD, (CAT, 5, 5, 0, 10), (CAT, 5, 5, 1, 20)]), Drawn([])]
    severities = [finding.severity for finding in findings_of(tmp_path, train).values()]
    assert severities == ["error", "warning", "note", "note"]


def test_without_validation_only_train_is_looked_at(tmp_path: Path) -> None:
    data = write_set(tmp_path, CLEAN, CLEAN) | {"val_annotations": None, "val_images": None}
    diagnosis = diagnose(config_of(data))
    assert diagnosis.findings == []
    assert ", val " not in diagnosis.subject


def test_data_of_which_nothing_can_be_read_are_an_error(tmp_path: Path) -> None:
    data = write_set(tmp_path, [Drawn(content=b"no picture")], CLEAN)
    with pytest.raises(UserError, match="no image is left"):
        diagnose(config_of(data))


def test_training_checks_as_before_afterwards(tmp_path: Path) -> None:
    from detkit.data.build import build_dataset

    data = write_set(tmp_path, [Drawn([*GOOD, (CAT, 5, 5, 0, 10)])], CLEAN)
    config = config_of(data)
    diagnose(config)
    with pytest.raises(UserError, match="is empty"):
        build_dataset(config.data, "train")
