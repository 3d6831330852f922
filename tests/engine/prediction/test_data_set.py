"""Predictions that come back as training data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from detkit.config import UserError
from detkit.data.build import DataConfig, build_dataset
from detkit.engine.prediction.data_set import refuse_existing, write_data_sets
from detkit.engine.prediction.records import picture_record
from detkit.engine.prediction.summary import Summary
from detkit.structures import Categories
from tests.engine.prediction.drawn import find_all, picture

CATEGORIES = Categories(("N/A", "cat", "big dog", "N/A"), (0, 17, 18, 26))
BOXES = {
    "a.jpg": [("cat", (0.0, 0.0, 30.25, 20.5)), ("big dog", (10.5, 3.125, 80.0, 60.0))],
    "sub/b.png": [],
    "c.webp": [],
}


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, objects in BOXES.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (9, 90, 9)).save(path)
        detections = [{"class": label, "score": 0.9, "box": list(box)} for label, box in objects]
        rows.append({"file": str(path), "width": 80, "height": 60, "detections": detections})
    return [*rows, {"file": "broken.jpg", "error": "broken.jpg cannot be decoded"}]


def read_back(lines: list[str]) -> Any:
    """The data set, through the section `data` that the lines tell the user to take."""
    section = next(line.partition("data: ")[2] for line in lines if line.startswith("next, in a configuration"))
    config: Any = TypeAdapter(DataConfig).validate_json(json.dumps(yaml.safe_load(section)))
    return build_dataset(config, "train")


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_what_was_predicted_is_read_back_for_training(name: str, records: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = read_back(write_data_sets(records, CATEGORIES, tmp_path / "out", [name]))
    assert dataset.categories.names == ("cat", "big dog")
    assert len(dataset) == 3
    found = {}
    for index in range(3):
        objects = dataset.ground_truth(index).objects
        names = [dataset.categories.names[label] for label in objects.labels]
        found[Path(dataset.path(index)).name] = list(zip(names, objects.boxes.tolist(), strict=True))
        assert dataset.load(index).image.shape == (60, 80, 3)
    for path, expected in BOXES.items():
        actual = sorted(found[Path(path).name])
        assert [label for label, _ in actual] == sorted(label for label, _ in expected)
        for (_, box), (_, expected_box) in zip(actual, sorted(expected), strict=True):
            assert box == pytest.approx(expected_box, abs=1e-4)


FOUND = find_all(picture(60, 80, [(2, 3, 22, 33), (40, 10, 70, 50)], [0, 1]))


def record_of_found(records: list[dict[str, Any]], without: str = "") -> dict[str, Any]:
    """The picture a.jpg with `FOUND`, whose objects lack one column."""
    (row,) = [record for record in records if record["file"].endswith("a.jpg")]
    row |= picture_record((60, 80), FOUND)
    for detection in row["detections"]:
        detection.pop(without, None)
    return row


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_masks_are_read_back(name: str, records: list[dict[str, Any]], tmp_path: Path) -> None:
    row = record_of_found(records, without="keypoints")
    dataset = read_back(write_data_sets([row], FOUND.categories, tmp_path / "out", [name]))
    objects = dataset.ground_truth(0).objects
    assert FOUND.masks is not None
    order, expected = np.argsort(objects.labels), FOUND.masks.dense()[np.argsort(FOUND.labels.numpy())]
    assert np.array_equal(objects.masks.dense()[order], expected)


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_likely_keypoints_are_read_back(name: str, records: list[dict[str, Any]], tmp_path: Path) -> None:
    """Of the best object the right point, with a logit below 0, is not labelled."""
    row = record_of_found(records)
    row["detections"][0]["keypoints"][1]["score"] = -0.5
    dataset = read_back(write_data_sets([row], FOUND.categories, tmp_path / "out", [name]))
    objects = dataset.ground_truth(0).objects
    assert FOUND.keypoints is not None
    expected = FOUND.keypoints.numpy().copy()
    expected[0, 1] = 0
    order = np.argsort(objects.labels)
    assert objects.keypoints[order] == pytest.approx(expected[np.argsort(FOUND.labels.numpy())], abs=1e-3)
    if name == "coco":
        assert dataset.categories.keypoints.names == ("left", "right", "top")
        assert dataset.categories.keypoints.skeleton == ((0, 2), (1, 2))


def test_frames_of_a_video_are_the_pictures_that_were_saved_of_them(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    frame = tmp_path / "frames" / "film_000007.jpg"
    frame.parent.mkdir()
    Image.new("RGB", (80, 60)).save(frame)
    row = {**records[0], "file": "film.mp4", "frame": 7, "picture": str(frame)}
    write_data_sets([row], CATEGORIES, tmp_path / "out", ["coco"])
    content = json.loads((tmp_path / "out/coco/train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["film_000007.jpg"]
    assert (tmp_path / "out/coco/train/film_000007.jpg").read_bytes() == frame.read_bytes()


def test_a_data_set_that_somebody_may_have_corrected_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    with pytest.raises(UserError, match=r"yolo: exists already, and may hold corrected labels"):
        refuse_existing(tmp_path, ["coco", "yolo"])
    refuse_existing(tmp_path, ["coco", "voc"])


def test_without_a_picture_there_is_no_data_set(tmp_path: Path) -> None:
    assert write_data_sets([{"file": "a", "error": "x"}], CATEGORIES, tmp_path, ["coco"]) == [
        "no coco: there is no picture to write"
    ]
    assert list(tmp_path.iterdir()) == []


def read_by_supervision(folder: Path, name: str) -> Any:
    supervision = pytest.importorskip("supervision")
    read = supervision.DetectionDataset
    match name:
        case "coco":
            return read.from_coco(str(folder / "train"), str(folder / "train.json"))
        case "yolo":
            return read.from_yolo(str(folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml"))
        case _:
            devkit = folder / "VOC2007"
            return read.from_pascal_voc(str(devkit / "JPEGImages"), str(devkit / "Annotations"))


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_another_library_reads_the_same_boxes(name: str, records: list[dict[str, Any]], tmp_path: Path) -> None:
    flat = [record for record in records if Path(record["file"]).parent.name == "photos"]  # it does not enter folders
    write_data_sets(flat, CATEGORIES, tmp_path / "out", [name])
    dataset = read_by_supervision(tmp_path / "out" / name, name)
    boxes = {}
    for path, _, annotation in dataset:
        names = [dataset.classes[label] for label in annotation.class_id]
        boxes[Path(path).name] = dict(zip(names, annotation.xyxy.tolist(), strict=True))
    assert boxes.get("c.webp", {}) == {}
    assert boxes["a.jpg"].keys() == {"cat", "big dog"}
    for label, box in BOXES["a.jpg"]:
        assert boxes["a.jpg"][label] == pytest.approx(box, abs=1e-4)


def test_what_data_sets_report_is_shown_whole() -> None:
    """Of notes, which may be one a file, only the first ten are shown."""
    summary = Summary(notes=[f"note {number}" for number in range(20)], data_sets=[f"set {n}" for n in range(20)])
    lines = summary.lines()
    assert lines[1:12] == [*(f"note {number}" for number in range(10)), "... and 10 more like these"]
    assert lines[12:] == [f"set {number}" for number in range(20)]
