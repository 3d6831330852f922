"""Evaluation of a detector that calls the classes of the data otherwise, or has others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from detkit import cli
from detkit.config import UserError
from detkit.data.checks import RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.engine.class_match import describe_match, shared_classes
from detkit.engine.evaluate import detection_store, label_map, relabel
from detkit.evaluation.build import build_evaluators
from detkit.evaluation.evaluator import summarise
from detkit.structures import Categories, Detections, Objects
from tests.cli_support import write_config
from tests.engine.settings import make_config, write_pictures

BOXES = [(1.0, 2.0, 20.0, 30.0), (5.0, 6.0, 25.0, 36.0), (10.0, 10.0, 40.0, 40.0)]


def dataset(folder: Path, names: list[str]) -> ImageDataset:
    """One picture with an object of each class, whose ids are 11, 12, ..."""
    cv2.imwrite(str(folder / "one.png"), np.zeros((64, 64, 3), np.uint8))
    objects = tuple(RawObject(name, label, BOXES[label]) for label, name in enumerate(names))
    images = [RawImage("one", str(folder / "one.png"), "a test", (64, 64), objects)]
    ids = tuple(range(11, 11 + len(names)))
    return ImageDataset(images, name="test", categories=Categories(tuple(names), ids))


def detections(names: list[str], labels: list[int]) -> Detections:
    """Certain and exact detections of some of the boxes, with these labels."""
    boxes = torch.tensor(BOXES[: len(labels)])
    return Detections(Objects(boxes, torch.tensor(labels), scores=torch.ones(len(labels))), Categories.of_names(names))


def test_a_store_on_some_of_the_classes_has_only_their_objects(tmp_path: Path) -> None:
    store = detection_store(dataset(tmp_path, ["cat", "dog", "bird"]), [2, 0])
    assert store.categories == Categories(("bird", "cat"), (13, 11))
    (truth,) = store.ground_truth
    np.testing.assert_array_equal(truth.objects.labels, [1, 0])
    np.testing.assert_array_equal(truth.objects.boxes, [BOXES[0], BOXES[2]])


def test_shared_classes_are_measured_alone(tmp_path: Path) -> None:
    """The class that the detector lacks would have AP 0, and the mean with it."""
    data = dataset(tmp_path, ["cat", "couch", "bird"])
    names = ["sofa", "zebra", "cat"]
    found = detections(names, [2, 0, 1])
    shared = shared_classes(names, data.categories.names, {})
    assert shared == [0, 1]
    store = detection_store(data, shared)
    labels = label_map(found.categories, store.categories)
    assert labels.tolist() == [1, -1, 0]
    store.update("one", relabel(found, labels, store.categories))
    evaluation = summarise(store, build_evaluators(["voc10", "coco"], store))
    assert evaluation.num_objects == {"cat": 1, "couch": 1}
    assert evaluation.results["voc10"].per_class == {"cat": 1.0, "couch": 1.0}
    assert evaluation.results["coco"].score == pytest.approx(1.0)


def test_what_was_matched_is_reported() -> None:
    notes = describe_match(["sofa", "zebra", "cat"], ["cat", "couch", "bird"], ["cat", "couch"], [1, -1, 0])
    assert notes == [
        "classes under another name in the data: sofa is couch",
        "measured on the 2 of the data's 3 classes that the detector has too; left out: bird",
    ]
    assert describe_match(["a", "b"], ["b"], ["b"], [-1, 0]) == []


def test_a_map_that_swaps_two_names_counts() -> None:
    """Also where the detector and the data have the same classes."""
    categories = Categories.of_names(["cat", "dog"])
    labels = label_map(categories, categories, {"cat": "dog", "dog": "cat"})
    assert relabel(detections(["cat", "dog"], [0, 1]), labels, categories).labels.tolist() == [1, 0]


def test_a_missing_class_names_both_ways_out() -> None:
    categories = [Categories.of_names(names) for names in (["cat", "dog"], ["cat", "horse"])]
    with pytest.raises(UserError, match=r"1 of the data set's 2 classes \(horse\).*--class-map FILE.*--classes shared"):
        label_map(*categories)


def test_no_class_in_common() -> None:
    with pytest.raises(UserError, match=r"--classes shared: the detector \(cat\) and the data \(dog\) share no class"):
        shared_classes(["cat"], ["dog"], {})


@pytest.fixture(scope="module")
def feline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of the trained run, where cats are called feline."""
    folder = tmp_path_factory.mktemp("feline")
    data: dict[str, Any] = {**write_pictures(folder / "data", 4), "classes": ["feline", "dog"]}
    tree = make_config({**data, "merge": {"feline": ["cat"]}}).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "map.yaml").write_text("cat: feline\n")
    return folder


@pytest.mark.long
def test_a_run_on_data_with_other_names(
    trained_run: Path, feline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused; with a map the numbers of the run's own data; on the shared class that class's numbers."""
    command = [str(trained_run), "--config", str(feline / "config.yaml"), "--protocol", "voc10"]
    assert cli.evaluate(command) == 2
    assert "does not know 1 of the data set's 2 classes (feline)" in capsys.readouterr().err
    results = []
    for options in ([], ["--class-map", str(feline / "map.yaml")], ["--classes", "shared"]):
        file = tmp_path / "numbers.json"
        source = [str(trained_run)] if not options else command
        assert cli.evaluate([*source, *options, "--protocol", "voc10", "--json", str(file)]) == 0
        results.append(json.loads(file.read_text())["voc10"]["per_class"])
    own, mapped, shared = results
    assert mapped == {"feline": own["cat"], "dog": own["dog"]}
    assert shared == {"dog": own["dog"]}
    out = capsys.readouterr().out
    assert "classes under another name in the data: cat is feline" in out
    assert "measured on the 1 of the data's 2 classes" in out


@pytest.mark.long
def test_a_darknet_model_with_its_own_names_on_cocos_file(shared_data: Path, tmp_path: Path) -> None:
    """Six of the 80 have another name in `coco.names`. The score is that of OpenCV's network on the same images."""
    weights = shared_data / "weights"
    model = weights / "yolo-fastest-1.1-coco.cfg"
    config = write_config(tmp_path / "coco.yaml", {"name": "coco", "root": str(shared_data / "coco-mini")})
    source, file = f"darknet:{model}::{weights / 'coco.names'}", tmp_path / "numbers.json"
    assert cli.evaluate([source, "--config", str(config), "--protocol", "coco", "--json", str(file)]) == 0
    numbers = json.loads(file.read_text())["coco"]
    assert numbers["AP"] == pytest.approx(0.1759, abs=0.005)
    assert {"motorcycle", "airplane", "couch", "potted plant", "dining table", "tv"} <= set(numbers["per_class"])
