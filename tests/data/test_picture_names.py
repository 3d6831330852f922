"""Pictures under the names of another machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detkit.data.checks import DataError
from detkit.data.picture_names import find, locate


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    "name",
    [
        "train\\a b.jpg",
        ".\\train\\a b.jpg",
        "images/train/a b.jpg",
        "/home/somebody/images/train/a b.jpg",
        "C:\\Users\\somebody\\train\\a b.jpg",
        "../../data/train/a b.jpg",
        "train/a%20b.jpg",
        "https://example.org/data/train/a%20b.jpg?key=1",
    ],
)
def test_other_spellings(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "train/a b.jpg", "a b.jpg")  # the longest end of the name counts
    assert find(name, [tmp_path]) == (tmp_path / "train" / "a b.jpg", False)


def test_a_name_that_leads_to_a_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    touch(tmp_path, "one/a%20b.jpg", "one/a b.jpg", "two/a b.jpg")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert find("a%20b.jpg", folders) == (tmp_path / "one" / "a%20b.jpg", True)
    assert find("./a b.jpg", folders[::-1]) == (tmp_path / "two" / "a b.jpg", True)
    assert find("c.jpg", folders) == (None, True)
    assert find("x" * 300, folders) == find("a\0b", folders) == (None, True)


def test_a_picture_that_is_missing_in_its_folder_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "night/2.jpg")
    assert find("night/1.jpg", [tmp_path]) == (None, True)
    assert find("day/1.jpg", [tmp_path]) == (tmp_path / "1.jpg", False)


def test_names_that_lead_to_one_file_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    paths, respelled = locate(["day/1.jpg", "2.jpg", "2.jpg", "3.jpg", "day/1.jpg"], [tmp_path], "list")
    assert [path.name for path in paths] == ["1.jpg", "2.jpg", "2.jpg", "3.jpg", "1.jpg"]
    assert respelled == 2
    with pytest.raises(DataError, match=r"list: day/1\.jpg and night/1\.jpg both lead to .*/1\.jpg"):
        locate(["day/1.jpg", "night/1.jpg"], [tmp_path], "list")
    with pytest.raises(DataError, match="both lead to"):
        locate(["1.jpg", "night/1.jpg"], [tmp_path], "list")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path, name)
    assert find(f"images/{name}", [tmp_path]) == (tmp_path / name, False)
    assert find("caf%E9.jpg", [tmp_path]) == (tmp_path / name, False)
