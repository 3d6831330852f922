"""Proposals on disk: complete, never mixed up, and a message for everything that is wrong."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.proposal_folder import SETTINGS, ProposalFolder

BOXES = np.array([[1, 2, 30, 40], [5, 5, 25.5, 26]], np.float32)
HOW = {"name": "selective_search", "scales": [50.0, 100.0]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of three pictures; nothing here decodes them."""
    for name in ("VOC2007/1.jpg", "train/a b.jpg", "val/a b.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(b"picture")
    return tmp_path / "data"


@pytest.fixture
def picture(data: Path) -> str:
    return str(data / "VOC2007/1.jpg")


def folder_in(data: Path, settings: dict[str, Any] = HOW) -> ProposalFolder:
    return ProposalFolder(data / "proposals", data, settings)


def test_what_was_saved_is_loaded(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jpg").write_bytes(b"picture")
    pictures = [*map(str, data.rglob("*.jpg")), str(tmp_path / "elsewhere.jpg")]
    for number, picture in enumerate(pictures):
        folder_in(data).save(picture, BOXES + number)
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(folder_in(data).load(picture), BOXES + number)
    (folder,) = (data / "proposals").iterdir()
    assert folder.name.startswith("selective_search-")
    assert len(list(folder.iterdir())) == 5, "four files and the settings, nothing left aside"


def test_a_picture_is_known_however_its_data_are_named(
    data: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_in(data).save(picture, BOXES)
    monkeypatch.chdir(data.parent)
    np.testing.assert_array_equal(folder_in(Path("data")).load("data/VOC2007/1.jpg"), BOXES)


def test_a_picture_is_known_in_a_copy_of_its_data(data: Path, tmp_path: Path) -> None:
    folder_in(data).save(str(data / "val/a b.jpg"), BOXES)
    copy = Path(shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(copy / "val/a b.jpg", (1, 1))
    np.testing.assert_array_equal(folder_in(copy).load(str(copy / "val/a b.jpg")), BOXES)


def test_a_picture_replaced_under_its_name_has_none(data: Path, picture: str) -> None:
    """By one of the same size and date."""
    folder_in(data).save(picture, BOXES)
    before = os.stat(picture)
    Path(picture).write_bytes(b"Picture")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not folder_in(data).path(picture).exists()
    with pytest.raises(DataError, match=r"no proposals for .*1.jpg; .* or the picture has changed"):
        folder_in(data).load(picture)


def test_other_settings_have_another_folder(data: Path, picture: str) -> None:
    folder_in(data).save(picture, BOXES)
    other = folder_in(data, {**HOW, "scales": [50.0]})
    assert other.folder != folder_in(data).folder
    assert not other.path(picture).exists()


def test_a_folder_of_other_settings_under_this_name(data: Path) -> None:
    folder = folder_in(data).folder
    (folder / SETTINGS).write_text('{"name": "edge_boxes"}')
    with pytest.raises(DataError, match=r"settings.json: proposals of other settings; expected .*, found .*edge_boxes"):
        folder_in(data)


def test_a_picture_of_another_data_set(data: Path, picture: str) -> None:
    with pytest.raises(DataError, match=r"no proposals for .*1.jpg; those here are of another data set"):
        folder_in(data).load(picture)


def test_a_picture_that_is_gone(data: Path, picture: str) -> None:
    Path(picture).unlink()
    for ask in (folder_in(data).load, folder_in(data).path):
        with pytest.raises(DataError, match=r"the picture .*1\.jpg does not exist"):
            ask(picture)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY cut", b"hello"])
def test_a_file_that_is_cut_short(content: bytes, data: Path, picture: str) -> None:
    folder = folder_in(data)
    folder.path(picture).write_bytes(content)
    with pytest.raises(DataError, match=r"1.jpg-\w{8}.npy: cannot read these proposals: .*; remove the file"):
        folder.load(picture)


@pytest.mark.parametrize("boxes", [np.zeros((2, 5), np.float32), np.zeros(4, np.float32), np.zeros((2, 4))])
def test_something_else_than_boxes(boxes: Any, data: Path, picture: str) -> None:
    folder = folder_in(data)
    folder.save(picture, boxes)
    with pytest.raises(DataError, match=r"1.jpg-\w{8}.npy: expected boxes float32 \[N, 4\], found float"):
        folder.load(picture)


def test_a_place_that_cannot_be_written_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot keep proposals: Not a directory; set loader\.proposals"):
        ProposalFolder(tmp_path / "file", data, HOW)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("8 requested, 4 written")])
def test_a_full_disk(error: OSError, data: Path, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_in(data)

    def save(file: Any, boxes: np.ndarray) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(DataError, match=r"1.jpg-\w{8}.npy: cannot keep these proposals: (No space left|8 requested)"):
        folder.save(picture, BOXES)
    assert [path.name for path in folder.folder.iterdir()] == [SETTINGS]
