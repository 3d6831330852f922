import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from detkit.evaluation.build import build_evaluators
from detkit.evaluation.coco import METRICS
from detkit.evaluation.evaluator import Evaluation, summarise
from detkit.evaluation.protocols import protocols_of
from detkit.evaluation.report import detections_to_coco, format_side_by_side, format_table, to_json
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, GroundTruth, KeypointCategories
from tests.evaluation.scenes import CATEGORIES, SIZE, detected, encode, image, with_masks

A, B = (0, 0, 50, 50), (100, 0, 150, 50)
BOXES = protocols_of([])
OF_PICTURES = protocols_of(["masks", "keypoints"])
SPARSE_IDS = Categories(("cat", "dog"), (1, 90))


@pytest.fixture
def evaluation() -> Evaluation:
    """One of three cats is detected; there is no dog."""
    store = DetectionStore(CATEGORIES, [image([A, A, A, B], ignore=[False] * 3 + [True])])
    store.update(1, detected([A]))
    return summarise(store, build_evaluators(BOXES, store))


def test_voc_table(evaluation: Evaluation) -> None:
    assert format_table(evaluation, "voc10").splitlines() == [
        "voc10: VOC 2010 area under the curve, IoU > 0.5, inclusive pixels, difficult ignored",
        "1 images, 3 objects and 1 ignored, 1 detections",
        "",
        "class  objects      AP",
        "cat          3  0.3333",
        "dog          0       -",
        "",
        "mAP   0.3333",
    ]


def test_coco_table_has_the_twelve_numbers_by_name(evaluation: Evaluation) -> None:
    lines = format_table(evaluation, "coco").splitlines()
    assert lines[0].startswith("coco: COCO, AP over IoU 0.50:0.05:0.95")
    assert "  ".join(lines[-4:]).split()[::2] == list(METRICS)
    assert lines[-4:] == [
        "AP    0.3366   AP50  0.3366   AP75  0.3366",
        "APs        -   APm   0.3366   APl        -",
        "AR1   0.3333   AR10  0.3333   AR100 0.3333",
        "ARs        -   ARm   0.3333   ARl        -",
    ]


def test_protocols_side_by_side(evaluation: Evaluation) -> None:
    lines = format_side_by_side(evaluation).splitlines()
    assert lines[:6] == [
        "1 images, 3 objects and 1 ignored, 1 detections",
        "",
        "class  objects   voc07   voc10    coco",
        "cat          3  0.3636  0.3333  0.3366",
        "dog          0       -       -       -",
        "mean         3  0.3636  0.3333  0.3366",
    ]
    assert [line.partition(":")[0] for line in lines[7:10]] == list(BOXES)
    assert lines[-4:] == format_table(evaluation, "coco").splitlines()[-4:]


def test_masks_and_keypoints_have_a_column_of_their_own_and_their_numbers() -> None:
    """Two squares, one of them detected: all of its pixels, and its keypoint fifty px off."""
    squares = np.zeros((2, *SIZE), np.bool_)
    squares[0, 0:50, 0:50] = squares[1, 0:50, 100:150] = True
    point = Categories(("cat", "dog"), (1, 3), KeypointCategories(("nose",), sigmas=(0.01,)))
    truth = image([A, B])
    keypoints = np.array([[[20, 20, 2]], [[120, 20, 2]]], np.float32)
    objects = replace(truth.objects, masks=encode(list(squares)), keypoints=keypoints)
    store = DetectionStore(point, [GroundTruth(1, SIZE, objects)])
    found = with_masks(detected([A], categories=point), encode([squares[0]]))
    store.update(1, replace(found, objects=replace(found.objects, keypoints=torch.tensor([[[70.0, 20.0, 2.0]]]))))
    lines = format_side_by_side(summarise(store, build_evaluators(OF_PICTURES, store))).splitlines()
    assert lines[2:6] == [
        "class  objects   voc07   voc10    coco  coco_segm  coco_keypoints",
        "cat          2  0.5455  0.5000  0.5050     0.5050          0.0000",
        "dog          0       -       -       -          -               -",
        "mean         2  0.5455  0.5000  0.5050     0.5050          0.0000",
    ]
    assert [line.partition(":")[0] for line in lines[7:12]] == list(OF_PICTURES)
    assert [lines[k] for k in (13, 19, 25)] == ["coco:", "coco_segm:", "coco_keypoints:"]
    assert [lines[k] for k in (14, 20)] == ["AP    0.5050   AP50  0.5050   AP75  0.5050"] * 2
    assert lines[26:] == [
        "AP    0.0000   AP50  0.0000   AP75  0.0000   APm   0.0000   APl        -",
        "AR    0.0000   AR50  0.0000   AR75  0.0000   ARm   0.0000   ARl        -",
    ]


def test_json_has_full_precision_and_no_nan(evaluation: Evaluation) -> None:
    result = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert list(result) == list(BOXES)
    assert result["voc10"] == {"mAP": 1 / 3, "per_class": {"cat": 1 / 3, "dog": None}}
    assert result["voc07"]["mAP"] == pytest.approx(4 / 11, abs=1e-15)
    assert list(result["coco"]) == [*METRICS, "per_class"]
    assert result["coco"]["APs"] is None
    assert result["coco"]["per_class"] == {"cat": pytest.approx(34 / 101), "dog": None}


def test_coco_entries_use_the_ids_of_the_data_set() -> None:
    entries = detections_to_coco({"x": detected([(1.5, 2, 11.75, 22)], [0.25], [1]), 7: detected()}, SPARSE_IDS)
    assert entries == [{"image_id": "x", "category_id": 90, "bbox": [1.5, 2.0, 10.25, 20.0], "score": 0.25}]
    assert json.loads(json.dumps(entries)) == entries
