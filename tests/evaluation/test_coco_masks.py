"""COCO's numbers of masks, by both backends: hand-derived, as pycocotools gives them on files, and the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detkit.evaluation.coco import COCOEvaluator, coco_metrics
from detkit.evaluation.protocols import CocoBackend
from detkit.evaluation.report import detections_to_coco
from detkit.evaluation.store import DetectionStore
from detkit.structures import Detections, EncodedMasks, GroundTruth
from tests.evaluation.coco_json import by_pycocotools, write_ground_truth
from tests.evaluation.scenes import (
    CATEGORIES,
    SIZE,
    categories_of,
    detected,
    encode,
    image,
    random_mask_scene,
    with_masks,
)

Scene = tuple[list[GroundTruth], list[Detections]]
Window = tuple[int, int, int, int]
BACKENDS: tuple[CocoBackend, ...] = ("pycocotools", "fast")
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def measured(scene: Scene, num_classes: int, backend: CocoBackend) -> tuple[dict[str, float], np.ndarray]:
    if backend == "fast":
        pytest.importorskip("numba", reason="numba, which compiles the fast backend, is not installed")
    return coco_metrics(*scene, num_classes, measured="masks", backend=backend)


def rectangle(window: Window) -> np.ndarray:
    """bool `[120, 160]`"""
    x1, y1, x2, y2 = window
    mask = np.zeros(SIZE, np.bool_)
    mask[y1:y2, x1:x2] = True
    return mask


def truth(
    masks: list[np.ndarray | None],
    boxes: list[Window] | None = None,
    ignore: list[bool] | None = None,
    area: list[float] | None = None,
) -> GroundTruth:
    """Objects with these masks, None where only the box is known. Boxes have nothing to do with masks."""
    encoded = encode([np.zeros(SIZE, np.bool_) if mask is None else mask for mask in masks])
    known = [None if mask is None else encoded.decode(k) for k, mask in enumerate(masks)]
    areas = [0.0 if mask is None else float(mask.sum()) for mask in masks] if area is None else area
    annotated = image(boxes or [(0, 0, 160, 120)] * len(masks), ignore=ignore, area=areas)
    objects = replace(annotated.objects, masks=EncodedMasks.of(known, [SIZE] * len(masks)))
    return GroundTruth(1, SIZE, objects)


def guess(masks: list[np.ndarray], boxes: list[Window] | None = None) -> Detections:
    """Of falling scores."""
    return with_masks(detected(boxes or [(0, 0, 160, 120)] * len(masks)), encode(masks))


LEFT, RIGHT = rectangle((20, 20, 60, 80)), rectangle((60, 20, 100, 80))


def test_masks_count_and_not_boxes(backend: CocoBackend) -> None:
    """All boxes are the same; half of the pixels of the second detection are the object's."""
    metrics, per_class = measured(([truth([LEFT])], [guess([RIGHT])]), 1, backend)
    assert metrics["AP"] == per_class[0] == 0
    # IoU 2/3: five of the ten thresholds
    wide = rectangle((20, 20, 80, 80))
    metrics, per_class = measured(([truth([LEFT])], [guess([wide])]), 1, backend)
    assert (metrics["AP50"], metrics["AP75"]) == (pytest.approx(1), 0)
    assert metrics["AP"] == per_class[0] == pytest.approx(0.4)  # .5, .55, .6, .65


def test_a_crowd_takes_any_number_of_detections_inside_it(backend: CocoBackend) -> None:
    inside = [rectangle((100, y, 120, y + 20)) for y in (0, 20, 40)]
    crowd = rectangle((100, 0, 160, 120))
    scene = [truth([LEFT, crowd], ignore=[False, True])], [guess([*inside, LEFT])]
    assert measured(scene, 1, backend)[0]["AP"] == pytest.approx(1)
    scene = [truth([LEFT, crowd])], [guess([*inside, LEFT])]
    assert measured(scene, 1, backend)[0]["AP"] < 0.2


def test_where_only_the_box_is_known_detections_count_neither_way(backend: CocoBackend) -> None:
    """Two of them lie in the rectangle of the box, the second by 3/4; one beside it, which is wrong."""
    box: Window = (100, 0, 160, 120)
    ahead = [rectangle((100, 0, 120, 20)), rectangle((90, 40, 130, 60))]
    for more, expected in (([], 1), ([rectangle((80, 100, 110, 120))], 1 / 2)):
        scene = [truth([LEFT, None], [(20, 20, 60, 80), box])], [guess([*ahead, *more, LEFT])]
        assert measured(scene, 1, backend)[0]["AP50"] == pytest.approx(expected)
        assert measured(scene, 1, backend)[0]["AP75"] == pytest.approx(expected)
    scene = [truth([None], [box])], [guess([ahead[0]])]
    assert np.isnan(measured(scene, 1, backend)[0]["AP"])


def test_sizes_are_the_annotated_area_and_the_pixels_of_a_detection(backend: CocoBackend) -> None:
    """An object of an annotated 2000 px^2 and, ahead, a wrong detection of 400 px in a box of 3600 px^2."""
    small = rectangle((120, 0, 140, 20))
    metrics, _ = measured(([truth([LEFT], area=[2000])], [guess([small, LEFT], [(100, 0, 160, 60)] * 2)]), 1, backend)
    assert metrics["AP"] == pytest.approx(1 / 2)
    assert metrics["APm"] == pytest.approx(1)  # what matches nothing counts among those of its own size
    assert np.isnan([metrics["APs"], metrics["APl"]]).all()
    for area, ranges in ((1024, "sm"), (9216, "ml")):
        metrics, _ = measured(([truth([LEFT], area=[area])], [guess([LEFT])]), 1, backend)
        assert [name for name in ("APs", "APm", "APl") if not np.isnan(metrics[name])] == [f"AP{r}" for r in ranges]


def test_masks_without_a_pixel_match_nothing(backend: CocoBackend) -> None:
    nothing = np.zeros(SIZE, np.bool_)
    assert measured(([truth([nothing])], [guess([nothing])]), 1, backend)[0]["AP"] == 0


def test_polygons_are_drawn_as_pycocotools_draws_them(backend: CocoBackend) -> None:
    annotated = truth([LEFT])
    polygon = np.array([[20, 20], [60, 20], [60, 80], [20, 80]], np.float64)
    objects = replace(annotated.objects, masks=EncodedMasks.of([[polygon]], [SIZE]))
    metrics, _ = measured(([replace(annotated, objects=objects)], [guess([LEFT])]), 1, backend)
    assert metrics["AP"] == pytest.approx(1)


def test_images_without_objects_or_detections_need_no_masks(backend: CocoBackend) -> None:
    images = [truth([LEFT]), replace(image(image_id=2), size=SIZE)]
    assert measured((images, [guess([LEFT]), detected()]), 1, backend)[0]["AP"] == pytest.approx(1)


def test_masks_of_another_size_than_their_image_are_refused(backend: CocoBackend) -> None:
    wrong = with_masks(detected([(0, 0, 5, 5)]), encode([np.ones((5, 5), np.bool_)], (60, 80)))
    with pytest.raises(ValueError, match=r"image 1: expected EncodedMasks of its size \(h, w\) \(120, 160\)"):
        measured(([truth([LEFT])], [wrong]), 1, backend)


@pytest.mark.parametrize("seed", range(4))
def test_random_scenes_score_as_their_files_in_pycocotools(seed: int, backend: CocoBackend, tmp_path: Path) -> None:
    """It takes the area of a bbox where there is one, so the results have none."""
    scene = random_mask_scene(np.random.default_rng(seed), range(3, 33), 3, box_only=False)
    categories = replace(categories_of(3), ids=(0, 4, 90))
    by_id = {truth.image_id: found for truth, found in zip(*scene, strict=True)}
    results = [{k: v for k, v in row.items() if k != "bbox"} for row in detections_to_coco(by_id, categories)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    files = write_ground_truth(tmp_path / "truth.json", scene[0], categories), tmp_path / "results.json"
    metrics, per_class = measured(scene, 3, backend)
    assert metrics == pytest.approx(by_pycocotools(*files, "segm"), abs=1e-12, nan_ok=True)
    assert 0.05 < metrics["AP"] < 0.95
    assert np.isfinite(list(metrics.values())).all()
    assert np.nanmean(per_class) == pytest.approx(metrics["AP"])


def test_another_limit(backend: CocoBackend) -> None:
    """150 squares, each detected exactly: of the 101 recalls, those up to limit / 150 have a precision of 1."""
    squares = [rectangle((x, y, x + 8, y + 8)) for y in range(0, 100, 10) for x in range(0, 150, 10)]
    for limit, ap in ((75, 51 / 101), (150, 1.0)):
        scene = [truth(list(squares))], [guess(squares)]
        if backend == "fast":
            pytest.importorskip("numba")
        metrics, _ = coco_metrics(*scene, 1, measured="masks", backend=backend, max_detections=limit)
        assert metrics["AP"] == pytest.approx(ap)
        assert metrics[f"AR{limit}"] == pytest.approx(limit / 150)


def test_the_rules_tell_how_many_objects_have_no_mask(backend: CocoBackend) -> None:
    annotated = truth([LEFT, None, None, None], ignore=[False, False, False, True])
    store = DetectionStore(CATEGORIES, [annotated])
    store.update(1, guess([LEFT]))
    rules = COCOEvaluator(store, measured="masks", backend=backend).compute().rules
    assert rules.startswith("COCO masks, AP over IoU 0.50:0.05:0.95 and 101 recalls, 100 detections an image and class")
    assert rules.endswith(", 2 objects without a mask ignored as crowd in the rectangle of their box")
    store = DetectionStore(CATEGORIES, [truth([LEFT])])
    store.update(1, guess([LEFT]))
    assert COCOEvaluator(store, measured="masks", backend=backend).compute().rules.endswith("ignored as crowd")
