"""AP that follows from the matching is the AP of pycocotools."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.evaluation.coco import coco_average_precision, coco_metrics
from detkit.evaluation.curves import average_precision
from detkit.evaluation.matching import IOU_THRESHOLDS, match_detections
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, Detections, GroundTruth, ImageId
from tests.evaluation.scenes import categories_of, detected, image, random_scene
from tests.evaluation.test_coco_fast import scene_of_all_sizes

A, B, FAR = (0, 0, 50, 50), (100, 0, 150, 50), (500, 500, 550, 550)


def published_store(shared_data: Path) -> DetectionStore:
    """The published detections on 100 images of COCO; classes without an object are among them."""
    folder = shared_data / "eval-refs" / "cocoapi_val2014_100"
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    categories = Categories(*(tuple(entry[key] for entry in data["categories"]) for key in ("name", "id")))
    objects, results = (
        _by_image(data["annotations"]),
        _by_image(json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())),
    )

    def columns(entries: list[dict[str, Any]]) -> tuple[list[list[float]], list[int]]:
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
        return boxes, [categories.ids.index(entry["category_id"]) for entry in entries]

    ids = [entry["id"] for entry in data["images"]]
    images = []
    for image_id in ids:
        entries = objects.get(image_id, [])
        crowd, area = [bool(entry["iscrowd"]) for entry in entries], [entry["area"] for entry in entries]
        images.append(image(*columns(entries), crowd, image_id, area))
    store = DetectionStore(categories, images)
    for image_id in ids:
        entries = results.get(image_id, [])
        boxes, labels = columns(entries)
        store.update(image_id, detected(boxes, [entry["score"] for entry in entries], labels, categories))
    return store


def _by_image(entries: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    result: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        result.setdefault(entry["image_id"], []).append(entry)
    return result


def assert_ap_is_pycocotools(images: list[GroundTruth], detections: list[Detections], num_classes: int) -> None:
    matches = match_detections(images, detections)
    num_objects = matches.num_objects(num_classes)
    ap = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    for threshold in range(len(IOU_THRESHOLDS)):
        order = matches.order[~matches.ignored(threshold)[matches.order]]
        for label in np.flatnonzero(num_objects):
            rows = order[matches.labels[order] == label]
            ap[label, threshold] = average_precision(matches.hits(threshold)[rows], int(num_objects[label]))
    metrics, per_class = coco_metrics(images, detections, num_classes)
    np.testing.assert_allclose(ap, coco_average_precision(images, detections, num_classes)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ap.mean(axis=1), per_class, rtol=0, atol=1e-12)
    assert np.nanmean(ap) == pytest.approx(metrics["AP"], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ap_of_crowded_images(seed: int) -> None:
    """Crowds, ties of score and of IoU, ids out of order."""
    rng = np.random.default_rng(seed)
    ids: list[ImageId] = [int(n) if n % 2 else str(n) for n in rng.permutation(300)[:60]]
    assert_ap_is_pycocotools(*random_scene(rng, ids, 3), 3)


@pytest.mark.parametrize("num_classes", [1, 5, 80])
def test_ap_of_boxes_of_all_sizes(num_classes: int) -> None:
    """Images with more than a hundred detections of a class, classes without an object."""
    scene = scene_of_all_sizes(np.random.default_rng(num_classes), 40, num_classes)
    assert_ap_is_pycocotools(*scene, num_classes)


def test_ap_of_published_results(shared_data: Path) -> None:
    store = published_store(shared_data)
    assert_ap_is_pycocotools(list(store.ground_truth), store.in_order(), len(store.categories))


def test_ninth_threshold_is_a_rounding_below_nine_tenths() -> None:
    """As in pycocotools; the IoU of these two boxes, 2.7 / 3, comes out as 0.8999999999999999, too."""
    images, detections = [image([(0.1, 0.1, 3.1, 33.4)])], [detected([(0.1, 0.1, 2.8, 33.4)])]
    matches = match_detections(images, detections)
    assert matches.overlaps.iou[0] < 0.9
    assert [bool(matches.hits(threshold)[0]) for threshold in (7, 8, 9)] == [True, True, False]
    assert_ap_is_pycocotools(images, detections, 1)


@pytest.mark.parametrize("objects", [[A, (20, 0, 70, 50)], [(20, 0, 70, 50), A]])
def test_of_objects_with_the_same_iou_the_last_is_taken(objects: list[tuple[int, ...]]) -> None:
    """The first detection lies midway (IoU 2/3 with both), the second on A: a hit only if A is still free."""
    images, detections = [image(objects)], [detected([(10, 0, 60, 50), A])]
    matches = match_detections(images, detections)
    assert matches.matched[0].tolist() == [1, 0 if objects[0] == A else -1]
    assert_ap_is_pycocotools(images, detections, 1)


@pytest.mark.parametrize("hits", [35, 50, 57, 100])
def test_points_of_recall_are_those_of_pycocotools(hits: int) -> None:
    """Of 100 objects 57 reach the recalls 0.00 to 0.56, and not 57 * 0.01, which is a rounding above 57 / 100."""
    images, detections = (
        [image([A], image_id=n) for n in range(100)],
        [detected([A] if n < hits else []) for n in range(100)],
    )
    assert_ap_is_pycocotools(images, detections, 1)
    points = hits if hits in (35, 57) else hits + 1
    assert average_precision(np.ones(hits, np.bool_), 100) == pytest.approx(points / 101, abs=1e-12)


def test_columns_lead_back_to_the_store() -> None:
    """Whatever the order of the images; the 101st detection of a class is gone, those of others are not."""
    images = [image([A, B], [0, 1], image_id="b"), image(image_id=10), image([FAR], [1], image_id=2)]
    many = detected([FAR] * 101 + [B], labels=[0] * 101 + [1])
    matches = match_detections(images, [many, detected([A]), detected([A, FAR], labels=[0, 1])])
    assert matches.images.tolist() == [2, 2, 1] + [0] * 101
    assert matches.rows.tolist() == [0, 1, 0, *range(100), 101]
    assert matches.object_images.tolist() == [2, 0, 0]
    assert matches.object_rows.tolist() == [0, 0, 1]
    assert np.flatnonzero(matches.hits()).tolist() == [1, 103]
    assert matches.matched[0][[1, 103]].tolist() == [0, 2]
    assert matches.undetected().tolist() == [False, True, False]


def test_ignored_objects_come_last_and_take_any_number() -> None:
    images = [image([A, A], ignore=[True, False])]
    matches = match_detections(images, [detected([A, A, A])])
    assert matches.hits().tolist() == [True, False, False]
    assert matches.ignored().tolist() == [False, True, True]
    assert matches.num_objects(2).tolist() == [1, 0]
    assert not matches.undetected().any()


def test_neither_detections_nor_objects() -> None:
    matches = match_detections([image()], [detected(categories=categories_of(1))])
    assert matches.matched.shape == (10, 0)
    assert not len(matches.order)
    assert not len(matches.overlaps.iou)
