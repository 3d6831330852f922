import json

import pytest

from detkit.evaluation.build import build_evaluators
from detkit.evaluation.coco import METRICS
from detkit.evaluation.evaluator import Evaluation, summarise
from detkit.evaluation.protocols import PROTOCOLS
from detkit.evaluation.report import detections_to_coco, format_side_by_side, format_table, to_json
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories
from tests.evaluation.scenes import CATEGORIES, detected, image

A, B = (0, 0, 50, 50), (100, 0, 150, 50)
SPARSE_IDS = Categories(("cat", "dog"), (1, 90))


@pytest.fixture
def evaluation() -> Evaluation:
    """One of three cats is detected; there is no dog."""
    store = DetectionStore(CATEGORIES, [image([A, A, A, B], ignore=[False] * 3 + [True])])
    store.update(1, detected([A]))
    return summarise(store, build_evaluators(PROTOCOLS, store))


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
    assert [line.partition(":")[0] for line in lines[7:10]] == list(PROTOCOLS)
    assert lines[-4:] == format_table(evaluation, "coco").splitlines()[-4:]


def test_json_has_full_precision_and_no_nan(evaluation: Evaluation) -> None:
    result = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert list(result) == list(PROTOCOLS)
    assert result["voc10"] == {"mAP": 1 / 3, "per_class": {"cat": 1 / 3, "dog": None}}
    assert result["voc07"]["mAP"] == pytest.approx(4 / 11, abs=1e-15)
    assert list(result["coco"]) == [*METRICS, "per_class"]
    assert result["coco"]["APs"] is None
    assert result["coco"]["per_class"] == {"cat": pytest.approx(34 / 101), "dog": None}


def test_coco_entries_use_the_ids_of_the_data_set() -> None:
    entries = detections_to_coco({"x": detected([(1.5, 2, 11.75, 22)], [0.25], [1]), 7: detected()}, SPARSE_IDS)
    assert entries == [{"image_id": "x", "category_id": 90, "bbox": [1.5, 2.0, 10.25, 20.0], "score": 0.25}]
    assert json.loads(json.dumps(entries)) == entries
