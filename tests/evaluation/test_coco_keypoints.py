"""COCO's numbers of keypoints, by both backends: hand-derived, as pycocotools gives them on files, the same bits."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval

from detkit.config import UserError
from detkit.evaluation.coco import KEYPOINT_METRICS, COCOEvaluator, coco_metrics
from detkit.evaluation.oks import object_keypoint_similarity
from detkit.evaluation.protocols import CocoBackend
from detkit.evaluation.report import detections_to_coco
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, Detections, GroundTruth, KeypointCategories
from tests.evaluation.coco_json import by_pycocotools, write_ground_truth
from tests.evaluation.scenes import POINTS, SIGMAS, SIZE, categories_of, detected, image, random_keypoint_scene
from tests.reference.oks import similarity

Scene = tuple[list[GroundTruth], list[Detections]]
BACKENDS: tuple[CocoBackend, ...] = ("pycocotools", "fast")
TWO = (0.05, 0.1)  # sigmas of two keypoints
BOX = (20, 20, 70, 120)
backends = pytest.mark.parametrize("backend", BACKENDS)


def measured(scene: Scene, backend: CocoBackend, sigmas: Sequence[float] = TWO) -> dict[str, float]:
    if backend == "fast":
        pytest.importorskip("numba", reason="numba, which compiles the fast backend, is not installed")
    return coco_metrics(*scene, 1, measured="keypoints", sigmas=sigmas, backend=backend)[0]


def truth(
    *keypoints: Sequence[Sequence[float]], area: float = 2000, ignore: Sequence[bool] | None = None
) -> GroundTruth:
    """Objects in `BOX` with these keypoints: x, y, visibility."""
    count = len(keypoints)
    objects = image([BOX] * count, area=[area] * count, ignore=ignore).objects
    return GroundTruth(1, SIZE, replace(objects, keypoints=np.array(keypoints, np.float32)))


def guess(*keypoints: Sequence[Sequence[float]], box: Sequence[float] = BOX) -> Detections:
    """Detections of falling scores: x, y."""
    points = torch.cat(
        [torch.tensor(keypoints).float(), torch.full((len(keypoints), len(keypoints[0]), 1), 2.0)], dim=2
    )
    found = detected([box] * len(keypoints))
    return replace(found, objects=replace(found.objects, keypoints=points))


def test_similarity_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    images, detections = random_keypoint_scene(rng, range(40), 1)
    pairs = unlabelled = 0
    for annotated, found in zip(images, detections, strict=True):
        objects, points = annotated.objects, found.objects.keypoints
        assert objects.keypoints is not None
        assert points is not None
        assert objects.area is not None
        x1, y1, x2, y2 = objects.boxes.astype(np.float64).T
        boxes = np.column_stack([x1, y1, x2 - x1, y2 - y1])
        columns = points.double().numpy(), objects.keypoints.astype(np.float64), boxes, objects.area.astype(np.float64)
        actual = object_keypoint_similarity(*columns, np.array(SIGMAS))
        for d, detection in enumerate(points.tolist()):
            for g, keypoints in enumerate(objects.keypoints.tolist()):
                expected = similarity(detection, keypoints, objects.boxes[g].tolist(), float(objects.area[g]), SIGMAS)
                assert actual[d, g] == pytest.approx(expected, abs=1e-12)
                pairs, unlabelled = pairs + 1, unlabelled + all(point[2] == 0 for point in keypoints)
    assert pairs > 500
    assert unlabelled > 50


def test_similarity_has_the_bits_of_pycocotools() -> None:
    """Also where a row is long enough for numpy to add its parts in another order."""
    rng = np.random.default_rng(0)
    for points in (1, 5, 8, 9, 17, 40, 133):
        detections, objects = rng.random((20, points, 3)) * 200, rng.random((6, points, 3)) * 200
        objects[:, :, 2] = rng.integers(0, 3, (6, points))
        objects[0, :, 2] = 0
        boxes, areas, sigmas = rng.random((6, 4)) * 100, rng.random(6) * 1e4, rng.uniform(0.02, 0.2, points)
        slow = COCOeval(iouType="keypoints")
        slow.params.kpt_oks_sigmas = sigmas
        slow._gts[1, 1] = [
            {"keypoints": keypoints.ravel().tolist(), "bbox": box, "area": area}
            for keypoints, box, area in zip(objects, boxes.tolist(), areas.tolist(), strict=True)
        ]
        slow._dts[1, 1] = [{"keypoints": keypoints.ravel().tolist(), "score": 1.0} for keypoints in detections]
        actual = object_keypoint_similarity(detections, objects, boxes, areas, sigmas)
        np.testing.assert_array_equal(actual.view(np.int64), slow.computeOks(1, 1).view(np.int64))


@backends
def test_the_distance_for_a_threshold_by_hand(backend: CocoBackend) -> None:
    """One keypoint so far off that exp(-d^2 / (2 area (2 sigma)^2)) is 0.72; the other one is not labelled."""
    distance = math.sqrt(-2 * 2000 * (2 * TWO[0]) ** 2 * math.log(0.72))
    annotated = truth([(40, 50, 1), (0, 0, 0)])
    metrics = measured(([annotated], [guess([(40 + distance, 50), (0, 0)])]), backend)
    assert tuple(metrics) == KEYPOINT_METRICS
    for name in ("AP", "AR", "APm"):
        assert metrics[name] == pytest.approx(0.5)  # .5, .55, .6, .65, .7
    assert [metrics[name] for name in ("AP50", "AP75", "AR50", "AR75")] == pytest.approx([1, 0, 1, 0])
    assert np.isnan(metrics["APl"])
    # Labelled and exact, the other keypoint makes it the mean of 0.72 and 1: 0.86, eight of ten.
    annotated = truth([(40, 50, 1), (60, 90, 2)])
    metrics = measured(([annotated], [guess([(40, 50 - distance), (60, 90)])]), backend)
    assert metrics["AP"] == pytest.approx(0.8)


@backends
def test_the_area_of_the_annotation_is_the_scale(backend: CocoBackend) -> None:
    for area, ap in ((2000, 0.5), (8000, 1.0 - 0.1)):  # 0.72 ** (1/4) is 0.921
        distance = math.sqrt(-2 * 2000 * (2 * TWO[0]) ** 2 * math.log(0.72))
        annotated = truth([(40, 50, 1), (0, 0, 0)], area=area)
        assert measured(([annotated], [guess([(40 + distance, 50), (0, 0)])]), backend)["AP"] == pytest.approx(ap)


@backends
def test_an_object_without_a_labelled_keypoint_is_ignored_once(backend: CocoBackend) -> None:
    """A detection in its doubled box counts neither way. It is no crowd: a second one is wrong."""
    labelled, nothing = [(40, 50, 2), (60, 90, 2)], [(0, 0, 0), (0, 0, 0)]
    exact, far = [(40, 50), (60, 90)], [(110, 115), (115, 110)]
    for wrong, ap in (([far], 1), ([far, far], 1 / 2)):
        scene = [truth(labelled, nothing)], [guess(*wrong, exact)]
        assert measured(scene, backend)["AP"] == pytest.approx(ap)
        scene = [truth(labelled, nothing, ignore=[False, True])], [guess(*wrong, exact)]
        assert measured(scene, backend)["AP"] == pytest.approx(1)
    assert np.isnan(measured(([truth(nothing)], [guess(exact)]), backend)["AP"])


@backends
def test_the_doubled_box_is_measured_in_coordinates_of_the_file(backend: CocoBackend) -> None:
    """The box ends at 70, doubled at 120, which in detkit's pixels is the keypoint 120.5. With a tiny sigma any other
    distance is too far, so that the detection is wrong."""
    nothing, tiny = [(0, 0, 0)], (1e-4,)
    for x, ap in ((120.5, 1), (121.0, 1 / 2)):
        scene = [truth([(40, 50, 2)], nothing)], [guess([(x, 50)], [(40, 50)])]
        assert measured(scene, backend, tiny)["AP"] == pytest.approx(ap)


@backends
def test_twenty_detections_count_and_what_eval_says_is_another_number(backend: CocoBackend) -> None:
    exact, far = [(40, 50), (60, 90)], [(400, 50), (400, 90)]
    annotated = truth([(40, 50, 2), (60, 90, 2)])
    for ahead, ap in ((19, 1 / 20), (20, 0)):
        scene = [annotated], [guess(*[far] * ahead, exact)]
        assert measured(scene, backend)["AP"] == pytest.approx(ap)
        metrics, _ = coco_metrics(*scene, 1, measured="keypoints", sigmas=TWO, backend=backend, max_detections=300)
        assert metrics["AP"] == pytest.approx(ap)


@backends
def test_detections_have_the_area_of_their_box(backend: CocoBackend) -> None:
    """A wrong detection in a large box counts only among the large ones."""
    exact, far = [(40, 50), (60, 90)], [(400, 50), (400, 90)]
    wrong, right = guess(far, box=(0, 0, 100, 110)), guess(exact, box=BOX)
    both = guess(far, exact)
    boxes = torch.cat([wrong.boxes, right.boxes])
    found = replace(both, objects=replace(both.objects, boxes=boxes))
    metrics = measured(([truth([(40, 50, 2), (60, 90, 2)])], [found]), backend)
    assert metrics["AP"] == pytest.approx(1 / 2)
    assert metrics["APm"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
@backends
def test_random_scenes_score_as_their_files_in_pycocotools(seed: int, backend: CocoBackend, tmp_path: Path) -> None:
    scene = random_keypoint_scene(np.random.default_rng(seed), range(3, 43), 1)
    categories = Categories(("person",), (1,), POINTS)
    by_id = {annotated.image_id: found for annotated, found in zip(*scene, strict=True)}
    (tmp_path / "results.json").write_text(json.dumps(detections_to_coco(by_id, categories)))
    files = write_ground_truth(tmp_path / "truth.json", scene[0], categories), tmp_path / "results.json"
    metrics = measured(scene, backend, SIGMAS)
    assert metrics == pytest.approx(by_pycocotools(*files, "keypoints"), abs=1e-12)
    assert 0.05 < metrics["AP"] < 0.95


@pytest.mark.parametrize("name", ["masks", "keypoints"])
@pytest.mark.parametrize("seed", range(6))
def test_both_backends_give_the_same_bits(seed: int, name: str) -> None:
    """Of scenes with every oddity, and several classes."""
    from tests.evaluation.scenes import random_mask_scene

    pytest.importorskip("numba", reason="numba, which compiles the fast backend, is not installed")
    make = random_mask_scene if name == "masks" else random_keypoint_scene
    scene = make(np.random.default_rng(100 + seed), ["b", 5, "a", *range(100, 130), 7], 1 + seed % 3)
    sigmas = SIGMAS if name == "keypoints" else ()
    slow, fast = (
        coco_metrics(*scene, 4, measured=name, sigmas=sigmas, backend=backend)  # type: ignore[arg-type]
        for backend in BACKENDS
    )
    for expected, actual in ((list(slow[0].values()), list(fast[0].values())), (slow[1], fast[1])):
        np.testing.assert_array_equal(np.array(expected).view(np.int64), np.array(actual).view(np.int64))
    assert slow[0]["AP"] > 0.05


def test_the_rules_tell_how_many_objects_have_no_labelled_keypoint() -> None:
    two = KeypointCategories(("left", "right"), sigmas=TWO)
    nothing = [(0, 0, 0), (0, 0, 0)]
    store = DetectionStore(Categories(("person",), (1,), two), [truth([(40, 50, 2), (0, 0, 0)], nothing, nothing)])
    found = guess([(40, 50), (0, 0)])
    store.update(1, replace(found, categories=store.categories))
    result = COCOEvaluator(store, measured="keypoints", max_detections=300).compute()
    assert result.rules == (
        "COCO keypoints, AP over OKS 0.50:0.05:0.95 and 101 recalls, 20 detections an image and class, ignored as "
        "crowd, 2 objects without a labelled keypoint ignored"
    )
    assert result.score == pytest.approx(1)


def test_keypoints_need_sigmas_and_the_number_of_the_data() -> None:
    for keypoints in (None, KeypointCategories(("a", "b")), KeypointCategories(("a", "b"), sigmas=(0.1,))):
        store = DetectionStore(replace(categories_of(1), keypoints=keypoints), [image()])
        with pytest.raises(
            UserError, match=r"protocol coco_keypoints: expected KeypointCategories.sigmas for the \d k"
        ):
            COCOEvaluator(store, measured="keypoints")
    with pytest.raises(ValueError, match="image 1: expected 3 keypoints of an object, got 2"):
        measured(([truth([(40, 50, 2), (60, 90, 2)])], [guess([(0, 0), (1, 1)])]), "fast", (0.1, 0.1, 0.1))
