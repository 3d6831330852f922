"""Proposals on disk: kept whole, never mixed up, and a message for everything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.proposals import SETTINGS, ProposalFolder

BOXES = np.array([[1, 2, 30, 40], [5, 5, 25.5, 26]], np.float32)
HOW = {"name": "selective_search", "scales": [50.0, 100.0]}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    for image_id in ("000012", 7, "train/a b.jpg", "../x"):
        ProposalFolder(tmp_path, HOW).save(image_id, BOXES)
        np.testing.assert_array_equal(ProposalFolder(tmp_path, HOW).load(image_id), BOXES)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("selective_search-")
    assert len(list(folder.iterdir())) == 5, "four files and the settings, nothing left aside"


def test_other_settings_have_another_folder(tmp_path: Path) -> None:
    ProposalFolder(tmp_path, HOW).save(1, BOXES)
    other = ProposalFolder(tmp_path, {**HOW, "scales": [50.0]})
    assert other.folder != ProposalFolder(tmp_path, HOW).folder
    assert not other.path(1).exists()


def test_a_folder_of_other_settings_under_this_name(tmp_path: Path) -> None:
    folder = ProposalFolder(tmp_path, HOW).folder
    (folder / SETTINGS).write_text('{"name": "edge_boxes"}')
    with pytest.raises(DataError, match=r"settings.json: proposals of other settings; expected .*, found .*edge_boxes"):
        ProposalFolder(tmp_path, HOW)


def test_an_image_of_another_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"000099.npy: no proposals for image 000099; they are of another data set"):
        ProposalFolder(tmp_path, HOW).load("000099")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY cut", b"hello"])
def test_a_file_that_is_cut_short(content: bytes, tmp_path: Path) -> None:
    folder = ProposalFolder(tmp_path, HOW)
    folder.path(1).write_bytes(content)
    with pytest.raises(DataError, match=r"1.npy: cannot read these proposals: .*; remove the file"):
        folder.load(1)


@pytest.mark.parametrize("boxes", [np.zeros((2, 5), np.float32), np.zeros(4, np.float32), np.zeros((2, 4))])
def test_something_else_than_boxes(boxes: Any, tmp_path: Path) -> None:
    folder = ProposalFolder(tmp_path, HOW)
    folder.save(1, boxes)
    with pytest.raises(DataError, match=r"1.npy: expected boxes float32 \[N, 4\], found float"):
        folder.load(1)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep proposals: Not a directory; choose another folder"):
        ProposalFolder(tmp_path / "file", HOW)
