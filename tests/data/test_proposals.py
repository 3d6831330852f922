"""Proposals on disk: kept whole, never mixed up, and a message for everything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.proposals import SETTINGS, ProposalFolder

BOXES = np.array([[1, 2, 30, 40], [5, 5, 25.5, 26]], np.float32)
HOW = {"name": "selective_search", "scales": [50.0, 100.0]}


def folder_in(root: Path, settings: dict[str, Any] = HOW) -> ProposalFolder:
    return ProposalFolder(root, Path("data"), settings)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    pictures = ["data/VOC2007/1.jpg", "data/train/a b.jpg", "data/val/a b.jpg", "elsewhere/1.jpg"]
    for number, picture in enumerate(pictures):
        folder_in(tmp_path).save(picture, BOXES + number)
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(folder_in(tmp_path).load(picture), BOXES + number)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("selective_search-")
    assert len(list(folder.iterdir())) == 5, "four files and the settings, nothing left aside"


def test_a_picture_is_known_however_its_data_are_named(tmp_path: Path) -> None:
    folder_in(tmp_path).save("data/1.jpg", BOXES)
    absolute = ProposalFolder(tmp_path, Path("data").absolute(), HOW)
    np.testing.assert_array_equal(absolute.load(str(Path("data/1.jpg").absolute())), BOXES)


def test_other_settings_have_another_folder(tmp_path: Path) -> None:
    folder_in(tmp_path).save("data/1.jpg", BOXES)
    other = folder_in(tmp_path, {**HOW, "scales": [50.0]})
    assert other.folder != folder_in(tmp_path).folder
    assert not other.path("data/1.jpg").exists()


def test_a_folder_of_other_settings_under_this_name(tmp_path: Path) -> None:
    folder = folder_in(tmp_path).folder
    (folder / SETTINGS).write_text('{"name": "edge_boxes"}')
    with pytest.raises(DataError, match=r"settings.json: proposals of other settings; expected .*, found .*edge_boxes"):
        folder_in(tmp_path)


def test_a_picture_of_another_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no proposals for data/99.jpg; those here are of another data set"):
        folder_in(tmp_path).load("data/99.jpg")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY cut", b"hello"])
def test_a_file_that_is_cut_short(content: bytes, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.path("data/1.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"1.jpg.npy: cannot read these proposals: .*; remove the file"):
        folder.load("data/1.jpg")


@pytest.mark.parametrize("boxes", [np.zeros((2, 5), np.float32), np.zeros(4, np.float32), np.zeros((2, 4))])
def test_something_else_than_boxes(boxes: Any, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.save("data/1.jpg", boxes)
    with pytest.raises(DataError, match=r"1.jpg.npy: expected boxes float32 \[N, 4\], found float"):
        folder.load("data/1.jpg")


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep proposals: Not a directory; choose another folder"):
        folder_in(tmp_path / "file")
