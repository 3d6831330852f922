"""The fast backend gives the bits of pycocotools: every number, of every class, of any data."""

import numpy as np
import pytest
import torch

from detkit.config import ConfigError, parse_config
from detkit.evaluation.build import build_evaluators
from detkit.evaluation.coco import METRICS, coco_metrics
from detkit.evaluation.protocols import CocoBackend, EvalConfig
from detkit.evaluation.store import DetectionStore
from detkit.ops import dispatch
from detkit.structures import Detections, GroundTruth, ImageId
from tests.evaluation.scenes import CATEGORIES, categories_of, detected, image, random_scene

A, B, FAR = (0, 0, 50, 50), (100, 0, 150, 50), (500, 500, 550, 550)
Scene = tuple[list[GroundTruth], list[Detections]]


def assert_same_bits(scene: Scene, num_classes: int) -> np.ndarray:
    """Returns the twelve numbers."""
    pytest.importorskip("numba", reason="numba, which compiles the fast backend, is not installed")
    (metrics, per_class), (expected, per_class_expected) = (
        coco_metrics(*scene, num_classes, backend=backend) for backend in ("fast", "pycocotools")
    )
    assert tuple(metrics) == METRICS
    numbers = np.array(list(metrics.values()))
    np.testing.assert_array_equal(numbers.view(np.int64), np.array(list(expected.values())).view(np.int64))
    np.testing.assert_array_equal(per_class.view(np.int64), per_class_expected.view(np.int64))
    return numbers


def scene_of_all_sizes(rng: np.random.Generator, num_images: int, num_classes: int) -> Scene:
    """Boxes off the grid, segment areas, classes from rare to common, and some images with 100 detections of a class.

    The last class has no object, every fifth image has none, every seventh no detection.
    """
    chances = 1 / np.arange(1, num_classes) if num_classes > 1 else np.ones(1)
    ground_truth, detections = [], []
    for number in range(num_images):
        count = 0 if number % 5 == 4 else int(rng.integers(1, 20))
        sides = np.exp(rng.normal(4, 1, (count, 2))).clip(2, 500)
        corners = rng.random((count, 2)) * (640 - sides)
        boxes = np.hstack([corners, corners + sides])
        labels = rng.choice(len(chances), count, p=chances / chances.sum())
        areas = sides.prod(axis=1) * rng.uniform(0.3, 1, count)
        ground_truth.append(image(boxes, labels, rng.random(count) < 0.1, number, areas))

        picked = rng.integers(0, count, 0 if number % 7 == 6 else int(rng.integers(150))) if count else [0] * 20
        near = (boxes if count else np.array([[0, 0, 64, 64]]))[picked]
        noise = rng.normal(0, rng.choice([0.02, 0.1, 0.4], (len(picked), 1)), near.shape)
        guesses = near + noise * np.tile(near[:, 2:] - near[:, :2], 2)
        guesses = np.hstack([np.minimum(guesses[:, :2], guesses[:, 2:]), np.maximum(guesses[:, :2], guesses[:, 2:])])
        wrong = rng.integers(0, num_classes, len(picked))
        guessed = np.where(rng.random(len(picked)) < 0.8, labels[picked], wrong) if count else wrong
        if number % 3 == 0:
            guessed[:] = 0
        scores = rng.random(len(picked)).round(2) if number % 2 else rng.random(len(picked))
        detections.append(detected(guesses, scores, guessed, categories_of(num_classes)))
    return ground_truth, detections


@pytest.mark.parametrize("seed", range(8))
def test_on_a_coarse_grid(seed: int) -> None:
    """Equal scores, equal overlaps, crowds."""
    numbers = assert_same_bits(random_scene(np.random.default_rng(seed), range(40), num_classes=3), 3)
    assert np.isfinite(numbers[[0, 3, 4]]).all()


@pytest.mark.parametrize(("seed", "num_classes"), [(0, 1), (1, 2), (2, 5), (3, 80), (4, 300)])
def test_on_all_sizes(seed: int, num_classes: int) -> None:
    scene = scene_of_all_sizes(np.random.default_rng(seed), 40, num_classes)
    numbers = assert_same_bits(scene, num_classes)
    assert (numbers > 0).all()
    assert (numbers < 1).all()
    assert any((detections.labels == 0).sum() > 100 for detections in scene[1])


@pytest.mark.parametrize("ids", ["numbers", "strings", "both"])
def test_any_image_ids_in_any_order(ids: str) -> None:
    rng = np.random.default_rng(0)
    drawn = [int(number) for number in rng.permutation(2000)[:60]]
    image_ids: list[ImageId] = [str(n) if ids == "strings" or (ids == "both" and n % 2) else n for n in drawn]
    assert_same_bits(random_scene(rng, image_ids, num_classes=2), 2)


EDGES: dict[str, Scene] = {
    "perfect": ([image([A, B], [0, 1])], [detected([A, B], labels=[0, 1])]),
    "no detection": ([image([A])], [detected()]),
    "no object": ([image()], [detected([A])]),
    "neither": ([image()], [detected()]),
    "only crowds": ([image([A], ignore=[True])], [detected([A, B])]),
    "detections on an image without objects": (
        [image(image_id=1), image([A], image_id=2)],
        [detected([A], [0.9]), detected([A], [0.8])],
    ),
    "another class": ([image([A], [0])], [detected([A], labels=[1])]),
    "twice": ([image([A, B])], [detected([A, A, B])]),
    "two equal objects": ([image([A, A])], [detected([A, A, A])]),
    "second best": ([image([A, (0, 0, 50, 45)])], [detected([A, A])]),
    "half": ([image([A])], [detected([(0, 0, 50, 25)])]),
    "crowd beside object": ([image([A, A], ignore=[True, False])], [detected([A, A, A])]),
    "many in a crowd": ([image([A, (400, 400, 900, 900)], ignore=[False, True])], [detected([FAR] * 9 + [A])]),
    "border of two ranges": ([image([A, B], area=[1024, 9216])], [detected([(0, 0, 32, 32), (0, 0, 96, 96), A, B])]),
    "all scores equal": ([image([A], image_id=n) for n in range(4)], [detected([FAR, A], [0.5, 0.5])] * 4),
    "99 before it": ([image([A])], [detected([FAR] * 99 + [A])]),
    "100 before it": ([image([A])], [detected([FAR] * 100 + [A])]),
    "empty boxes": ([image([(5, 5, 5, 5), A])], [detected([(5, 5, 5, 5), (0, 0, 0, 9), A])]),
}


@pytest.mark.parametrize("name", EDGES)
def test_at_the_edges(name: str) -> None:
    assert_same_bits(EDGES[name], 3)


def test_with_several_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert_same_bits(scene_of_all_sizes(np.random.default_rng(5), 30, 7), 7)
    finally:
        torch.set_num_threads(threads)


def test_the_evaluator_uses_the_backend_of_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def metrics(*_: object, backend: CocoBackend, **__: object) -> tuple[dict[str, float], np.ndarray]:
        used.append(backend)
        return dict.fromkeys(METRICS, 0.0), np.zeros(2)

    pytest.importorskip("numba")
    monkeypatch.setattr("detkit.evaluation.coco.coco_metrics", metrics)
    store = DetectionStore(CATEGORIES, [image([A])])
    store.update(1, detected([A]))
    backends: tuple[CocoBackend, ...] = ("pycocotools", "fast")
    for backend in backends:
        build_evaluators(["coco"], store, coco_backend=backend)["coco"].compute()
    assert used == list(backends)


def test_config_names_the_backend() -> None:
    assert EvalConfig().coco_backend == "pycocotools"
    assert parse_config({"coco_backend": "fast"}, EvalConfig).coco_backend == "fast"
    with pytest.raises(ConfigError, match=r"fats.*did you mean 'fast'"):
        parse_config({"coco_backend": "fats"}, EvalConfig)
    with pytest.raises(ValueError, match="'fats': expected one of pycocotools, fast"):
        coco_metrics([image()], [detected()], 2, backend="fats")  # type: ignore[arg-type]


def test_without_numba_pycocotools_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = random_scene(np.random.default_rng(0), range(9), len(CATEGORIES))
    expected, _ = coco_metrics(*scene, len(CATEGORIES))
    monkeypatch.setattr(dispatch, "kernels", lambda: None)
    with pytest.warns(RuntimeWarning, match=r"eval\.coco_backend: fast .* numba.* is missing"):
        actual, _ = coco_metrics(*scene, len(CATEGORIES), backend="fast")
    assert actual == expected
