"""The stage after gradient descent: run once, part of the checkpoint, known to eval and predict, and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit import cli
from detkit.config import dump_config
from detkit.data.build import build_dataset
from detkit.detectors.rcnn import RCNN
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.evaluate import evaluate_source
from detkit.engine.predict import predict
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.train import train_config
from tests.engine.settings import differences, make_config, read_metrics, torchrun, write_pictures

pytestmark = pytest.mark.long

MODEL: dict[str, Any] = {
    "name": "rcnn",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [8]},
    "roi": {
        "crop_size": 24,
        "context": 2,
        "output_size": 2,
        "hidden": [16],
        "dropout": 0.2,
        "batch_size_per_image": 16,
        "selection": {"score_threshold": 0.01},
        "svm": {"c": 0.1},
    },
    "proposals": {"name": "selective_search", "min_side": 8, "max_boxes": 40},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    data = write_pictures(tmp_path_factory.mktemp("pictures"), 6)
    base = make_config(data).model_dump(mode="json")
    tree = {**base, "model": MODEL, "train": {**base["train"], "ema": {"decay": 0.5}}}
    return RunConfig.model_validate(tree, strict=False)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train_config(config, folder)
    return folder


def finished(folder: Path) -> bool:
    return bool(load_checkpoint(folder / "last.pt")["model"]["roi.finished"])


def test_it_is_part_of_the_checkpoint(run: Path) -> None:
    detector, _ = load_detector(run)
    assert isinstance(detector, RCNN)
    assert detector.roi.finished
    assert detector.roi.svm_weight.abs().sum() > 0
    assert detector.roi.box_weight.abs().sum() > 0


def test_eval_and_predict_use_it(run: Path, config: RunConfig) -> None:
    """The number of the training's last evaluation, and the same detections from a picture alone."""
    evaluation, store = evaluate_source(run, ["voc07"])
    assert evaluation.results["voc07"].metrics["mAP"] == read_metrics(run, "val")[-1]["mAP"]
    detector, _ = load_detector(run)
    assert isinstance(detector, RCNN)
    sample = build_dataset(config.data, "val").load(0)
    (found,) = predict(detector, [sample.image])
    expected = store.detections[sample.image_id]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    detector.roi.finished.fill_(False)
    (softmax,) = predict(detector, [sample.image])
    assert softmax.scores[:3].tolist() != found.scores[:3].tolist()


def test_a_run_interrupted_between_the_stages_resumes(
    run: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(detector: RCNN, loader: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RCNN, "finish_training", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_config(config, tmp_path)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 2
    assert not finished(tmp_path)
    assert train_config(config, tmp_path, resume=True)
    assert differences(load_checkpoint(run / "last.pt"), load_checkpoint(tmp_path / "last.pt")) == []
    assert read_metrics(run, "val") == read_metrics(tmp_path, "val")


def test_a_finished_run_is_not_finished_again(run: Path, config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert train_config(config, tmp_path / "run", resume=True) is None


def test_more_epochs_make_it_anew(run: Path, config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    longer = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 4})})
    train_config(longer, tmp_path / "run", resume=True, stop_after=3)
    assert not finished(tmp_path / "run"), "the network has moved: the SVMs are stale"
    train_config(longer, tmp_path / "run", resume=True)
    assert finished(tmp_path / "run")
    old, new = (load_checkpoint(folder / "last.pt")["model"]["roi.svm_weight"] for folder in (run, tmp_path / "run"))
    assert not torch.equal(old, new)


def test_what_was_made_is_said(
    run: Path, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a class without a single object is named."""
    classes = config.data.model_copy(update={"classes": ("cat", "dog", "cow")})
    assert train_config(config.model_copy(update={"data": classes}), tmp_path)
    text = capsys.readouterr().out
    assert "SVMs on 12 objects and" in text
    assert "too few of cow, which will never be detected" in text
    assert cli.evaluate([str(tmp_path), "--protocol", "voc07"]) == 0


def test_two_processes_share_one_result(config: RunConfig, tmp_path: Path) -> None:
    """Both go through the stage with all images; the first one's SVMs are kept, and evaluated by both."""
    (tmp_path / "config.yaml").write_text(dump_config(config))
    text = torchrun("tools/train.py", tmp_path / "config.yaml", "--output", tmp_path / "run")
    assert text.count("SVMs on 12 objects and") == 1
    assert finished(tmp_path / "run")
    evaluation, _ = evaluate_source(tmp_path / "run", ["voc07"])
    assert evaluation.results["voc07"].metrics["mAP"] == read_metrics(tmp_path / "run", "val")[-1]["mAP"]
