"""Curves, confusion, calibration and examples of scenes that are reckoned by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from detkit.evaluation.analysis import IOU_THRESHOLDS, SIZES, Analysis, Example, analyse
from detkit.evaluation.coco import coco_metrics
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories, Detections, GroundTruth
from tests.evaluation.scenes import CATEGORIES, categories_of, detected, image
from tests.evaluation.test_coco_fast import EDGES, scene_of_all_sizes

CAT, DOG = 0, 1
A, B, FAR = (0, 0, 50, 50), (100, 0, 150, 50), (500, 500, 550, 550)
A_HALF, B_LOOSE = (0, 0, 50, 30), (100, 0, 150, 20)  # IoU 0.6 with A, 0.4 with B


def analysis_of(
    images: Sequence[GroundTruth], detections: Sequence[Detections], categories: Categories = CATEGORIES
) -> Analysis:
    store = DetectionStore(categories, images)
    for gt, image_detections in zip(images, detections, strict=True):
        store.update(gt.image_id, Detections(image_detections.objects, categories))
    return analyse(store)


def test_curve_has_a_point_for_each_score() -> None:
    """Two images. Scores 0.9 right, 0.8 wrong and right, 0.7 ignored, 0.6 wrong; 3 objects, of which 2 are detected."""
    images = [image([A, B], image_id=1), image([A, B], [CAT, CAT], [False, True], image_id=2)]
    detections = [detected([A, FAR, FAR], [0.9, 0.8, 0.6]), detected([A, B], [0.8, 0.7])]
    curve = analysis_of(images, detections).curves["cat"]
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(curve.precision, [1, 2 / 3, 2 / 4])
    np.testing.assert_allclose(curve.recall, [1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(curve.f1, [1 / 2, 2 / 3, 4 / 7])
    assert curve.best == 1


def test_curves_are_of_classes_that_have_an_object_that_counts() -> None:
    analysis = analysis_of([image([A, B], [CAT, DOG], [False, True])], [detected([B], labels=[DOG])])
    assert list(analysis.curves) == ["cat"]
    assert analysis.curves["cat"].scores.shape == (0,)
    assert analysis.curves["cat"].best is None


def test_confusion_meets_objects_of_any_class() -> None:
    """The cat is taken for a dog, the dog for itself; a cat is missed, and a dog lies on nothing.

    All score the same, so that the best threshold lets all pass.
    """
    images = [image([A, B, (200, 0, 250, 50)], [CAT, DOG, CAT])]
    detections = [detected([A, B, FAR], [0.5] * 3, [DOG, DOG, DOG])]
    confusion = analysis_of(images, detections).confusion
    assert confusion.counts.tolist() == [[0, 1, 1], [0, 1, 0], [0, 1, 0]]
    assert confusion.score_threshold == confusion.iou_threshold == 0.5


def test_confusion_joins_the_closest_pair_first() -> None:
    """Not the one with the highest score. The looser detection of the same object is then on nothing."""
    confusion = analysis_of([image([A], [CAT])], [detected([A_HALF, A], [0.9, 0.8], [DOG, CAT])]).confusion
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_confusion_joins_the_higher_score_of_equal_pairs() -> None:
    confusion = analysis_of([image([A], [CAT])], [detected([A, A], [0.9, 0.8], [DOG, CAT])]).confusion
    assert confusion.counts.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_confusion_spares_what_lies_on_an_ignored_object_of_whatever_class() -> None:
    images = [image([A, (500, 500, 900, 900)], [CAT, CAT], [False, True])]
    detections = [detected([FAR, FAR, A], [0.9, 0.8, 0.7], [DOG, CAT, CAT])]
    assert analysis_of(images, detections).confusion.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_confusion_is_at_the_score_that_is_best_for_f1_of_all_classes() -> None:
    """F1 of 2 objects: 0.9 right 2/3; 0.8 right 1; 0.3 wrong 4/5. What scores 0.3 is not counted."""
    images = [image([A, B], [CAT, DOG])]
    confusion = analysis_of(images, [detected([A, B, FAR], [0.9, 0.8, 0.3], [CAT, DOG, DOG])]).confusion
    assert confusion.score_threshold == pytest.approx(0.8)
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_confusion_counts_every_detection_where_none_is_right() -> None:
    confusion = analysis_of([image([A, B])], [detected([A, FAR], [0.9, 0.1], [DOG, DOG])]).confusion
    assert confusion.score_threshold == 0
    assert confusion.counts.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]


def test_calibration() -> None:
    """Bins have their lower edge, the last one both. Of three detections in [0.5, 0.6) two are right.

    Each bin's |sum of scores - right ones|: 0.4 - 0, 0.5 + 0.55 + 0.5625 - 2, 1 - 1; divided by 5 detections. The one
    on an ignored object does not count.
    """
    images = [image([A, B, (200, 0, 250, 50), FAR], ignore=[False, False, False, True])]
    boxes = [A, B, (0, 200, 50, 250), (200, 0, 250, 50), (0, 300, 50, 350), FAR]
    calibration = analysis_of(images, [detected(boxes, [1, 0.5625, 0.5, 0.55, 0.4, 0.95])]).calibration
    np.testing.assert_allclose(calibration.edges, np.arange(11) / 10)
    assert calibration.counts.tolist() == [0, 0, 0, 0, 1, 3, 0, 0, 0, 1]
    none = [np.nan] * 4
    np.testing.assert_allclose(calibration.precision, [*none, 0, 2 / 3, *none[:3], 1])
    np.testing.assert_allclose(calibration.scores, [*none, 0.4, 1.6125 / 3, *none[:3], 1], rtol=1e-6)
    assert calibration.error == pytest.approx((0.4 + 2 - 1.6125) / 5, abs=1e-6)


def test_ap_by_iou_and_size() -> None:
    """A hit of IoU 0.6 counts at three thresholds; 50 x 50 px are medium, the annotated area of the other is large."""
    images = [image([A, B], [CAT, DOG], area=[2500, 10_000])]
    analysis = analysis_of(images, [detected([A_HALF, B], labels=[CAT, DOG])])
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert SIZES == ("small", "medium", "large")
    np.testing.assert_allclose(analysis.ap_by_iou, [[1] * 3 + [0] * 7, [1] * 10])
    np.testing.assert_allclose(analysis.ap_by_size, [[np.nan, 0.3, np.nan], [np.nan, np.nan, 1]])


def test_ap_by_iou_and_size_average_to_the_twelve_numbers() -> None:
    images, detections = scene_of_all_sizes(np.random.default_rng(0), 30, 4)
    analysis = analysis_of(images, detections, categories_of(4))
    metrics, per_class = coco_metrics(images, detections, 4)
    np.testing.assert_allclose(analysis.ap_by_iou.mean(axis=1), per_class, atol=1e-12)
    by_size = np.nanmean(analysis.ap_by_size, axis=0)
    np.testing.assert_allclose(by_size, [metrics[name] for name in ("APs", "APm", "APl")], atol=1e-12)


def test_examples() -> None:
    """Two images, the second with an ignored object and a detection on it, which are never shown."""
    images = [
        image([A, B, (200, 0, 300, 100)], [CAT, DOG, CAT], image_id="z"),
        image([A, FAR, (100, 0, 150, 60)], [DOG, DOG, DOG], [False, True, False], image_id="a"),
    ]
    detections = [
        detected([B, A, A_HALF, FAR], [0.9, 0.8, 0.7, 0.2], [CAT, CAT, CAT, DOG]),
        detected([FAR, A_HALF, B_LOOSE], [0.95, 0.6, 0.5], [DOG, DOG, DOG]),
    ]
    analysis = analysis_of(images, detections)
    score = [float(np.float32(value)) for value in (0.9, 0.7, 0.5, 0.2)]
    assert analysis.false_positives == [
        Example(0, CAT, 0, 1, score[0], 1.0, "class"),
        Example(0, CAT, 2, 0, score[1], pytest.approx(0.6), "duplicate"),  # type: ignore[arg-type]
        Example(1, DOG, 2, 2, score[2], pytest.approx(1 / 3), "localisation"),  # type: ignore[arg-type]
        Example(0, DOG, 3, None, score[3], None, "background"),
    ]
    assert analysis.missed == [
        Example(0, CAT, None, 2, None, None, "missed"),  # 10,000 px^2
        Example(1, DOG, None, 2, None, None, "localisation"),  # 3,000
        Example(0, DOG, None, 1, None, None, "class"),  # 2,500
    ]
    assert [(e.image, e.label, e.detection, e.target, e.iou, e.error) for e in analysis.loose] == [
        (1, DOG, 1, 0, pytest.approx(0.6), None),
        (0, CAT, 1, 0, 1, None),
    ]


@pytest.mark.parametrize("name", EDGES)
def test_at_the_edges(name: str) -> None:
    """The parts agree with each other: every object is detected or missed, every detection right, wrong or ignored."""
    images, detections = EDGES[name]
    analysis = analysis_of(images, detections)
    num_objects = int(sum((~gt.objects.ignore).sum() for gt in images))
    assert len(analysis.loose) + len(analysis.missed) == num_objects
    assert analysis.calibration.counts.sum() == len(analysis.loose) + len(analysis.false_positives)
    assert sum(analysis.errors.counts.values()) >= len(analysis.false_positives)
    assert analysis.confusion.counts[:-1].sum() == num_objects
    for curve in analysis.curves.values():
        assert (np.diff(curve.scores) < 0).all()
    if num_objects:
        assert analysis.errors.ap == pytest.approx(np.nanmean(analysis.ap_by_iou[:, 0]))
    else:
        assert np.isnan(analysis.ap_by_iou).all()
        assert analysis.curves == {}


def test_nothing_at_all() -> None:
    analysis = analysis_of([image()], [detected()])
    assert np.isnan(analysis.calibration.error)
    assert analysis.confusion.counts.sum() == 0
    assert analysis.false_positives == analysis.missed == analysis.loose == []


def test_ignored_objects_are_not_missed() -> None:
    analysis = analysis_of([image([A, B], ignore=[True, False])], [detected()])
    assert analysis.missed == [Example(0, CAT, None, 1, None, None, "missed")]


def test_one_class() -> None:
    one = Categories.of_names(["cat"])
    analysis = analysis_of([image([A])], [detected([A, FAR], [0.9, 0.9])], one)
    assert analysis.curves["cat"].precision.tolist() == [1 / 2]
    assert analysis.confusion.counts.tolist() == [[1, 0], [1, 0]]


def test_images_without_detections_reported() -> None:
    with pytest.raises(ValueError, match="1 of 1 images have no detections reported"):
        analyse(DetectionStore(CATEGORIES, [image([A])]))
