import json
from pathlib import Path

import numpy as np
import pytest

from detkit.evaluation.voc import RECALL_POINTS, area_ap, eleven_point_ap, voc_ap
from detkit.structures import Detections, GroundTruth
from tests.evaluation.scenes import detected, image, random_scene
from tests.reference import voc_ap as reference

A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (100, 100, 110, 110)
HALF_OF_A = (0, 0, 10, 5)  # IoU with A is exactly 0.5


def area(ground_truth: list[GroundTruth], detections: list[Detections], **rules: object) -> float:
    return voc_ap(ground_truth, detections, 2, eleven_point=False, **rules)[0]


@pytest.mark.parametrize("eleven_point", [True, False])
def test_perfect_detector(eleven_point: bool) -> None:
    aps = voc_ap([image([A, B], [0, 1])], [detected([A, B], labels=[0, 1])], 2, eleven_point=eleven_point)
    assert aps == pytest.approx([1, 1], abs=1e-15)


@pytest.mark.parametrize("eleven_point", [True, False])
def test_no_detection(eleven_point: bool) -> None:
    aps = voc_ap([image([A])], [detected()], 2, eleven_point=eleven_point)
    assert aps[0] == 0


def test_class_without_objects_is_nan_even_with_detections_or_difficult_objects() -> None:
    aps = voc_ap([image([A, B], [0, 1], [False, True])], [detected([A, B], labels=[0, 1])], 3, eleven_point=True)
    np.testing.assert_allclose(aps, [1, np.nan, np.nan])


def test_image_without_objects_counts_its_detections_as_wrong() -> None:
    images = [image(), image([A])]
    assert area(images, [detected([A], [0.9]), detected([A], [0.8])]) == pytest.approx(1 / 2)


def test_second_detection_of_an_object_is_wrong() -> None:
    # right, wrong (duplicate), right: precision 1 at recall 1/2, 2/3 at recall 1
    assert area([image([A, B])], [detected([A, A, B])]) == pytest.approx((1 + 2 / 3) / 2)


def test_detection_goes_to_its_best_object_even_if_taken() -> None:
    """No second choice: the other object passes the threshold too, but is not the best. COCO would give it."""
    beside = (0, 0, 10, 9)  # IoU 0.9 with A
    assert area([image([A, beside])], [detected([A, A])]) == pytest.approx(1 / 2)


def test_difficult_is_neither_right_nor_wrong() -> None:
    images = [image([A, B], ignore=[True, False])]
    assert area(images, [detected([A, A, B])]) == 1
    assert area(images, [detected([A, FAR, B])]) == pytest.approx(1 / 2)
    assert area(images, [detected([A])]) == 0


@pytest.mark.parametrize("eleven_point", [True, False])
def test_leading_detections_of_difficult_objects_change_nothing(eleven_point: bool) -> None:
    images = [image([A, B, FAR], ignore=[True, False, False])]
    with_leading, without = (
        voc_ap(images, [detected(boxes)], 1, eleven_point=eleven_point) for boxes in ([A, A, B], [B])
    )
    assert with_leading == without
    assert without == pytest.approx(6 / 11 if eleven_point else 1 / 2)


def test_threshold_is_strict_unless_told() -> None:
    images, detections = [image([A])], [detected([HALF_OF_A])]
    assert area(images, detections) == 0
    assert area(images, detections, strict=False) == 1


def test_a_detection_of_another_class_is_wrong() -> None:
    np.testing.assert_array_equal(
        voc_ap([image([A, B], [0, 1])], [detected([A, B], labels=[1, 0])], 2, eleven_point=False), [0, 0]
    )


def test_scores_are_ranked_over_all_images() -> None:
    images = [image([A]), image([A])]
    assert area(images, [detected([FAR, A], [0.9, 0.2]), detected([A], [0.5])]) == pytest.approx(2 / 3)
    assert area(images, [detected([FAR, A], [0.1, 0.2]), detected([A], [0.5])]) == 1


def test_equal_scores_keep_the_order_of_the_images() -> None:
    right, wrong = detected([A], [0.5]), detected([FAR], [0.5])
    assert area([image([A]), image()], [right, wrong]) == 1
    assert area([image(), image([A])], [wrong, right]) == pytest.approx(1 / 2)


def test_recall_of_three_tenths_misses_its_point() -> None:
    """0.3 is 0.30000000000000004 in numpy's arange, as in py-faster-rcnn: 3 of 10 objects reach 0, 0.1, 0.2 only."""
    assert len(RECALL_POINTS) == 11
    assert eleven_point_ap(np.ones(3, dtype=bool), 10) == pytest.approx(3 / 11)
    assert area_ap(np.ones(3, dtype=bool), 10) == pytest.approx(3 / 10)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("eleven_point", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_slow_reference(seed: int, eleven_point: bool, strict: bool) -> None:
    images, detections = random_scene(np.random.default_rng(seed), range(20), num_classes=4)
    aps = voc_ap(images, detections, 5, eleven_point=eleven_point, strict=strict)
    expected = [reference.voc_ap(images, detections, label, eleven_point, strict) for label in range(5)]
    np.testing.assert_allclose(aps, expected, rtol=0, atol=1e-12)
    assert np.isnan(aps[4])
    assert 0 < aps[0] < 1


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.75])
def test_padilla_case(shared_data: Path, threshold: float) -> None:
    """Padilla counts inclusive pixels from x to x + w: a box is one pixel wider than its file says."""
    folder = shared_data / "eval-refs" / "padilla_case1"
    expected = json.loads((folder / "expected.json").read_text())
    images, detections = [], []
    for path in sorted((folder / "gts").iterdir()):
        images.append(image([_padilla_box(line.split()[1:]) for line in path.read_text().splitlines()]))
        rows = [line.split()[1:] for line in (folder / "dets" / path.name).read_text().splitlines()]
        detections.append(detected([_padilla_box(row[1:]) for row in rows], [float(row[0]) for row in rows]))
    for eleven_point, name in ((True, "11_point"), (False, "every_point")):
        aps = voc_ap(images, detections, 1, eleven_point=eleven_point, iou_threshold=threshold, strict=False)
        assert aps[0] == pytest.approx(expected[name][str(threshold)], abs=1e-9)


def _padilla_box(fields: list[str]) -> list[float]:
    x, y, width, height = map(float, fields)
    return [x, y, x + width + 1, y + height + 1]
