"""`detkit overfit`: a detector that learns, ones that are broken on purpose, and the verdict on chosen numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit import cli
from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.engine import stopping
from detkit.engine.overfit import Overfitting, images_with_objects, measure, overfit
from detkit.engine.overfit_report import describe_overfitting, verdict
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, Detections, GroundTruth, Objects
from tests.cli_support import write_config
from tests.engine.settings import make_config, write_pictures

LEARNT = Overfitting(
    losses={"roi_class": (2.0, 0.1), "roi_box": (0.1, 0.05), "rpn_objectness": (0.7, 0.01)},
    gradients={"backbone": (3.0, 0.1), "roi": (2.0, 0.1)},
    ap50=0.9,
    box_ap50=0.95,
    box_recall=1.0,
    num_images=8,
    num_objects=20,
    num_detections=30,
    batch_size=4,
    steps=100,
    lr=0.01,
)


@pytest.mark.parametrize(
    ("changes", "begin"),
    [
        ({}, "learns: AP50 0.90"),
        ({"ap50": 0.6, "box_ap50": 0.7}, "learns: AP50 0.60"),
        ({"ap50": 0.5, "box_ap50": 0.7}, "the class scores do not learn: boxes are found, but under wrong names"),
        ({"ap50": 0.1, "box_ap50": 0.2}, "it has begun to learn: the losses fall, but AP50 is 0.10 after 100 steps"),
        (
            {"ap50": 0.1, "box_ap50": 0.2, "losses": {"roi_class": (2.0, 1.9), "rpn_box": (9.0, 0.1)}},
            "the class scores do not learn: the losses fall",
        ),
        (
            {"ap50": 0.1, "box_ap50": 0.1, "box_recall": 0.2, "losses": {"d_class": (5.0, 1.0), "d_l1": (2.0, 2.0)}},
            "the boxes do not learn: the losses fall",
        ),
        (  # the loss of the boxes of a region head rises as it gets more regions to learn from
            {"ap50": 0.1, "box_ap50": 0.2, "losses": {"roi_class": (5.0, 1.0), "roi_box": (0.1, 0.2)}},
            "it has begun to learn",
        ),
        ({"ap50": 0.0, "box_ap50": 0.0, "num_detections": 0}, "nothing is detected yet, though the losses fall"),
        (
            {"ap50": 0.0, "box_ap50": 0.0, "losses": {"a": (2.0, 1.99)}},
            "does not learn: the losses do not fall (2 at first, 1.99 at last); try another train.optimizer.lr than",
        ),
    ],
)
def test_the_verdict(changes: dict[str, Any], begin: str) -> None:
    assert verdict(replace(LEARNT, **changes)).startswith(begin)


def test_frozen_parts_and_those_without_a_gradient_are_named() -> None:
    gradients = {"backbone": None, "neck": (0.0, 0.0), "roi": (2.0, 0.0)}
    lines = describe_overfitting(replace(LEARNT, gradients=gradients)).splitlines()
    assert lines[-2:] == [
        "does not learn because it is frozen: backbone",
        "does not learn because no gradient reaches it: neck",
    ]
    assert any(line.split() == ["backbone", "frozen"] for line in lines)
    assert any(line.split() == ["sum", "2.8000", "0.1600"] for line in lines)


def test_scores_with_and_without_classes_by_hand() -> None:
    """A cat and a dog, found exactly, the dog as a cat; a second detection of the cat falls to it."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9], [50.0, 50, 60, 60]])
    categories = Categories.of_names(["cat", "dog"])
    truth = GroundTruth(0, (100, 100), Objects(boxes[[0, 2]].numpy(), np.array([0, 1])))
    store = DetectionStore(categories, [truth])
    labels, scores = torch.tensor([0, 1, 0]), torch.tensor([0.9, 0.8, 0.7])
    store.update(0, Detections(Objects(boxes, labels, scores=scores), categories))
    assert measure(store) == {"ap50": 0.5, "box_ap50": 1.0, "box_recall": 1.0, "num_detections": 3}
    store.reset()
    store.update(0, Detections(Objects(boxes[:2], labels[:2], scores=scores[:2]), categories))
    assert measure(store) == {"ap50": 0.5, "box_ap50": 0.5, "box_recall": 0.5, "num_detections": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 6)


def test_images_come_from_all_over_the_data_and_have_objects(data: dict[str, Any]) -> None:
    dataset = build_dataset(make_config(data).data, "train")
    assert images_with_objects(dataset, 3) == [0, 2, 5]
    assert images_with_objects(dataset, 99) == [0, 1, 2, 3, 4, 5]
    part = dataset.take([4, 1])
    assert [part.image_id(index) for index in range(len(part))] == ["004", "001"]
    for index, original in enumerate((4, 1)):
        np.testing.assert_array_equal(
            part.ground_truth(index).objects.boxes, dataset.ground_truth(original).objects.boxes
        )
        assert part.load(index).image.shape == (64, 96, 3)
    assert "2 images, 4 objects of 2 classes" in part.summary
    dataset.objects.ignore[:] = True
    with pytest.raises(UserError, match="no object to learn"):
        images_with_objects(dataset, 3)


Steps = Callable[[int], None]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Lets a minute be over after so many steps, by a clock that only the loop moves."""

    def set_steps(count: int) -> None:
        now = [0.0]

        def tick(self: stopping.Stopping) -> None:
            now[0] += 1
            self.elapsed = now[0] / count

        monkeypatch.setattr(stopping.Stopping, "tick", tick)

    return set_steps


BASE = ("train.optimizer={name: adamw, lr: 2e-3}", "train.epochs=1", "train.ema={decay: 0.9}", "train.clip_norm=5.0")


@pytest.mark.long
def test_a_detector_that_learns(
    data: dict[str, Any], steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a run would make its folder
    root = Path(data["root"])
    steps(60)
    before = sorted(root.rglob("*"))
    result = overfit(make_config(data, *BASE, "train.batch_size=16"), 4)
    assert (result.num_images, result.num_objects, result.batch_size, result.steps) == (4, 8, 4, 60)
    assert result.ap50 > 0.6
    assert verdict(result).startswith("learns")
    assert set(result.gradients) == {"backbone", "neck", "rpn", "roi"}
    assert sorted(root.rglob("*")) == before, "nothing is written to the data"
    assert list(tmp_path.iterdir()) == [], "nor a run"


@pytest.mark.long
def test_a_learning_rate_that_moves_nothing(data: dict[str, Any], steps: Steps) -> None:
    steps(4)
    result = overfit(make_config(data, "train.optimizer.lr=1e-9"), 2)
    assert verdict(result).startswith("does not learn: the losses do not fall")
    assert "train.optimizer.lr than 1e-09" in verdict(result)


@pytest.mark.long
def test_a_frozen_head(data: dict[str, Any], steps: Steps) -> None:
    steps(4)
    result = overfit(make_config(data, "train.freeze=[roi, rpn]"), 2)
    assert result.gradients["roi"] is None
    assert result.gradients["backbone"] is not None
    assert describe_overfitting(result).endswith("does not learn because it is frozen: roi, rpn")


@pytest.mark.long
def test_labels_that_are_mixed_up(data: dict[str, Any], steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss takes cats for dogs and dogs for cats: the boxes are learned, their names are not."""
    criterion = FasterRCNN.criterion

    def confused(self: FasterRCNN, outputs: Any, targets: Any) -> dict[str, Tensor]:
        labels = outputs.roi.targets.labels
        swapped = torch.where(labels > 0, 3 - labels, labels)
        roi = replace(outputs.roi, targets=replace(outputs.roi.targets, labels=swapped))
        return criterion(self, replace(outputs, roi=roi), targets)

    monkeypatch.setattr(FasterRCNN, "criterion", confused)
    steps(60)
    result = overfit(make_config(data, *BASE, "train.batch_size=4"), 4)
    assert result.box_ap50 > 0.6
    assert verdict(result).startswith("the class scores do not learn: boxes are found, but under wrong names")


@pytest.mark.long
def test_settings_of_the_training_reach_it(data: dict[str, Any], steps: Steps) -> None:
    steps(1)
    plain = overfit(make_config(data), 2)
    doubled = overfit(make_config(data, "train.class_weights={cat: 2, dog: 2}"), 2)
    assert doubled.losses["roi_class"][0] > plain.losses["roi_class"][0]
    assert doubled.losses["roi_box"][0] == plain.losses["roi_box"][0]
    with pytest.raises(UserError, match=r"train.class_weights: the data have no class 'dgo'; did you mean 'dog'\?"):
        overfit(make_config(data, "train.class_weights={dgo: 2}"), 2)


@pytest.mark.long
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "tiny.yaml")
    assert cli.main(["overfit", str(config), "--images", "2", "--minutes", "0.02"]) == 0
    assert "2 images with" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("option", "value"), [("--images", "0"), ("--minutes", "0"), ("--minutes", "nan")])
def test_what_is_asked_for_must_be_something(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.overfit([str(write_config(tmp_path / "tiny.yaml")), option, value]) == 2
    assert f"error: {option}: expected" in capsys.readouterr().err
