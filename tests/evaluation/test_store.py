"""What a store refuses and keeps, and how those of several processes merge."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detkit.evaluation.build import build_evaluators
from detkit.evaluation.evaluator import summarise
from detkit.evaluation.protocols import protocols_of
from detkit.evaluation.report import to_json
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, Detections, GroundTruth
from tests.evaluation.scenes import (
    CATEGORIES,
    categories_of,
    detected,
    image,
    random_keypoint_scene,
    random_mask_scene,
    random_scene,
)

A = (0, 0, 50, 50)


def make_store(*ground_truth: GroundTruth) -> DetectionStore:
    return DetectionStore(CATEGORIES, ground_truth)


def test_keeps_the_detections_it_is_given() -> None:
    store, detections = make_store(image([A])), detected([A])
    store.update(1, detections)
    assert store.detections[1] is detections
    assert store.in_order()[0] is detections


def test_in_order_is_the_order_of_the_images() -> None:
    store = make_store(image(image_id="b"), image(image_id="a"))
    store.update("a", detected([A]))
    store.update("b", detected())
    assert list(map(len, store.in_order())) == [0, 1]


def test_refuses_to_leave_images_out() -> None:
    store = make_store(*(image(image_id=number) for number in range(5)))
    store.update(0, detected())
    store.update(2, detected())
    with pytest.raises(ValueError, match="3 of 5 images have no detections reported, the first is 1"):
        store.in_order()


def test_refuses_an_image_twice_until_reset() -> None:
    store = make_store(image([A]))
    store.update(1, detected([A]))
    with pytest.raises(ValueError, match="image 1: its detections were reported before"):
        store.update(1, detected())
    assert len(store.detections[1]) == 1
    store.reset()
    store.update(1, detected())
    assert len(store.detections[1]) == 0


def _change(**columns: object) -> Detections:
    return replace(detected([A]), objects=replace(detected([A]).objects, **columns))


@pytest.mark.parametrize(
    ("image_id", "detections", "message"),
    [
        (9, detected(), "image 9: not one of the 1 images"),
        ("1", detected(), "image '1': not one of the 1 images"),
        (
            1,
            detected([A], categories=Categories.of_names(("dog", "cat"))),
            r"expected detections of the classes \('cat', 'dog'\), got \('dog'",
        ),
        (1, _change(labels=torch.tensor([2])), r"expected labels in \[0, 2\), got 2"),
        (1, _change(labels=torch.tensor([-1])), r"expected labels in \[0, 2\), got -1"),
        (1, _change(scores=torch.tensor([float("nan")])), "expected finite boxes and scores"),
        (1, _change(boxes=torch.full((1, 4), float("inf"))), "expected finite boxes and scores"),
    ],
)
def test_refuses_wrong_detections(image_id: int, detections: Detections, message: str) -> None:
    store = make_store(image([A]))
    with pytest.raises(ValueError, match=message):
        store.update(image_id, detections)
    assert store.state() == {}


def test_names_decide_whether_classes_are_the_same_not_ids() -> None:
    store = make_store(image([A]))
    store.update(1, detected([A], categories=Categories.of_names(CATEGORIES.names)))
    assert len(store.detections[1]) == 1


def test_refuses_wrong_ground_truth() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        make_store()
    with pytest.raises(ValueError, match="2 images with 1 ids"):
        make_store(image(), image())
    with pytest.raises(ValueError, match=r"image 1: expected labels in \[0, 2\), got 2"):
        make_store(image([A], [2]))
    with pytest.raises(ValueError, match="distinct class names"):
        DetectionStore(Categories(("cat", "cat"), (1, 2)), [image()])


def test_stores_of_several_processes_merge() -> None:
    """Each process reports every second image, and both report the last one, as when a batch is filled up."""
    images, detections = random_scene(np.random.default_rng(1), range(20), num_classes=3)

    def store_of(image_ids: list[int]) -> DetectionStore:
        store = DetectionStore(categories_of(3), images)
        for image_id in image_ids:
            store.update(image_id, detections[image_id])
        return store

    whole = store_of(list(range(20)))
    expected = summarise(whole, build_evaluators(protocols_of([]), whole))
    processes = [store_of([*range(0, 19, 2), 19]), store_of([*range(1, 19, 2), 19])]
    states = pickle.loads(pickle.dumps([process.state() for process in processes]))
    for process in processes:
        process.merge(states)
        assert summarise(process, build_evaluators(protocols_of([]), process)) == expected


def test_a_state_has_all_columns_as_numpy_arrays() -> None:
    store, detections = make_store(image([A])), detected([A])
    objects = replace(detections.objects, track_ids=torch.tensor([7]), extra={"angle": torch.tensor([0.5])})
    store.update(1, replace(detections, objects=objects))
    columns = store.state()[1].columns()
    assert set(columns) == {"boxes", "labels", "ignore", "scores", "track_ids", "angle"}
    assert all(isinstance(column, np.ndarray) for column in columns.values())
    store.merge([store.state()])
    assert store.detections[1].objects.extra["angle"].tolist() == [0.5]


@pytest.mark.parametrize("column", ["masks", "keypoints"])
def test_masks_and_keypoints_come_from_other_processes_too(column: str) -> None:
    rng, ids, protocols = np.random.default_rng(2), range(12), protocols_of([column])
    scene = random_mask_scene(rng, ids, 2) if column == "masks" else random_keypoint_scene(rng, ids, 2)
    categories = scene[1][0].categories
    assert len(protocols) == 4

    def store_of(image_ids: list[int]) -> DetectionStore:
        store = DetectionStore(categories, scene[0])
        for image_id in image_ids:
            store.update(image_id, scene[1][image_id])
        return store

    def numbers(store: DetectionStore) -> dict[str, Any]:
        return to_json(summarise(store, build_evaluators(protocols, store)))

    expected = numbers(store_of(list(ids)))
    assert expected[protocols[-1]]["AP"] > 0
    process = store_of([0, 1])
    process.merge(pickle.loads(pickle.dumps([store_of(list(ids)[k::2]).state() for k in (0, 1)])))
    assert numbers(process) == expected


def test_columns_are_those_that_an_object_that_counts_has() -> None:
    images, _ = random_mask_scene(np.random.default_rng(0), range(9), 2)
    store = DetectionStore(categories_of(2), images)
    assert store.columns == ("masks",)
    known = sum(int((image.objects.masks.kinds[~image.objects.ignore] != 0).sum()) for image in images)
    assert 0 < store.num_with("masks") == known < store.num_objects
    ignored = [replace(gt, objects=replace(gt.objects, ignore=np.ones(len(gt.objects), np.bool_))) for gt in images]
    assert DetectionStore(categories_of(2), ignored).columns == ()
    images, _ = random_keypoint_scene(np.random.default_rng(0), range(9), 2)
    assert DetectionStore(categories_of(2), images).columns == ("keypoints",)
    for gt in images:
        assert gt.objects.keypoints is not None
        gt.objects.keypoints[:, :, 2] = 0
    assert DetectionStore(categories_of(2), images).columns == ()


@pytest.mark.gpu
def test_takes_detections_from_the_gpu() -> None:
    store = make_store(image([A]))
    store.update(1, detected([A]).to("cuda"))
    assert store.detections[1].boxes.tolist() == [list(A)]
