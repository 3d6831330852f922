"""Pictures in, detections in their own pixels out."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.config import UserError
from detkit.data.pictures import read_picture
from detkit.engine.predict import predict
from detkit.engine.prediction.records import picture_record
from detkit.structures import Categories, Detections, Objects
from tests.engine.prediction.detectors import BrightSpot, spot_picture


@pytest.mark.parametrize(("size", "max_size"), [(50, 1000), (200, 1000), (200, 150)])
def test_detections_are_in_the_pixels_of_the_picture(size: int, max_size: int) -> None:
    boxes = [(40, 20, 100, 60), (8, 30, 44, 160)]
    pictures = [spot_picture(100, 150, boxes[0]), spot_picture(200, 90, boxes[1])]
    found = predict(BrightSpot(size, max_size), pictures)
    for detections, box in zip(found, boxes, strict=True):
        assert detections.boxes[0].tolist() == pytest.approx(box, abs=200 / min(size, max_size))  # one input pixel


def test_prediction_does_not_keep_the_training_mode() -> None:
    detector = BrightSpot(50, 100).train()
    predict(detector, [spot_picture(40, 40, (0, 0, 9, 9))])
    assert not detector.training


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """OpenCV ended the process over one of these."""
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    try:
        Image.new("RGB", (30, 20), (9, 9, 9)).save(path)
    except OSError:
        pytest.skip("this file system refuses such a name")
    assert read_picture(path).shape == (20, 30, 3)


def test_a_picture_is_read_upright_and_in_rgb(tmp_path: Path) -> None:
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20] = (255, 0, 0)  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show it
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), upright)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("hello")
    with pytest.raises(UserError, match=f"{path} cannot be decoded: it is no picture"):
        read_picture(path)
    with pytest.raises(UserError, match=r"missing\.jpg does not exist"):
        read_picture(tmp_path / "missing.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_broken_pictures_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{path} cannot be decoded"):
        read_picture(path)
    for _ in range(300):
        garbled = bytearray(content)
        for place in rng.integers(0, len(content), 4).tolist():
            garbled[place] = int(rng.integers(256))
        path.write_bytes(garbled)
        with contextlib.suppress(UserError):
            assert read_picture(path).ndim == 3


def test_detections_as_plain_values() -> None:
    objects = Objects(torch.tensor([(1.0, 2.0, 3.0, 4.5)]), torch.tensor([1]), scores=torch.tensor([0.5]))
    detections = Detections(objects, Categories.of_names(["cat", "dog"]))
    expected = {"class": "dog", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.5]}
    assert picture_record((60, 80), detections) == {"width": 80, "height": 60, "detections": [expected]}
    for number, written in ((7, 7), (-1, None)):
        tracked = Detections(
            objects.from_columns({**objects.columns(), "track_ids": torch.tensor([number])}), detections.categories
        )
        assert picture_record((60, 80), tracked)["detections"] == [{**expected, "track": written}]
