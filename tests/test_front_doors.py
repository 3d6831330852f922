"""`detkit.train`, `detkit.load`, `detkit.predict` and `python -m detkit`: what the tools do, from Python."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import detkit
from detkit import cli
from detkit.config import ConfigError, UserError, load_config
from detkit.data.pictures import read_picture
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.run import load_run_config
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from tests.cli_support import write_config

EPOCHS = ["train.epochs=2", "train.eval_every=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch; its configuration is `tiny.yaml` beside it. Nothing may change it."""
    folder = tmp_path_factory.mktemp("front_doors")
    return detkit.train(write_config(folder / "tiny.yaml"), output=folder / "run")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8))
    return path


# ---- train


def test_train_gives_the_folder_of_the_run(run: Path) -> None:
    assert run.name == "run"
    assert load_checkpoint(run / "last.pt")["epoch"] == 1


def test_train_takes_a_configuration_and_changes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = run.with_name("tiny.yaml")
    by_file = detkit.train(str(file), set=["eval.protocol=voc10"])
    by_object = detkit.train(load_config(file, RunConfig), set=["eval.protocol=voc10"])
    assert (by_file, by_object) == (Path("runs/tiny"), Path("runs/faster_rcnn"))
    assert load_run_config(by_file) == load_run_config(by_object)
    assert load_run_config(by_file).eval.protocol == "voc10"


def test_train_resumes_as_if_it_had_never_stopped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.with_name("tiny.yaml")
    whole = detkit.train(file, output=tmp_path / "whole", set=EPOCHS)
    parts = detkit.train(file, output=tmp_path / "parts")
    capsys.readouterr()
    assert detkit.train(resume=parts, set=EPOCHS) == parts
    progress = capsys.readouterr().err
    assert "epoch 2/2" in progress
    assert "epoch 1/2" not in progress
    expected, resumed = (load_checkpoint(folder / "last.pt")["model"] for folder in (whole, parts))
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_train_refuses_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train: name a configuration"):
        detkit.train()
    with pytest.raises(UserError, match="leave --output out"):
        detkit.train(resume=run, output=tmp_path / "new")
    with pytest.raises(ConfigError, match=r"train\.epoch: unknown key; did you mean .epochs"):
        detkit.train(run.with_name("tiny.yaml"), output=tmp_path / "new", set=["train.epoch=2"])
    with pytest.raises(UserError, match="holds a run already"):
        detkit.train(run.with_name("tiny.yaml"), output=run)
    assert not (tmp_path / "new").exists()


# ---- load


def test_load_is_ready_to_predict(run: Path) -> None:
    detector = detkit.load(run)
    assert not detector.training
    assert detector.state_dict().keys() == load_checkpoint(run / "last.pt")["model"].keys()
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        detkit.load("nowhere.pt")


def test_a_checkpoint_keeps_the_name_of_its_public_weights(run: Path, tmp_path: Path) -> None:
    """Its weights come from the file. The name is not looked up, so that no weights are downloaded either."""
    state = load_checkpoint(run / "last.pt")
    assert state["config"].count("weights: null") == 1
    state["config"] = state["config"].replace("weights: null", "weights: OF_A_LATER_TORCHVISION")
    torch.save(state, tmp_path / "last.pt")
    detector, config = load_detector(tmp_path / "last.pt")
    assert config is not None
    assert config.model.backbone.weights == "OF_A_LATER_TORCHVISION"
    assert all(torch.equal(value, state["model"][name]) for name, value in detector.state_dict().items())


# ---- predict


def test_predict_takes_files_and_arrays_one_or_several(run: Path, picture: Path) -> None:
    detector, image = detkit.load(run), read_picture(picture)
    (expected,) = detkit.predict(detector, image)
    assert len(expected.boxes) > 0
    assert expected.scores.tolist() == sorted(expected.scores.tolist(), reverse=True)
    assert (expected.boxes.amax(dim=0) <= torch.tensor([90, 60, 90, 60])).all()
    given = [
        detkit.predict(run, picture),
        detkit.predict(detector, str(picture)),
        detkit.predict(str(run), [picture, image]),
        detkit.predict(detector, (image, picture, str(picture))),
    ]
    assert [len(detections) for detections in given] == [1, 1, 2, 3]
    for detections in (one for several in given for one in several):
        assert torch.equal(detections.boxes, expected.boxes)
    assert detkit.predict(detector, []) == []


def test_predict_takes_what_others_have_for_a_picture(run: Path, picture: Path) -> None:
    detector, pixels = detkit.load(run), read_picture(picture)
    (expected,) = detkit.predict(detector, picture)
    with Image.open(picture) as opened:
        turned = tagged(opened.transpose(Image.Transpose.ROTATE_90), orientation=6)  # turned back by 90 degrees
        alike = [opened, opened.convert("RGBA"), turned, torch.from_numpy(pixels).permute(2, 0, 1)]
        for image in alike:
            (actual,) = detkit.predict(detector, image)
            assert torch.equal(actual.boxes, expected.boxes)
        assert len(detkit.predict(detector, (image for image in alike))) == 4, "a generator is several images"
        grey = opened.convert("L")
    (of_grey,) = detkit.predict(detector, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    for image in (grey, np.asarray(grey), np.asarray(grey)[..., None]):
        assert torch.equal(detkit.predict(detector, image)[0].boxes, of_grey.boxes)


def tagged(image: Image.Image, orientation: int) -> Image.Image:
    """The picture with an EXIF orientation, as Pillow opens it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(file, "PNG", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.zeros((60, 90, 3)), r"ndarray float64 \[60, 90, 3\]; convert it to uint8; values in \[0, 1\] are mult"),
        (np.zeros((60, 90, 4), np.uint8), r"ndarray uint8 \[60, 90, 4\]; leave the fourth channel out"),
        (np.zeros((2, 60, 90, 3), np.uint8), r"ndarray uint8 \[2, 60, 90, 3\]; give a batch as a list of its images"),
        (torch.zeros(3, 60, 90), r"ndarray float32 \[60, 90, 3\]; convert it to uint8"),
        (torch.zeros(60, 90, 3, dtype=torch.uint8), r"Tensor uint8 \[60, 90, 3\]; give a file"),
        (None, r"NoneType; give a file, an image of Pillow"),
        (np.zeros((0, 90, 3), np.uint8), r"^image 1: expected at least one pixel, found 0 x 90$"),
        (np.zeros((60, 0), np.uint8), r"^image 1: expected at least one pixel, found 60 x 0$"),
    ],
)
def test_predict_names_what_is_no_picture(run: Path, picture: Path, wrong: Any, found: str) -> None:
    match = found if found.startswith("^") else rf"^image 1: expected uint8 \[H, W, 3\] RGB, found {found}"
    with pytest.raises(UserError, match=match):
        detkit.predict(run, [read_picture(picture), wrong])


def test_predict_names_a_file_that_is_no_picture(run: Path, tmp_path: Path) -> None:
    for path in ("nothing.png", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            detkit.predict(run, path)


def test_a_detector_predicts_as_the_front_door_does(run: Path, picture: Path) -> None:
    detector = detkit.load(run)
    (expected,) = detkit.predict(detector, picture)
    (actual,) = detector.predict(picture)
    assert torch.equal(actual.boxes, expected.boxes)
    assert detector.predict([]) == []


def test_results_are_ordinary_tensors(run: Path, picture: Path) -> None:
    """Those of `inference_mode` refuse to be changed in place, and to enter a computation with gradients."""
    (detections,) = detkit.predict(run, picture)
    assert not any(column.is_inference() for column in detections.objects.columns().values())
    detections.boxes[:, 0::2] *= 2
    weight = torch.ones(4, requires_grad=True)
    (detections.boxes * weight).sum().backward()
    assert weight.grad is not None


def test_load_changes_what_needs_no_new_weights(run: Path, picture: Path) -> None:
    few = detkit.load(run, set=["model.roi.selection.max_detections=2"])
    assert [len(detections) for detections in few.predict([picture, picture])] == [2, 2]


def test_outputs_that_are_nan_are_an_error(run: Path, picture: Path) -> None:
    """A comparison with nan is false, so such a detector would seem to find nothing."""
    detector: Any = detkit.load(run)
    with torch.no_grad():
        detector.roi.classifier.bias[1] = torch.nan
    with pytest.raises(UserError, match="the outputs of the network are nan for the picture"):
        detector.predict(picture)


# ---- python -m detkit


def test_the_package_runs_as_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    done = subprocess.run([sys.executable, "-m", "detkit", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == capsys.readouterr().out
    assert subprocess.run([sys.executable, "-m", "detkit", "train"], capture_output=True).returncode == 2
