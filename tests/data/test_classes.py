"""Which classes are learned, by hand: labels are indices into the names that are left."""

from __future__ import annotations

from typing import Any

import pytest

from detkit.config import ConfigError, parse_config
from detkit.data.checks import DataError, FilesConfig, RawImage, RawObject
from detkit.data.classes import choose_classes
from detkit.structures import Categories

DATA = Categories(("bus", "car", "dog", "van"), (2, 3, 5, 7))


def images(*names: str) -> list[RawImage]:
    """One object a picture; "?" is one to which the reader could give no class."""
    label = {name: index for index, name in enumerate(DATA.names)} | {"?": -1}
    return [
        RawImage(number, f"{number}.jpg", f"{number}.xml", None, [RawObject("object 1", label[name], (0, 0, 9, 9))])
        for number, name in enumerate(names)
    ]


def choose(raw: list[RawImage], **settings: Any) -> tuple[list[list[int]], Categories, dict[str, int]]:
    remaining, categories, notes = choose_classes(raw, DATA, FilesConfig(root="x", **settings))
    assert [image.image_id for image in remaining] == [image.image_id for image in raw]
    labels = [[item.label for item in image.objects] for image in remaining]
    return labels, categories, {note: count for note, count in notes.items() if count}


def test_no_choice_keeps_all() -> None:
    assert choose(images("car", "?", "van")) == ([[1], [-1], [3]], DATA, {})


def test_chosen_classes_stand_in_the_order_of_the_choice() -> None:
    labels, categories, notes = choose(images("car", "dog", "bus", "dog", "?", "van"), classes=("van", "car"))
    assert labels == [[1], [], [], [], [-1], [0]]
    assert categories == Categories(("van", "car"), (7, 3))
    assert notes == {"object of other classes left out (dog 2, bus 1)": 3}


def test_merged_classes_stand_where_the_first_of_them_did() -> None:
    labels, categories, notes = choose(images("van", "dog", "car"), merge={"vehicle": ("van", "car")})
    assert labels == [[1], [2], [1]]
    assert categories == Categories(("bus", "vehicle", "dog"), (2, 3, 5))
    assert notes == {}


def test_a_class_may_take_in_others() -> None:
    labels, categories, _ = choose(images("van", "bus", "car"), merge={"car": ("car", "van")})
    assert (labels, categories.names) == ([[1], [0], [1]], ("bus", "car", "dog"))


def test_classes_are_chosen_after_merging() -> None:
    labels, categories, notes = choose(images("van", "dog"), merge={"vehicle": ("van", "car")}, classes=("vehicle",))
    assert (labels, categories.names) == ([[0], []], ("vehicle",))
    assert notes == {"object of other classes left out (dog 1)": 1, "class without objects (car)": 1}
    with pytest.raises(
        DataError, match=r"data\.classes: the class 'van' is not in this data; known: bus, vehicle, dog"
    ):
        choose(images("van"), merge={"vehicle": ("van", "car")}, classes=("van",))


def test_an_object_that_is_left_out_is_no_problem() -> None:
    raw = [RawImage(0, "a.jpg", "a.xml", None, [RawObject("object 1", 2, (0, 0, 0, 0), "has no box")])]
    remaining, _, _ = choose_classes([*raw, *images("car")], DATA, FilesConfig(root="x", classes=("car",)))
    assert [len(image.objects) for image in remaining] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("dig",)}, r"data\.classes: the class 'dig' is not in this data; did you mean 'dog'\?"),
        ({"merge": {"pet": ("cat",)}}, r"data\.merge: the class 'cat' is not in this data; did you mean 'car'\?"),
        ({"classes": ("zebra",)}, r"data\.classes: the class 'zebra' .*; known: bus, car, dog, van"),
        ({"classes": ("dog", "bus")}, r"data\.classes: this data has no object of dog, bus; its objects are of car"),
    ],
)
def test_what_is_not_there_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose(images("car"), **settings)


def test_a_picture_set_without_objects_is_no_mistake_of_the_choice() -> None:
    labels, _, notes = choose(images("?"), classes=("dog",))
    assert (labels, notes) == ([[-1]], {"class without objects (dog)": 1})


def test_long_lists_of_names_are_cut() -> None:
    names = tuple(f"class {number:02}" for number in range(30))
    raw = [RawImage(n, "a.jpg", "a.xml", None, [RawObject("object 1", n, (0, 0, 9, 9))] * (30 - n)) for n in range(30)]
    _, _, notes = choose_classes(raw, Categories.of_names(names), FilesConfig(root="x", classes=names[:1]))
    (note,) = (note for note, count in notes.items() if count)
    assert "(class 01 29, class 02 28, " in note
    assert note.endswith("class 20 10, 9 more)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": []}, "classes: expected different names, at least one"),
        ({"classes": ["a", "a"]}, "classes: expected different names"),
        ({"merge": {"x": ["a", "b"], "y": ["a"]}}, "merge: expected each class once, got 'a' twice"),
    ],
)
def test_what_no_data_can_mean_is_refused_with_the_configuration(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"root": "x", **settings}, FilesConfig)
