"""The commands that look at data, on videos: for a detector of clips, and for one of pictures."""

from pathlib import Path
from typing import Any

import pytest

from detkit import cli
from detkit.data.pictures import read_picture
from tests.cli_support import TINY, write_config

CLIPS: dict[str, Any] = {
    "model": {
        **TINY["model"],
        "backbone": {"name": "c3d", "width": 0.0625, "norm": "bn", "strides": [8], "frames": 4},
        "neck": None,
        "rpn": {"anchors": {"sizes": [[16, 32]], "ratios": [1.0]}},
    },
    "augment": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a configuration of each."""
    root = tmp_path_factory.mktemp("videos")
    data = {"name": "moving_shapes", "root": str(root / "moving"), "num_train": 2, "num_val": 1}
    write_config(root / "clips.yaml", data, **CLIPS)
    write_config(root / "pictures.yaml", data)
    return root


@pytest.mark.parametrize("name", ["clips", "pictures"])
def test_the_doctor_reads_videos(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.doctor([str(folder / f"{name}.yaml")]) == 0
    assert "moving_shapes" in capsys.readouterr().out


def test_the_doctor_mends_no_videos(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.doctor([str(folder / "pictures.yaml"), "--fix", str(tmp_path / "mended")]) == 2
    expected = (
        f"error: --fix {tmp_path / 'mended'}: mends pictures, and moving_shapes has videos; correct their files by hand"
    )
    assert capsys.readouterr().err.strip() == expected
    assert not (tmp_path / "mended").exists()


@pytest.mark.parametrize("name", ["clips", "pictures"])
def test_show_draws_the_frame_that_a_clip_is_of(folder: Path, name: str, tmp_path: Path) -> None:
    """Both panels have the same picture: the grey of its left and of its right half differ by little."""
    options = ["--output", str(tmp_path / "out"), "--count", "2", "--split", "val"]
    assert cli.show([str(folder / f"{name}.yaml"), *options]) == 0
    drawings = sorted((tmp_path / "out").glob("0*.jpg"))
    assert len(drawings) == 2
    for drawing in drawings:
        image = read_picture(drawing)
        left, right = image[30:, : image.shape[1] // 2 - 4], image[30:, -(image.shape[1] // 2 - 4) :]
        assert abs(float(left.mean()) - float(right.mean())) < 4


def test_anchors_of_videos(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.anchors([str(folder / "clips.yaml"), "--k", "2"]) == 0
    assert "mean IoU of a box with its best anchor" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["convert", "moving", "out", "--to", "coco"], ["init", "x.yaml", "--data", "moving"]]
)
def test_folders_of_videos_are_not_taken_for_pictures(
    folder: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("error: moving: neither VOC")
