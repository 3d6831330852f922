import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.config import ConfigError
from detkit.evaluation.coco import METRICS, COCOEvaluator, coco_metrics
from detkit.evaluation.protocols import CocoBackend
from detkit.evaluation.report import detections_to_coco
from detkit.evaluation.store import DetectionStore
from detkit.formats import to_xywh
from detkit.structures import Categories, Detections, GroundTruth, ImageId
from tests.engine.settings import make_config
from tests.evaluation.scenes import categories_of, detected, image, random_scene

A, B, FAR = (0, 0, 50, 50), (100, 0, 150, 50), (500, 500, 550, 550)


def ap50(ground_truth: list[GroundTruth], detections: list[Detections]) -> float:
    return coco_metrics(ground_truth, detections, 2)[0]["AP50"]


def test_perfect_detector() -> None:
    metrics, per_class = coco_metrics([image([A, B], [0, 1])], [detected([A, B], labels=[0, 1])], 3)
    assert tuple(metrics) == METRICS
    expected = dict.fromkeys(METRICS, 1.0) | dict.fromkeys(["APs", "APl", "ARs", "ARl"], np.nan)  # all are medium
    assert metrics == pytest.approx(expected, nan_ok=True)
    np.testing.assert_allclose(per_class, [1, 1, np.nan])


def test_no_detection() -> None:
    metrics, per_class = coco_metrics([image([A])], [detected()], 1)
    assert metrics["AP"] == metrics["AR100"] == per_class[0] == 0


def test_no_object() -> None:
    metrics, per_class = coco_metrics([image()], [detected([A])], 1)
    assert np.isnan([*metrics.values(), *per_class]).all()


def test_detections_on_an_empty_image_are_wrong() -> None:
    images = [image(image_id=1), image([A], image_id=2)]
    assert ap50(images, [detected([A], [0.9]), detected([A], [0.8])]) == pytest.approx(1 / 2)


def test_duplicate_is_wrong() -> None:
    # right, wrong, right: precision 1 up to recall 1/2 (51 of 101 points), then 2/3
    assert ap50([image([A, B])], [detected([A, A, B])]) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_second_detection_takes_the_second_best_object() -> None:
    """Unlike VOC, where it would be a duplicate."""
    assert ap50([image([A, (0, 0, 50, 45)])], [detected([A, A])]) == pytest.approx(1)


def test_iou_of_exactly_half_is_enough() -> None:
    assert ap50([image([A])], [detected([(0, 0, 50, 25)])]) == pytest.approx(1)


def test_crowd_takes_any_number_of_small_boxes_inside_it() -> None:
    """IoU with the crowd is 1/100; IoF is 1."""
    crowd = (500, 500, 1000, 1000)
    detections = [detected([FAR, FAR, (900, 900, 950, 950), A])]
    assert ap50([image([A, crowd], ignore=[False, True])], detections) == pytest.approx(1)
    assert ap50([image([A, crowd])], detections) < 0.2


def test_hundred_detections_count() -> None:
    images = [image([A])]
    assert ap50(images, [detected([FAR] * 99 + [A])]) == pytest.approx(1 / 100)
    assert ap50(images, [detected([FAR] * 100 + [A])]) == 0
    both = detected([FAR] * 100 + [A], labels=[1] * 100 + [0])
    assert ap50([image([A, B], [0, 1])], [both]) == pytest.approx((1 + 0) / 2)  # a hundred of each class


def test_area_is_the_annotated_one_at_both_ends() -> None:
    for area, ranges in ((1000, "s"), (1024, "sm"), (5000, "m"), (9216, "ml"), (9300, "l")):
        metrics, _ = coco_metrics([image([A], area=[area])], [detected([A])], 1)
        assert [name for name in ("APs", "APm", "APl") if not np.isnan(metrics[name])] == [f"AP{r}" for r in ranges]


def test_without_annotated_areas_the_boxes_count() -> None:
    """Beside an image that has annotated areas."""
    small, large = (0, 0, 30, 30), (0, 0, 100, 100)
    images = [image([small], image_id=1), image([large], image_id=2), image([A], image_id=3, area=[20000])]
    metrics, _ = coco_metrics(images, [detected([small]), detected(), detected([A])], 1)
    assert metrics["ARs"] == pytest.approx(1)
    assert np.isnan(metrics["ARm"])
    assert metrics["ARl"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("image_ids", [(0, 1), ("a", "b"), (2, 10), ("0", "00"), (5, "1")])
def test_any_image_ids(image_ids: tuple[ImageId, ImageId]) -> None:
    """Equal scores are ordered by image id, numbers by value, however the images are given."""
    for first_is_right, expected in ((True, 1), (False, 1 / 2)):
        pairs = [
            (image([A] if right else [], image_id=image_id), detected([A if right else FAR], [0.5]))
            for image_id, right in zip(image_ids, (first_is_right, not first_is_right), strict=True)
        ]
        for order in (pairs, pairs[::-1]):
            images, detections = zip(*order, strict=True)
            assert ap50(images, detections) == pytest.approx(expected)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    coco_metrics([image([A])], [detected([A])], 1)
    assert capsys.readouterr().out == ""


def test_xywh_gives_the_decimals_of_a_file_back() -> None:
    boxes = [[258.15, 41.29, 348.26, 243.78], [0.0, 0.03, 0.01, 1999.99]]
    corners = np.array(boxes) + np.pad(np.array(boxes)[:, :2], ((0, 0), (2, 0)))
    assert to_xywh(corners.astype(np.float32)).tolist() == boxes
    assert to_xywh(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("first_id", [0, 1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_written_detections_score_the_same_in_plain_pycocotools(seed: int, first_id: int, tmp_path: Path) -> None:
    """With its own ids, crowds, ties and a data set without areas."""
    num_classes = 3
    categories = Categories(categories_of(num_classes).names, (0, 4, 90))
    rng = np.random.default_rng(seed)
    images, detections = random_scene(rng, list(range(first_id, first_id + 40)), num_classes)
    by_id = dict(zip([gt.image_id for gt in images], detections, strict=True))
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(detections_to_coco(by_id, categories)))

    metrics, per_class = coco_metrics(images, detections, num_classes)
    assert metrics == pytest.approx(_plain_pycocotools(images, path, categories.ids), abs=1e-12, nan_ok=True)
    assert 0 < metrics["AP"] < 1
    assert np.nanmean(per_class) == pytest.approx(metrics["AP"])


def _plain_pycocotools(images: list[GroundTruth], results: Path, category_ids: tuple[int, ...]) -> dict[str, float]:
    """By its own reader, with the original ids, except that objects are numbered from 1 as it needs."""
    objects: list[dict[str, Any]] = []
    for gt in images:
        columns = gt.objects.boxes.tolist(), gt.objects.labels, gt.objects.ignore
        for (x1, y1, x2, y2), label, ignore in zip(*columns, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": gt.image_id,
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": gt.image_id} for gt in images],
            "categories": [{"id": category_id} for category_id in category_ids],
            "annotations": objects,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, np.where(evaluation.stats < 0, np.nan, evaluation.stats).tolist(), strict=True))


# ---- another limit than 100


def crowded(num_objects: int, seed: int = 0) -> tuple[list[GroundTruth], list[Detections]]:
    """Two images of `num_objects` squares of one class, and a detection of every one with a random score."""
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(np.arange(20) * 40, np.arange(20) * 40), axis=-1).reshape(-1, 2)[:num_objects]
    boxes = [(float(x), float(y), float(x + 35), float(y + 35)) for x, y in corners]
    images, detections = [], []
    for number in (1, 2):
        shifts = rng.uniform(0, 8, len(boxes)).tolist()
        shifted = [(x1 + shift, y1, x2 + shift, y2) for (x1, y1, x2, y2), shift in zip(boxes, shifts, strict=True)]
        images.append(image(boxes, image_id=number))
        scores = rng.random(len(boxes)).tolist()
        detections.append(detected(shifted, scores, categories=categories_of(1)))
    return images, detections


@pytest.mark.parametrize("backend", ["pycocotools", "fast"])
def test_the_limit_decides_how_many_objects_can_be_found(backend: CocoBackend) -> None:
    """250 objects an image, each detected exactly: of the 101 recalls, those up to limit / 250 have a precision of 1
    and the others of 0."""
    images, _ = crowded(250)
    detections = [detected(truth.objects.boxes.tolist()) for truth in images]
    for limit, ap in ((100, 41 / 101), (200, 81 / 101), (300, 1.0)):
        metrics, per_class = coco_metrics(images, detections, 1, backend=backend, max_detections=limit)
        assert metrics["AP"] == pytest.approx(ap, abs=1e-12)
        assert metrics["AP50"] == pytest.approx(ap, abs=1e-12)
        assert metrics[f"AR{limit}"] == pytest.approx(min(1, limit / 250), abs=1e-12)
        assert per_class[0] == pytest.approx(ap, abs=1e-12)
        assert list(metrics)[8] == f"AR{limit}"
        assert metrics["AR10"] == pytest.approx(10 / 250, abs=1e-12)


def test_with_another_limit_both_backends_give_the_same_bits() -> None:
    for seed, limit in ((1, 50), (2, 180), (3, 300)):
        scene = crowded(220, seed)
        slow, fast = (coco_metrics(*scene, 1, backend=b, max_detections=limit) for b in ("pycocotools", "fast"))
        assert np.array_equal(list(slow[0].values()), list(fast[0].values()), equal_nan=True)
        assert np.array_equal(slow[1], fast[1])


def test_the_rule_says_the_limit_and_whether_a_detector_reaches_it() -> None:
    images, detections = crowded(120)
    store = DetectionStore(categories_of(1), images)
    for truth, one in zip(images, detections, strict=True):
        store.update(truth.image_id, one)
    rules = [COCOEvaluator(store, max_detections=limit).compute().rules for limit in (100, 120, 300)]
    assert "101 recalls, 100 detections an image and class, ignored" in rules[0]
    assert "101 recalls, 120 detections an image and class, ignored" in rules[1]
    assert "300 detections an image and class (no image has more than 120 of all classes), ignored" in rules[2]
    with pytest.raises(ConfigError, match=r"eval.max_detections: should be greater than 10"):
        make_config({"name": "shapes"}, "eval.max_detections=10")
