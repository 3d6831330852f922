"""Resampled AP against data whose images are really repeated, and the interval against simulated detectors."""

from collections.abc import Sequence

import numpy as np
import pytest

from detkit.config import UserError
from detkit.evaluation.coco import coco_metrics
from detkit.evaluation.comparison import Interval, compare_detectors
from detkit.evaluation.matching import match_detections
from detkit.evaluation.resampling import ResampledAP, draw_weights, mean_over_classes
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, Detections, GroundTruth, ImageId
from tests.evaluation.scenes import CATEGORIES, categories_of, detected, image, random_scene
from tests.evaluation.test_coco_fast import EDGES, scene_of_all_sizes

A, B, FAR = (0, 0, 50, 50), (100, 0, 150, 50), (500, 500, 550, 550)
Scene = tuple[list[GroundTruth], list[Detections]]


def store_of(
    images: Sequence[GroundTruth], detections: Sequence[Detections], categories: Categories = CATEGORIES
) -> DetectionStore:
    store = DetectionStore(categories, images)
    for gt, image_detections in zip(images, detections, strict=True):
        store.update(gt.image_id, Detections(image_detections.objects, categories))
    return store


def resampled_ap(scene: Scene, num_classes: int, weights: np.ndarray) -> np.ndarray:
    return ResampledAP(match_detections(*scene), len(scene[0]), num_classes)(weights)


def assert_plain_ap(scene: Scene, num_classes: int) -> None:
    """A weight of one everywhere gives COCO's AP."""
    ap = resampled_ap(scene, num_classes, np.ones((len(scene[0]), 1)))
    metrics, per_class = coco_metrics(*scene, num_classes)
    np.testing.assert_allclose(ap[:, 0], per_class, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean_over_classes(ap)[0], metrics["AP"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids: list[ImageId] = [int(n) for n in rng.permutation(100)[:40]]
    assert_plain_ap(random_scene(rng, ids, 3), 3)
    assert_plain_ap(scene_of_all_sizes(rng, 25, 4), 4)


@pytest.mark.parametrize("name", EDGES)
def test_weights_of_one_at_the_edges(name: str) -> None:
    assert_plain_ap(EDGES[name], 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hits", [35, 50, 57, 100])
def test_points_of_recall_are_those_of_pycocotools(hits: int, dtype: type[np.floating]) -> None:
    """Of 100 objects 57 reach the recalls 0.00 to 0.56, and not 57 * 0.01, which is a rounding above 57 / 100."""
    images = [image([A], image_id=n) for n in range(100)]
    scene = images, [detected([A] if n < hits else []) for n in range(100)]
    points = hits if hits in (35, 57) else hits + 1
    assert coco_metrics(*scene, 1)[0]["AP"] == pytest.approx(points / 101, abs=1e-12)
    assert resampled_ap(scene, 1, np.ones((100, 1), dtype)).item() == pytest.approx(points / 101, abs=1e-6)


def repeat(scene: Scene, counts: np.ndarray) -> Scene:
    """The data set in which each image is there as often as it counts."""
    images, detections = [], []
    for gt, image_detections, count in zip(*scene, counts.tolist(), strict=True):
        for _ in range(count):
            images.append(GroundTruth(len(images), gt.size, gt.objects))
            detections.append(image_detections)
    return images, detections


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resamples_are_the_ap_of_repeated_images(dtype: type[np.floating]) -> None:
    """Rare classes are missing in some of them. No two scores of an image are equal (see `resampling.py`)."""
    rng = np.random.default_rng(0)
    images, tied = scene_of_all_sizes(rng, 10, 12)
    scene = images, [detected(d.boxes.tolist(), rng.random(len(d)).tolist(), d.labels.tolist()) for d in tied]
    (weights,) = draw_weights(10, 6, 0, dtype)
    assert weights.shape == (10, 6)
    assert (weights.sum(axis=0) == 10).all()
    ap = resampled_ap(scene, 12, weights)
    overall = mean_over_classes(ap)
    assert ap.dtype == dtype
    assert (np.isnan(ap).any(axis=1) & ~np.isnan(ap).all(axis=1)).any()
    for drawn in range(6):
        metrics, per_class = coco_metrics(*repeat(scene, weights[:, drawn].astype(np.int64)), 12)
        np.testing.assert_allclose(ap[:, drawn], per_class, rtol=0, atol=1e-6)
        assert overall[drawn] == pytest.approx(metrics["AP"], abs=1e-6)


def test_draws_do_not_depend_on_how_many_follow() -> None:
    few, many = (np.concatenate(list(draw_weights(7, n, 3, np.float32)), axis=1) for n in (5, 1500))
    assert many.shape == (7, 1500)
    np.testing.assert_array_equal(many[:, :5], few)


def simulate(rng: np.random.Generator, chance: float, num_images: int = 40) -> list[Detections]:
    """Detections of images with the objects A and B: each object with a chance, and a wrong one every other time."""
    detections = []
    for _ in range(num_images):
        boxes = [box for box in (A, B) if rng.random() < chance] + [FAR] * int(rng.random() < 0.5)
        detections.append(detected(boxes, rng.random(len(boxes)).tolist()))
    return detections


@pytest.mark.long
def test_interval_holds_the_truth_in_95_of_100_cases() -> None:
    """200 pairs of equal detectors: 190 intervals are expected to hold 0, with a spread of sqrt(200 * .95 * .05) = 3.1.

    Three spreads are allowed, and below them the 1 in 100 that percentile intervals of so few images lack: of 1500
    pairs on 40 images 93 % held 0, of 300 on 100 images 94 %.
    """
    rng = np.random.default_rng(0)
    images = [image([A, B], image_id=n) for n in range(100)]
    held = 0
    for _ in range(200):
        first, second = (store_of(images, simulate(rng, 0.6, 100)) for _ in range(2))
        held += compare_detectors(first, second, resamples=400).overall.is_noise
    assert 190 - 9 - 2 <= held <= 190 + 9


def test_interval_is_the_middle_95_percent_of_the_paired_differences() -> None:
    """On the draws of the seed, each measured for both detectors."""
    rng = np.random.default_rng(0)
    images = [image([A, B], image_id=n) for n in range(40)]
    scenes = [(images, simulate(rng, 0.6)) for _ in range(2)]
    comparison = compare_detectors(*(store_of(*scene) for scene in scenes), resamples=2000, seed=4)
    weights = np.concatenate(list(draw_weights(40, 2000, 4, np.float64)), axis=1)
    first, second = (resampled_ap(scene, 1, weights)[0] for scene in scenes)
    rising = np.sort(second - first)
    assert comparison.overall.low == pytest.approx(rising[[49, 50]].mean(), abs=2e-3)
    assert comparison.overall.high == pytest.approx(rising[[1949, 1950]].mean(), abs=2e-3)
    assert rising[100] - rising[50] > 5e-3


def test_a_better_detector_is_seen() -> None:
    rng = np.random.default_rng(0)
    images = [image([A, B], image_id=n) for n in range(40)]
    worse, better = (store_of(images, simulate(rng, chance)) for chance in (0.3, 0.9))
    comparison = compare_detectors(worse, better, resamples=400)
    assert not comparison.overall.is_noise
    assert 0 < comparison.overall.low < comparison.overall.value < comparison.overall.high < 1
    back = compare_detectors(better, worse, resamples=400)
    assert back.overall == Interval(*(pytest.approx(-v) for v in _ends(comparison.overall)))  # type: ignore[arg-type]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.high, interval.low


def test_same_draw_for_both() -> None:
    """The second detects what the first does and, on every image, one object more: its AP is larger in every resample.

    AP of the first is 51 of 101 points, whatever is drawn.
    """
    images = [image([A, B], image_id=n) for n in range(5)]
    comparison = compare_detectors(store_of(images, [detected([A])] * 5), store_of(images, [detected([A, B])] * 5))
    assert (comparison.first, comparison.second) == pytest.approx((51 / 101, 1))
    assert _ends(comparison.overall) == pytest.approx([50 / 101] * 3, abs=1e-6)
    assert _ends(comparison.per_class["cat"]) == pytest.approx([50 / 101] * 3, abs=1e-6)
    assert comparison.resamples == 10_000
    assert "10,000 resamples of the 5 images" in comparison.rules
    assert "COCO AP over IoU 0.50:0.05:0.95" in comparison.rules


def test_equal_detectors_are_noise() -> None:
    scene = scene_of_all_sizes(np.random.default_rng(1), 20, 3)
    first, second = (store_of(*scene, categories_of(3)) for _ in range(2))
    comparison = compare_detectors(first, second, resamples=50)
    assert comparison.overall == Interval(0, 0, 0)
    assert comparison.overall.is_noise
    assert comparison.first == comparison.second == pytest.approx(coco_metrics(*scene, 3)[0]["AP"], abs=1e-12)
    assert not comparison.gains.any()


def test_same_seed_same_bits() -> None:
    rng = np.random.default_rng(0)
    images = [image([A, B], image_id=n) for n in range(40)]
    first, second = (store_of(images, simulate(rng, 0.6)) for _ in range(2))
    once, again, other = (compare_detectors(first, second, resamples=100, seed=seed) for seed in (5, 5, 6))
    assert once.overall == again.overall
    assert once.overall != other.overall
    assert once.overall.value == other.overall.value


def test_class_without_an_object() -> None:
    """Nothing is known of the dogs; the cat is in two images of three, so that a few resamples lack it."""
    images = [image([A], image_id=0), image([A], image_id=1), image(image_id=2)]
    first = store_of(images, [detected([A]), detected(), detected([A], labels=[1])])
    second = store_of(images, [detected([A]), detected([A]), detected()])
    comparison = compare_detectors(first, second, resamples=200)
    dog, cat = comparison.per_class["dog"], comparison.per_class["cat"]
    assert np.isnan(_ends(dog)).all()
    assert dog.is_noise
    assert _ends(cat) == _ends(comparison.overall)
    assert not np.isnan(_ends(cat)).any()


@pytest.mark.parametrize("objects", [[], [A]], ids=["no object", "only ignored"])
def test_no_object_that_counts(objects: list[tuple[int, ...]]) -> None:
    images = [image(objects, ignore=[True] * len(objects))]
    comparison = compare_detectors(store_of(images, [detected([A])]), store_of(images, [detected()]), resamples=10)
    assert np.isnan([comparison.first, comparison.second, *_ends(comparison.overall)]).all()
    assert comparison.gains.tolist() == [0]


def test_gains_count_objects_that_only_one_detects() -> None:
    """Ignored objects do not count, nor do detections below the score that is best for F1: 0.1 of the second."""
    images = [image([A, B], ignore=[False, True], image_id=n) for n in (3, 1, 2)]
    nothing = detected([FAR] * 9, [0.2] * 9)
    first = store_of(images, [detected([A, B]), detected(), nothing])
    second = store_of(
        images, [detected([B], [0.9]), detected([A], [0.9]), detected([FAR] * 9 + [A], [0.2] * 9 + [0.1])]
    )
    assert compare_detectors(first, second, resamples=10).gains.tolist() == [-1, 1, 0]


def test_images_in_another_order() -> None:
    images = [image([A], image_id=0), image([B], image_id=1)]
    first = store_of(images, [detected([A]), detected()])
    second = store_of(images[::-1], [detected([B]), detected()])
    comparison = compare_detectors(first, second, resamples=10)
    assert comparison.gains.tolist() == [-1, 1]
    assert comparison.first == comparison.second


BASE = [image([A, B], [0, 1], image_id=7), image(image_id="8")]
OTHER_DATA = {
    "class 2 is 'dog' in the first and 'cow' in the second": (BASE, Categories.of_names(["cat", "cow"])),
    "class 3 is absent in the first and 'cow' in the second": (BASE, Categories.of_names(["cat", "dog", "cow"])),
    "image '8' is only in the first": (BASE[:1], CATEGORIES),
    "image 9 is only in the second": ([*BASE, image(image_id=9)], CATEGORIES),
    "image 7 has 2 objects in the first and 1 in the second": ([image([A], image_id=7), BASE[1]], CATEGORIES),
    "object 2 of image 7 has another": ([image([A, B], [0, 0], image_id=7), BASE[1]], CATEGORIES),
    "object 1 of image 7 has another": ([image([FAR, B], [0, 1], image_id=7), BASE[1]], CATEGORIES),
    "object 1 of image 7 ha": ([image([A, B], [0, 1], [True, False], image_id=7), BASE[1]], CATEGORIES),
}


@pytest.mark.parametrize("difference", OTHER_DATA)
def test_other_data_are_refused_with_the_first_difference(difference: str) -> None:
    images, categories = OTHER_DATA[difference]
    first = store_of(BASE, [detected()] * 2)
    second = store_of(images, [detected()] * len(images), categories)
    with pytest.raises(UserError, match=f"other data: {difference}.*; evaluate both on the same data set"):
        compare_detectors(first, second)


def test_detections_that_are_not_reported() -> None:
    first, second = store_of(BASE, [detected()] * 2), DetectionStore(CATEGORIES, BASE)
    with pytest.raises(ValueError, match="2 of 2 images have no detections reported"):
        compare_detectors(first, second)
