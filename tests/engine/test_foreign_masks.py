"""Masks and keypoints that other programs wrote, measured on ground truth without pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit import cli
from detkit.config import UserError
from detkit.engine.foreign_results import Results, evaluate_results, load_results
from detkit.evaluation.protocols import CocoBackend
from detkit.evaluation.report import detections_to_coco
from detkit.structures import Categories, Detections, EncodedMasks, GroundTruth
from tests.evaluation.coco_json import by_pycocotools, write_ground_truth
from tests.evaluation.scenes import POINTS, SIZE, categories_of, random_keypoint_scene, random_mask_scene

SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_NAMES = ("nose", *(f"{side}_{part}" for part in SIDES for side in ("left", "right")))
PERSON = Categories(("person",), (1,), replace(POINTS, names=COCO_NAMES))  # of which a reader knows the sigmas
BACKENDS: tuple[CocoBackend, ...] = ("pycocotools", "fast")
H, W = SIZE

Scene = tuple[list[GroundTruth], list[Detections]]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def entries_of(scene: Scene, categories: Categories, *without: str) -> list[dict[str, Any]]:
    by_id = {truth.image_id: found for truth, found in zip(*scene, strict=True)}
    return [{k: v for k, v in row.items() if k not in without} for row in detections_to_coco(by_id, categories)]


def numbers(results: Results, protocol: str) -> dict[str, float]:
    return evaluate_results(results, [protocol]).results[protocol].metrics  # type: ignore[list-item, index]


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Two images, 1 with a dog whose mask is a rectangle and a cat of which only the box is known."""
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [20, 10, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [80, 10, 40, 40], "area": 1600, "iscrowd": 0},
    ]
    annotations[0]["segmentation"] = [[20, 10, 50, 10, 50, 30, 20, 30]]
    content = {
        "images": [{"id": number, "height": H, "width": W} for number in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    return write(tmp_path / "truth.json", content)


def rle(runs: Sequence[int]) -> dict[str, Any]:
    return {"size": [H, W], "counts": list(runs)}


# The pixels x 20 to 49, y 10 to 29, down the columns: as numbers, which hold neither compression nor polygons.
COLUMNS = [20 * H + 10, *([20, H - 20] * 29), 20]
DOG = rle([*COLUMNS, H * W - sum(COLUMNS)])
ENTRY = {"image_id": 1, "category_id": 2, "score": 0.5}


def load(truth: Path, *entries: dict[str, Any]) -> Results:
    return load_results([write(truth.with_name("results.json"), list(entries))], ground_truth=truth)


def refusal(truth: Path, *entries: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load(truth, *entries)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_masks_score_as_published(backend: str, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "eval-refs" / "cocoapi_val2014_100"
    command = ["--detections", str(folder / "instances_val2014_fakesegm100_results.json"), "--json"]
    command += [str(tmp_path / "numbers.json"), "--ground-truth", str(folder / "instances_val2014_100.json")]
    assert cli.evaluate([*command, "--protocol", "coco_segm", "--set", f"eval.coco_backend={backend}"]) == 0
    metrics = json.loads((tmp_path / "numbers.json").read_text())["coco_segm"]
    expected = json.loads((folder / "expected.json").read_text())["segm"]
    assert {name: round(metrics[name], 6) for name in expected} == expected
    assert len(expected) == 12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(2))
def test_random_masks_score_as_in_pycocotools(seed: int, backend: str, tmp_path: Path) -> None:
    """Which takes the area of a bbox where there is one; here the pixels decide, with a bbox or without."""
    scene, categories = random_mask_scene(np.random.default_rng(seed), range(25), 3, box_only=False), categories_of(3)
    file = write_ground_truth(tmp_path / "truth.json", scene[0], categories)
    plain = write(tmp_path / "plain.json", entries_of(scene, categories, "bbox"))
    expected = by_pycocotools(file, plain, "segm")
    boxed = write(tmp_path / "boxed.json", entries_of(scene, categories))
    for results in (plain, boxed):
        loaded = load_results([results], ground_truth=file, overrides=[f"eval.coco_backend={backend}"])
        assert numbers(loaded, "coco_segm") == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert numbers(load_results([plain], ground_truth=file), "coco") == pytest.approx(
        by_pycocotools(file, boxed, "bbox"), abs=1e-6, nan_ok=True
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("without", [(), ("bbox",)])
def test_random_keypoints_score_as_in_pycocotools(without: tuple[str, ...], backend: str, tmp_path: Path) -> None:
    """Without a bbox the box is around the keypoints, whose area decides where a wrong detection counts."""
    scene = random_keypoint_scene(np.random.default_rng(5), range(40), 1)
    file = write_ground_truth(tmp_path / "truth.json", scene[0], PERSON)
    results = write(tmp_path / "results.json", entries_of(scene, PERSON, *without))
    loaded = load_results([results], ground_truth=file, overrides=[f"eval.coco_backend={backend}"])
    expected = by_pycocotools(file, results, "keypoints")
    assert numbers(loaded, "coco_keypoints") == pytest.approx(expected, abs=1e-6)
    assert 0.05 < expected["AP"] < 0.95


@pytest.mark.parametrize("name", ["masks", "keypoints"])
def test_detections_that_the_command_saves_score_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, masks = np.random.default_rng(3), name == "masks"
    scene = random_mask_scene(rng, range(15), 2) if masks else random_keypoint_scene(rng, range(15), 1)
    categories, last = (categories_of(2), "coco_segm") if masks else (PERSON, "coco_keypoints")
    file = write_ground_truth(tmp_path / "truth.json", scene[0], categories)
    results = write(tmp_path / "results.json", entries_of(scene, categories, "bbox"))
    outputs = []
    for source, number in ((results, 1), (tmp_path / "saved1.json", 2)):
        output, saved = tmp_path / f"{number}.json", tmp_path / f"saved{number}.json"
        command = ["--detections", str(source), "--ground-truth", str(file), "--json", str(output)]
        assert cli.evaluate([*command, "--save-detections", str(saved), "--set", "eval.coco_backend=fast"]) == 0
        outputs.append(json.loads(output.read_text()))
    assert outputs[0] == outputs[1]
    assert list(outputs[0]) == ["voc07", "voc10", "coco", last]
    assert (tmp_path / "saved1.json").read_text() == (tmp_path / "saved2.json").read_text()
    assert f"\n{last}: COCO {name}, AP over " in capsys.readouterr().out


# ---- forms


def test_masks_in_every_form_are_the_same_pixels(truth: Path) -> None:
    polygon = [[20, 10, 50, 10, 50, 30, 20, 30]]
    results = load(truth, *(ENTRY | {"segmentation": form} for form in (DOG, polygon, polygon[0])))
    masks = results.store.detections[1].masks
    assert isinstance(masks, EncodedMasks)
    assert masks.dense().sum(axis=(1, 2)).tolist() == [600] * 3
    assert masks.dense()[:, 10:30, 20:50].all()
    assert masks.sizes.tolist() == [[H, W]] * 3
    assert results.store.detections[1].boxes.tolist() == [[20, 10, 50, 30]] * 3
    assert results.columns == ("masks",)
    assert "3 detections without a bbox read as the box around its mask or keypoints" in results.notes
    assert len(results.store.detections[2]) == 0
    assert numbers(results, "coco_segm")["AP"] == pytest.approx(1)


def test_a_detection_without_a_mask_is_the_rectangle_of_its_box(truth: Path) -> None:
    lacking = ENTRY | {"bbox": [20, 10, 30, 20], "score": 0.9}
    results = load(truth, lacking, ENTRY | {"segmentation": DOG})
    assert "1 detection without a mask measured as the rectangle of its box" in results.notes
    assert numbers(results, "coco_segm")["AP"] == pytest.approx(1)
    assert not any("without a mask" in note for note in load(truth, lacking).notes)


def test_a_polygon_without_an_area_is_no_mask(truth: Path) -> None:
    line = ENTRY | {"bbox": [20, 10, 30, 20], "segmentation": [[20, 10, 50, 30]]}
    results = load(truth, line, ENTRY | {"segmentation": DOG, "score": 0.1})
    assert "1 detection without a mask measured as the rectangle of its box" in results.notes


def test_no_detection_at_all_scores_zero_by_every_protocol(truth: Path) -> None:
    assert numbers(load(truth), "coco_segm")["AP"] == 0


def test_why_the_data_have_no_keypoints(truth: Path) -> None:
    content = json.loads(truth.read_text())
    for category, names in zip(content["categories"], (["a"], ["a", "b"]), strict=True):
        category["keypoints"] = names
    write(truth, content)
    results = load(truth, ENTRY | {"keypoints": [20, 10, 2]})
    with pytest.raises(UserError, match=r"has any \(.*those of cat and dog differ.*\); annotate them"):
        evaluate_results(results, ["coco_keypoints"])


def test_an_empty_mask_is_measured(truth: Path) -> None:
    results = load(truth, ENTRY | {"segmentation": rle([H * W])}, ENTRY | {"segmentation": DOG, "score": 0.1})
    assert results.store.detections[1].boxes.tolist() == [[0, 0, 0, 0], [20, 10, 50, 30]]
    assert numbers(results, "coco_segm")["AP"] == pytest.approx(1 / 2)


def test_objects_of_which_only_the_box_is_known_are_ignored(truth: Path) -> None:
    on_cat = ENTRY | {"category_id": 1, "segmentation": [[80, 10, 120, 10, 120, 50]]}
    evaluation = evaluate_results(load(truth, on_cat, ENTRY | {"segmentation": DOG}))
    assert list(evaluation.results) == ["voc07", "voc10", "coco", "coco_segm"]
    result = evaluation.results["coco_segm"]
    assert "1 objects without a mask ignored" in result.rules
    assert np.isnan(result.per_class["cat"])
    assert result.score == pytest.approx(1)


def test_what_results_have_as_visibility_does_not_matter(tmp_path: Path) -> None:
    scene = random_keypoint_scene(np.random.default_rng(5), range(9), 1)
    file = write_ground_truth(tmp_path / "truth.json", scene[0], PERSON)
    entries = entries_of(scene, PERSON)
    scores = []
    for visibility in (0, 0.37, 2):
        for entry in entries:
            entry["keypoints"][2::3] = [visibility] * len(COCO_NAMES)
        results = load_results([write(tmp_path / "results.json", entries)], ground_truth=file)
        scores.append(numbers(results, "coco_keypoints")["AP"])
    assert scores[0] == scores[1] == scores[2] > 0


# ---- what cannot be measured


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"segmentation": {"size": [H, 90], "counts": [H * 90]}},
            ["entry 1: its mask is of 90 x 120 (w x h), the imag"],
        ),
        ({"segmentation": {"size": [H, W], "counts": [5]}}, ["entry 1: segmentation: expected run lengths"]),
        ({"segmentation": [[1, 2, 3]]}, ["entry 1: segmentation: expected x and y of each point"]),
        ({"keypoints": [1, 2, 1, "x", 2, 1]}, ["entry 1: expected numbers in 'keypoints'"]),
        ({"keypoints": [1, 2, 2, 4, 2]}, ["entry 0: expected 1 'keypoints' as x, y, visibility", "found 0 numbers"]),
        ({"keypoints": [1, 2, float("nan")], "bbox": [1, 2, 3, 4]}, ["entry 0: expected 1 'keypoints'"]),
        ({}, ["entry 1: expected 'bbox' [x, y, width, height], found None"]),
    ],
)
def test_entries_that_cannot_be_measured(entry: dict[str, Any], words: Sequence[str], truth: Path) -> None:
    message = refusal(truth, ENTRY | {"segmentation": DOG}, ENTRY | entry)
    assert message.startswith(f"{truth.with_name('results.json')}: ")
    for word in words:
        assert word in message


def test_keypoints_that_are_not_finite_or_not_those_of_the_data(tmp_path: Path) -> None:
    scene = random_keypoint_scene(np.random.default_rng(5), range(9), 1)
    file = write_ground_truth(tmp_path / "truth.json", scene[0], PERSON)
    entry = {"image_id": 0, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}
    message = refusal(file, entry | {"keypoints": [1, 2, 2] * 17}, entry | {"keypoints": [1, float("nan"), 2] * 17})
    assert "entry 1: expected finite 'keypoints'" in message
    message = refusal(file, entry | {"keypoints": [1, 2, 2] * 5})
    assert "its detections have 5 keypoints, the objects of the data 17 (nose, left_eye" in message


def test_protocols_that_results_or_data_cannot_serve(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = write(truth.with_name("boxes.json"), [ENTRY | {"bbox": [20, 10, 30, 20]}])
    keypoints = write(truth.with_name("points.json"), [ENTRY | {"keypoints": [20, 10, 2, 50, 30, 2]}])
    common = ["--ground-truth", str(truth), "--protocol"]
    assert cli.evaluate(["--detections", str(boxes), *common, "coco_segm"]) == 2
    assert "protocol coco_segm: measures masks, and" in capsys.readouterr().err
    assert cli.evaluate(["--detections", str(keypoints), *common, "coco_keypoints"]) == 2
    assert "measures keypoints, and no object of the validation data has any" in capsys.readouterr().err
    assert cli.evaluate(["--detections", str(boxes), *common[:2]]) == 0
    assert "coco_segm" not in capsys.readouterr().out
