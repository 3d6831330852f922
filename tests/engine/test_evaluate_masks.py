"""Detectors of masks and keypoints from training to the command `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit import cli
from detkit.config import UserError
from detkit.detectors.build import build_detector, learned_columns
from detkit.engine.evaluate import match_keypoints
from detkit.engine.settings import RunConfig
from detkit.structures import Categories, KeypointCategories
from tests.cli_support import TINY, write_config
from tests.engine.settings import make_config

BRANCHES: dict[str, Any] = {
    "mask": {"channels": [8], "deconv_channels": 8},
    "keypoint": {"channels": [8]},
}
NAMES = {"mask": "mask_rcnn", "keypoint": "keypoint_rcnn"}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Two pictures of 64 x 96 with a bright triangle and its corners; the `data` of a configuration."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    annotations, images = [], []
    for number, left in enumerate((10, 40), start=1):
        corners = [[left, 50], [left + 40, 50], [left + 20, 10]]
        picture = np.zeros((64, 96, 3), np.uint8)
        cv2.fillPoly(picture, [np.array(corners)], (255, 255, 255))
        cv2.imwrite(str(folder / "val2017" / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 96})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [left, 10, 40, 40],
                "area": 800,
                "iscrowd": 0,
                "segmentation": [[number for corner in corners for number in corner]],
                "keypoints": [number for x, y in corners for number in (x, y, 2)],
                "num_keypoints": 3,
            }
        )
    categories = [{"id": 1, "name": "triangle", "keypoints": ["left", "right", "top"], "skeleton": []}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "annotations" / "instances.json"
    file.write_text(json.dumps(content))
    annotated, pictures = "annotations/instances.json", "val2017"
    paths = {"train_annotations": annotated, "val_annotations": annotated, "train_images": pictures}
    return {"name": "coco", "root": str(folder), **paths, "val_images": pictures}


def config_file(tmp_path: Path, data: dict[str, Any], branch: str | None, protocol: str) -> Path:
    model = TINY["model"]
    if branch:
        model = {**model, "name": NAMES[branch], branch: BRANCHES[branch]}
    return write_config(tmp_path / "config.yaml", model=model, data=data, eval={"protocol": protocol})


def annotate(file: Path, rows: list[dict[str, Any]]) -> None:
    """Makes these results the objects of the file."""
    content = json.loads(file.read_text())
    area = [row["bbox"][2] * row["bbox"][3] / 2 for row in rows]
    content["annotations"] = [
        {**row, "id": number, "area": area[number - 1], "iscrowd": 0} for number, row in enumerate(rows, start=1)
    ]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("branch", "protocol"), [("mask", "coco_segm"), ("keypoint", "coco_keypoints")])
def test_a_run_is_selected_and_measured_by_masks_or_keypoints(
    branch: str, protocol: str, data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On objects that are some of its detections, so that something is right. Measured as results of a file, they have
    the same numbers."""
    run, numbers, saved = tmp_path / "run", tmp_path / "numbers.json", tmp_path / "saved.json"
    again = tmp_path / "again.json"
    assert cli.train([str(config_file(tmp_path, data, branch, protocol)), "--output", str(run)]) == 0
    assert f"{protocol} AP 0." in capsys.readouterr().out
    options = [str(run), "--set", "model.roi.selection.score_threshold=0"]
    assert cli.evaluate([*options, "--save-detections", str(saved)]) == 0
    annotations = Path(data["root"], data["val_annotations"])
    annotate(annotations, json.loads(saved.read_text())[::4])
    capsys.readouterr()
    assert cli.evaluate([*options, "--json", str(numbers)]) == 0
    assert f"\n{protocol}: COCO {branch}s, AP over " in capsys.readouterr().out
    assert cli.evaluate(["--detections", str(saved), "--ground-truth", str(annotations), "--json", str(again)]) == 0
    first, second = (json.loads(file.read_text()) for file in (numbers, again))
    assert list(first) == ["voc07", "voc10", "coco", protocol]
    assert first == second
    assert first[protocol]["AP"] > 0.1


def test_boxes_cannot_be_measured_by_masks(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = config_file(tmp_path, data, None, "coco_segm"), tmp_path / "run"
    assert cli.train([str(file), "--output", str(run)]) == 2
    message = capsys.readouterr().err
    assert "protocol coco_segm: measures masks, and this detector gives none; measure its boxes, by voc07" in message
    assert cli.train([str(file), "--output", str(run), "--set", "eval.protocol=coco"]) == 0
    capsys.readouterr()
    assert cli.evaluate([str(run), "--protocol", "coco_keypoints"]) == 2
    assert "protocol coco_keypoints: measures keypoints, and this detector gives none" in capsys.readouterr().err
    assert cli.evaluate([str(run)]) == 0
    assert "coco_segm" not in capsys.readouterr().out


def test_settings_that_have_no_effect_on_keypoints(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, only = tmp_path / "run", ["--protocol", "coco_keypoints"]
    assert cli.train([str(config_file(tmp_path, data, "keypoint", "coco_keypoints")), "--output", str(run)]) == 0
    capsys.readouterr()
    assert cli.evaluate([str(run), *only, "--set", "eval.max_detections=50"]) == 2
    assert "--set eval.max_detections=50: has no effect without --protocol coco" in capsys.readouterr().err
    assert cli.evaluate([str(run), *only, "--set", "eval.coco_backend=fast"]) == 0


def test_what_is_not_measured_is_said_with_the_reason(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = tmp_path / "run", Path(data["root"], data["val_annotations"])
    assert cli.train([str(config_file(tmp_path, data, "keypoint", "coco_keypoints")), "--output", str(run)]) == 0
    content = json.loads(file.read_text())
    del content["categories"][0]["keypoints"]
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert cli.evaluate([str(run)]) == 0
    reason = "2 objects with keypoints left out, as its category names none"
    assert f"keypoints are not measured, as no object of the data has any ({reason})" in capsys.readouterr().out
    assert cli.evaluate([str(run), "--protocol", "coco"]) == 0
    assert "not measured" not in capsys.readouterr().out


@pytest.mark.parametrize("branch", [None, "mask", "keypoint"])
def test_detectors_know_what_they_detect(branch: str | None, data: dict[str, Any]) -> None:
    changes = [f"model.name={NAMES[branch]}", f"model.{branch}={json.dumps(BRANCHES[branch])}"] if branch else []
    config: RunConfig = make_config(data, *changes)
    points = KeypointCategories(("a", "b"), sigmas=(0.05, 0.05))
    detector = build_detector(config.model, Categories(("x",), (1,), points))
    assert detector.columns == learned_columns(config.model) == ((f"{branch}s",) if branch else ())


def test_keypoints_are_compared_in_their_order() -> None:
    def of(*names: str) -> Categories:
        return Categories(("x",), (1,), KeypointCategories(names))

    assert match_keypoints(of("a", "b"), of("a", "b")) == []
    expected = "keypoints under another name in the data, compared in their order: b is c"
    assert match_keypoints(of("a", "b"), of("a", "c")) == [expected]
    with pytest.raises(UserError, match=r"this detector gives 2 keypoints \(a, b\), the data have 3 \(a, b, c\); meas"):
        match_keypoints(of("a", "b"), of("a", "b", "c"))
